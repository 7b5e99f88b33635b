"""Every refusal of the webhooks room.

EventNotFound         no event has this id
EventBodyRemoved      too old to be replayed
DeadLetterNotFound    no dead letter has this id
PageTokenInvalid      a token that this list did not make
IdempotencyKeyReused  the key belongs to another request
SelectionTooLarge     more than one call may change
NotStored             the delivery is not on disk: the provider must send it again
Poison                a body that no repetition will make understandable; never leaves the room
"""

from shared.errors import FailedPrecondition, InvalidArgument, NotFound


class EventNotFound(NotFound):
    reason = "EVENT_NOT_FOUND"


class EventBodyRemoved(FailedPrecondition):
    reason = "EVENT_BODY_REMOVED"


class DeadLetterNotFound(NotFound):
    reason = "DEAD_LETTER_NOT_FOUND"


class PageTokenInvalid(InvalidArgument):
    reason = "PAGE_TOKEN_INVALID"


class IdempotencyKeyReused(FailedPrecondition):
    reason = "IDEMPOTENCY_KEY_REUSED"


class SelectionTooLarge(FailedPrecondition):
    reason = "SELECTION_TOO_LARGE"


class NotStored(Exception):
    """Never reaches gRPC: HTTP answers it with 503."""


class Poison(Exception):
    """Names what is wrong by a stable word and the place of it, never by a value from the body."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(f"{reason}: {place}" if place else reason)
        self.reason = reason
