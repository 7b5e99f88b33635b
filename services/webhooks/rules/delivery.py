"""What becomes of an attempt to deliver an event."""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from services.webhooks.errors import Poison
from shared.errors import BillingError, InvalidArgument

Outcome = Literal["applied", "duplicate", "superseded", "ignored"]

ATTEMPTS_EXHAUSTED = "attempts_exhausted"
REFUSED = "refused"
WORKER_DIED = "worker_died"


@dataclass(frozen=True)
class Patience:
    """How long and how often an event is tried."""

    attempts_max: int = 10
    base_seconds: float = 2.0
    max_seconds: float = 6 * 3600.0
    lease_seconds: float = 30.0
    # Shorter than the lease, so that a slow answer is still written down by the claim that asked.
    call_seconds: float = 10.0


@dataclass(frozen=True)
class Claimed:
    """An event that this worker may deliver until its lease ends. `attempt` is the fence."""

    id: str
    attempt: int
    provider: str
    account_id: str
    mode: str
    event_id: str | None
    event_type: str | None
    tenant_id: str | None
    body: bytes
    body_sha256: str
    body_removed_at: datetime | None
    request_id: str
    received_at: datetime
    retry_count: int


@dataclass(frozen=True)
class Decision:
    """What the subscriptions room made of an event."""

    outcome: Outcome
    reason: str
    tenant_id: str | None


@dataclass(frozen=True)
class SetAside:
    """No repetition helps: a person must look at it."""

    reason: str
    error: str


@dataclass(frozen=True)
class TryAgain:
    """It may work later."""

    error: str
    after: timedelta


def idempotency_key(event: Claimed) -> str:
    """The fact's own key: the same for every attempt, replay and repetition of one delivery."""
    return f"event:{event.provider}:{event.account_id}:{event.mode}:{event.body_sha256}"


def after_failure(error: Exception, *, retry_count: int, patience: Patience) -> SetAside | TryAgain:
    """A poisonous or refused event is set aside at once, any other after its last attempt."""
    described = describe(error)
    if isinstance(error, Poison):
        return SetAside(error.reason, described)
    if isinstance(error, InvalidArgument):
        return SetAside(REFUSED, described)
    failures = retry_count + 1
    if failures >= patience.attempts_max:
        return SetAside(ATTEMPTS_EXHAUSTED, described)
    return TryAgain(described, wait(failures, patience))


def wait(failures: int, patience: Patience) -> timedelta:
    """Tripling, with jitter between half and all of it: a blip is over in seconds, hours of outage are survived."""
    ceiling = min(patience.max_seconds, patience.base_seconds * 3 ** min(failures - 1, 20))
    return timedelta(seconds=ceiling / 2 + random.uniform(0, ceiling / 2))


def describe(error: Exception) -> str:
    """The failure in stable words; messages may quote values, so none is kept."""
    if isinstance(error, Poison):
        return str(error)
    if isinstance(error, BillingError):
        # A code without a reason of its own is its own reason.
        words = error.code if error.code == error.reason else f"{error.code} {error.reason}"
        if isinstance(error, InvalidArgument) and error.violations:
            return f"{words}: {', '.join(sorted({field for field, _ in error.violations})[:10])}"
        return words
    return f"unexpected {type(error).__name__}"
