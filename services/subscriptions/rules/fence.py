"""Merges what is known of a provider's subscription with one more snapshot of it.

Every part of the knowledge is a maximum under an order that does not depend on arrival, so the result of a history
is the same in any order, with any duplicates and delays:

    status     terminal beats living, then cycles paid, then how far set up, then the moment of the event
    period     the newest cycle
    paid       the most cycles paid, the first start, the latest end of a paid cycle
    failing    the first failure of the newest cycle that failed
    set up     once authorised, always authorised
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Literal

from services.subscriptions.rules.catalog import Cycle
from services.subscriptions.rules.events import TERMINAL, ProviderSubscription

Released = Literal["cancellation", "ladder"]
FAILING = frozenset({"pending", "halted"})
_STAGE = {"created": 0, "authenticated": 1}
# Decides only between two statuses of the same moment, the worse news last.
_RANK = (
    "created",
    "authenticated",
    "paused",
    "active",
    "pending",
    "halted",
    "expired",
    "completed",
    "cancelled",
)
NEVER = datetime(1970, 1, 1, tzinfo=UTC)
# Events are stamped by the provider, in whole seconds; what we looked up by our own clock, which may be ahead of it.
SKEW = timedelta(minutes=1)
# Where the moment stands in the order of statuses.
_MOMENT = 3


class Verdict(Enum):
    """What a snapshot told us."""

    NEWS = "news"
    NOTHING_NEW = "nothing_new"
    OLDER = "older"


@dataclass(frozen=True)
class KnownSubscription:
    """All we know of one provider subscription that we began."""

    id: str
    tenant_id: str
    intent_id: str
    plan_id: str
    billing_cycle: Cycle
    provider_plan_id: str
    purchased_at: datetime
    trial_ends_at: datetime | None = None
    status: str = "created"
    status_paid_count: int = 0
    observed_at: datetime = NEVER
    paid_count: int = 0
    current_start: datetime | None = None
    current_end: datetime | None = None
    charge_at: datetime | None = None
    ended_at: datetime | None = None
    auth_attempts: int = 0
    failing_paid_count: int = -1
    failing_since: datetime | None = None
    customer_id: str = ""
    payment_method: str = ""
    # Since when we no longer rely on it although it may live; what was paid afterwards revives it.
    released_at: datetime | None = None
    released_paid_count: int = 0
    released_by: Released | None = None
    # When it takes over from another one; None: at once.
    starts_at: datetime | None = None
    # First moment of its first paid cycle, and the end of the newest paid one.
    started_at: datetime | None = None
    paid_until: datetime | None = None
    # The customer has set it up, whatever came later.
    authorised: bool = False
    # When the provider was told to end it with its cycle: there is no undoing that, and no trace of it there.
    end_requested_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """True once it can never charge again."""
        return self.status in TERMINAL

    @property
    def released(self) -> bool:
        """True while we do not rely on it: we ended it, and nothing was paid since."""
        return self.released_at is not None and self.paid_count <= self.released_paid_count

    @property
    def took_over(self) -> bool:
        """True once it was paid, or a trial was begun with it: from then on no older one entitles."""
        return self.paid_count > 0 or (self.authorised and self.trial_ends_at is not None)

    @property
    def past_due_since(self) -> datetime | None:
        """When the first charge of the current cycle failed, while that is still so."""
        failing = self.status in FAILING and self.failing_paid_count == self.status_paid_count
        return self.failing_since if failing else None


def merge(
    known: KnownSubscription, snapshot: ProviderSubscription, observed_at: datetime
) -> tuple[KnownSubscription, Verdict]:
    """The knowledge with the snapshot added, and whether that changed anything."""
    merged = _merge_status(known, snapshot, observed_at)
    merged = _merge_period(merged, snapshot)
    merged = _merge_failure(merged, snapshot, observed_at)
    merged = replace(
        merged,
        paid_count=max(known.paid_count, snapshot.paid_count),
        customer_id=max(known.customer_id, snapshot.customer_id),
        authorised=known.authorised or _was_set_up(snapshot),
        started_at=_earlier(known.started_at, snapshot.start_at if snapshot.paid_count else None),
        paid_until=_later(known.paid_until, _paid_until(snapshot)),
    )
    if merged != known:
        return merged, Verdict.NEWS
    same = _status_key(snapshot.status, snapshot.paid_count, observed_at) == _known_key(known)
    return known, Verdict.NOTHING_NEW if same else Verdict.OLDER


def paid_for(known: KnownSubscription, until: datetime | None) -> KnownSubscription:
    """The knowledge that a cycle is paid until then, whatever has become of the subscription since."""
    return replace(known, paid_until=_later(known.paid_until, until))


def ambiguous(known: KnownSubscription, snapshot: ProviderSubscription, observed_at: datetime) -> bool:
    """Two different statuses of nearly one moment: only the provider can say which is right."""
    theirs = _status_key(snapshot.status, snapshot.paid_count, observed_at)
    return (
        known.status != snapshot.status
        and theirs[:_MOMENT] == _known_key(known)[:_MOMENT]
        and abs(observed_at - known.observed_at) <= SKEW
    )


def _status_key(status: str, paid_count: int, observed_at: datetime) -> tuple[bool, int, int, datetime, int]:
    rank = _RANK.index(status) if status in _RANK else -1
    return status in TERMINAL, paid_count, _STAGE.get(status, 2), observed_at, rank


def _known_key(known: KnownSubscription) -> tuple[bool, int, int, datetime, int]:
    return _status_key(known.status, known.status_paid_count, known.observed_at)


def _merge_status(
    known: KnownSubscription, snapshot: ProviderSubscription, observed_at: datetime
) -> KnownSubscription:
    if snapshot.status not in _RANK:  # a word that the provider has not used so far: keep what we know
        return known
    theirs, ours = _status_key(snapshot.status, snapshot.paid_count, observed_at), _known_key(known)
    if theirs < ours:
        return known
    if theirs == ours:
        return replace(
            known,
            charge_at=_later(known.charge_at, snapshot.charge_at),
            ended_at=_later(known.ended_at, snapshot.ended_at),
            auth_attempts=max(known.auth_attempts, snapshot.auth_attempts),
            payment_method=max(known.payment_method, snapshot.payment_method),
        )
    return replace(
        known,
        status=snapshot.status,
        status_paid_count=snapshot.paid_count,
        observed_at=observed_at,
        charge_at=snapshot.charge_at,
        ended_at=snapshot.ended_at,
        auth_attempts=snapshot.auth_attempts,
        payment_method=snapshot.payment_method,
    )


def _merge_period(known: KnownSubscription, snapshot: ProviderSubscription) -> KnownSubscription:
    theirs = (snapshot.current_start or NEVER, snapshot.current_end or NEVER)
    if theirs <= (known.current_start or NEVER, known.current_end or NEVER):
        return known
    return replace(known, current_start=snapshot.current_start, current_end=snapshot.current_end)


def _merge_failure(
    known: KnownSubscription, snapshot: ProviderSubscription, observed_at: datetime
) -> KnownSubscription:
    if snapshot.status not in FAILING or snapshot.paid_count < known.failing_paid_count:
        return known
    first = observed_at
    if snapshot.paid_count == known.failing_paid_count and known.failing_since is not None:
        first = min(observed_at, known.failing_since)
    return replace(known, failing_paid_count=snapshot.paid_count, failing_since=first)


def _was_set_up(snapshot: ProviderSubscription) -> bool:
    # An ended one was set up if it names a customer; UPI mandates may name none but say how they pay.
    return (
        snapshot.status in _RANK[1:6]
        or snapshot.status == "completed"
        or snapshot.paid_count > 0
        or (snapshot.status == "cancelled" and bool(snapshot.customer_id or snapshot.payment_method))
    )


def _paid_until(snapshot: ProviderSubscription) -> datetime | None:
    # While a charge fails, the current cycle is not paid yet.
    paid = snapshot.paid_count > 0 and snapshot.status in ("active", "completed")
    return snapshot.current_end if paid else None


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(one, other) if one and other else one or other


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(one, other) if one and other else one or other
