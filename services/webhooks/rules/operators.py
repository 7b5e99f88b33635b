"""What operators see and choose."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from services.webhooks.rules.inbox import SignedWith

Status = Literal["pending", "processed", "dead"]

SELECTION_MAX = 10_000


@dataclass(frozen=True)
class EventRow:
    """A stored event without its body."""

    id: str
    provider: str
    account_id: str
    mode: str
    event_id: str | None
    event_type: str | None
    tenant_id: str | None
    body_sha256: str
    masked: bool
    signed_with: SignedWith | None
    body_removed_at: datetime | None
    request_id: str
    received_at: datetime
    processed: bool
    processed_at: datetime | None
    outcome: str | None
    outcome_reason: str | None
    retry_count: int
    next_retry_at: datetime | None
    last_error: str | None

    @property
    def status(self) -> Status:
        """Where it stands."""
        if not self.processed:
            return "pending"
        return "dead" if self.outcome == "dead" else "processed"


@dataclass(frozen=True)
class Chosen:
    """An event that is about to be delivered once more, as it stands."""

    id: str
    tenant_id: str | None
    processed: bool
    outcome: str | None
    outcome_reason: str | None
    retry_count: int

    @property
    def stood(self) -> str:
        """Where it stood, for the audit log."""
        if not self.processed:
            return f"pending after {self.retry_count} failures"
        return f"{self.outcome} {self.outcome_reason}"


@dataclass(frozen=True)
class Replayed:
    """What came of a wish to replay."""

    events: int
    in_attempt: int
    without_body: int


@dataclass(frozen=True)
class EventFilter:
    """Which events to list; what is None does not matter."""

    tenant_id: str | None = None
    event_type: str | None = None
    status: Status | None = None
    received_from: datetime | None = None
    received_until: datetime | None = None
    event_id: str | None = None


@dataclass(frozen=True)
class DeadLetter:
    """An event that waits for a person."""

    id: str
    webhook_event_id: str
    tenant_id: str | None
    reason: str
    last_error: str | None
    created_at: datetime


@dataclass(frozen=True)
class EventSelection:
    """What to replay: exactly one of an id, a tenant or a range."""

    id: str | None = None
    tenant_id: str | None = None
    received_from: datetime | None = None
    received_until: datetime | None = None
    event_type: str | None = None


@dataclass(frozen=True)
class LetterSelection:
    """Which dead letters: exactly one of ids, a reason or a tenant."""

    ids: Sequence[str] = ()
    set_aside_for: str | None = None
    tenant_id: str | None = None


@dataclass(frozen=True)
class Wish:
    """Who wants a change, why, and under which key a repetition of the wish is known."""

    actor: str
    reason: str
    idempotency_key: str
    request_id: str


def plain(selection: EventSelection | LetterSelection) -> dict[str, object]:
    """A selection as JSON: what was said, nothing that was left out."""
    values = {name: value for name, value in vars(selection).items() if value}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()
    }
