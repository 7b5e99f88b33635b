"""Derives where a tenant stands from everything known of its provider subscriptions, and the time.

The newest purchase that is set up is the live one. Once it was paid, no older one ever entitles again: older ones are
cancelled, so that two never charge, and what they paid ahead goes back (`rules/changes.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from services.subscriptions.rules.catalog import FREE, Cycle
from services.subscriptions.rules.fence import FAILING, KnownSubscription

# Statuses in which the plan entitles; in the others the free plan does.
ENTITLING = frozenset({"trialing", "active", "past_due"})
_STATUS = {
    "authenticated": "active",  # its first charge is due: the mandate stands
    "active": "active",
    "pending": "past_due",
    "halted": "past_due",
    "paused": "paused",
}


@dataclass(frozen=True)
class Subscription:
    """Where a tenant stands: its one row."""

    id: str
    tenant_id: str
    plan_id: str = FREE
    billing_cycle: Cycle | None = None
    status: str = "active"
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None
    has_used_trial: bool = False
    trial_end: datetime | None = None
    cancel_at_period_end: bool = False
    razorpay_subscription_id: str | None = None
    razorpay_customer_id: str | None = None
    pending_plan_id: str | None = None
    pending_billing_cycle: Cycle | None = None
    pending_razorpay_subscription_id: str | None = None
    pending_kind: str | None = None
    pending_since: datetime | None = None
    pending_effective_at: datetime | None = None
    past_due_since: datetime | None = None
    entitlements_version: int = 0
    # The catalogue that the entitlements were built from; empty: none yet.
    catalog_version: str = ""

    @property
    def entitling_plan_id(self) -> str:
        """The plan whose limits hold now."""
        return self.plan_id if self.status in ENTITLING else FREE

    @property
    def has_pending_change(self) -> bool:
        """True while a change waits; operators clear only the plan, the cycle and the subscription."""
        return self.pending_plan_id is not None

    @property
    def ends_at(self) -> datetime | None:
        """When what is paid for, or the trial, is over."""
        return self.trial_end if self.status == "trialing" else self.current_period_end

    def as_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Subscription":
        """A row as it was kept with an answer."""
        values = dict(stored)
        for name in cls.__dataclass_fields__:
            if name.endswith(("_at", "_since", "_end", "_start")) and isinstance(values.get(name), str):
                values[name] = datetime.fromisoformat(values[name])
        return cls(**values)

    def without_pending(self) -> "Subscription":
        """The row with no change waiting."""
        return replace(
            self,
            pending_plan_id=None,
            pending_billing_cycle=None,
            pending_razorpay_subscription_id=None,
            pending_kind=None,
            pending_since=None,
            pending_effective_at=None,
        )

    def ending(self, since: datetime) -> "Subscription":
        """The row with its end scheduled: free follows."""
        return replace(
            self.without_pending(),
            cancel_at_period_end=True,
            pending_plan_id=FREE,
            pending_kind="cancellation",
            pending_since=since,
            pending_effective_at=self.ends_at,
        )


@dataclass(frozen=True)
class Standing:
    """The derived row and the provider subscriptions that must not charge any more."""

    row: Subscription
    to_cancel: tuple[KnownSubscription, ...]


def derive(row: Subscription, known: Sequence[KnownSubscription], now: datetime) -> Standing:
    """Where the tenant stands; depends on the set of what is known, not on the order in which we heard of it."""
    live = max((k for k in known if entitles(k, known, now)), key=newest, default=None)
    customers = [k.customer_id for k in sorted(known, key=newest) if k.customer_id]
    row = replace(
        row,
        has_used_trial=row.has_used_trial or any(k.authorised and k.trial_ends_at for k in known),
        razorpay_customer_id=customers[-1] if customers else row.razorpay_customer_id,
    )
    row = _clear_pending(row, known, live, now)
    obsolete = tuple(
        k
        for k in known
        if not k.ended and (taker(k, known) is not None or (live is not None and newest(k) < newest(live)))
    )
    if live is None:
        return Standing(_without_live(row, known), obsolete)
    status = _status(live)
    moved = live.id != row.razorpay_subscription_id
    row = replace(
        row,
        plan_id=live.plan_id,
        billing_cycle=live.billing_cycle,
        status=status,
        current_period_start=live.current_start,
        current_period_end=live.paid_until if live.ended else live.current_end,
        trial_end=live.trial_ends_at,
        cancel_at_period_end=live.ended or (row.cancel_at_period_end and not moved),
        razorpay_subscription_id=live.id,
        past_due_since=live.past_due_since if status == "past_due" else None,
    )
    if row.pending_kind == "cancellation":  # a renewal that slipped in before it has moved the end
        row = replace(row, pending_effective_at=row.ends_at)
    return Standing(row, obsolete)


def entitles(k: KnownSubscription, known: Sequence[KnownSubscription], now: datetime) -> bool:
    """Whether a subscription gives its plan now: set up, paid ahead or in its trial, and not taken over."""
    if k.released or taker(k, known) is not None:
        return False
    if k.ended:  # what is paid, or was promised, is kept to its end
        trial = k.trial_ends_at if k.authorised and k.paid_count == 0 else None
        until = k.paid_until if k.paid_count > 0 else trial
        return until is not None and until > now
    if k.status == "created":
        return False
    if k.status == "authenticated":
        return k.trial_ends_at is not None or (k.starts_at is not None and k.starts_at <= now)
    # A purchase for now that failed before it was ever paid gives nothing, and takes nobody's place.
    at_once = k.trial_ends_at is None and k.starts_at is None
    return not (at_once and k.paid_count == 0 and k.status in FAILING)


def taker(k: KnownSubscription, known: Sequence[KnownSubscription]) -> KnownSubscription | None:
    """The purchase that took a subscription's place first."""
    later = (other for other in known if other.took_over and newest(other) > newest(k))
    return min(later, key=newest, default=None)


def newest(known: KnownSubscription) -> tuple[datetime, str]:
    """Orders purchases by when they were begun."""
    return known.purchased_at, known.intent_id


def _status(live: KnownSubscription) -> str:
    if (
        live.trial_ends_at is not None
        and live.paid_count == 0
        and live.status in ("authenticated", "cancelled")
    ):
        return "trialing"
    return "active" if live.ended else _STATUS[live.status]


def _without_live(row: Subscription, known: Sequence[KnownSubscription]) -> Subscription:
    # A successor whose first charge failed took nothing over, and yet it is what the ladder ended.
    held = (k for k in known if k.took_over or (k.released and k.released_by == "ladder"))
    last = max(held, key=newest, default=None)
    if last is None:
        return row if row.razorpay_subscription_id is None else _on_free(row, "active")
    # Put on free by the ladder a tenant is in good standing there; otherwise what it had has ended.
    return _on_free(row, "active" if last.released and last.released_by == "ladder" else "canceled")


def _clear_pending(
    row: Subscription, known: Sequence[KnownSubscription], live: KnownSubscription | None, now: datetime
) -> Subscription:
    """A pending purchase ends when it becomes the live one, dies, or is overtaken by a newer one that is paid."""
    if row.pending_kind == "cancellation":
        moved = live is None or live.id != row.razorpay_subscription_id
        return row.without_pending() if moved else row
    pending = next((k for k in known if k.id == row.pending_razorpay_subscription_id), None)
    if pending is None:
        return row
    if live is not None and newest(pending) <= newest(live):
        return row.without_pending()
    # Nobody authorised it before its start: it has expired, of which the provider sends no word.
    expired = pending.status == "created" and pending.starts_at is not None and pending.starts_at <= now
    if not pending.ended and not expired:
        return row
    # Without the successor that was to follow, the scheduled end stands alone. An upgrade was to follow nothing.
    if row.cancel_at_period_end and row.pending_effective_at is not None and live is not None:
        return row.ending(row.pending_since or pending.purchased_at)
    return row.without_pending()


def _on_free(row: Subscription, status: str) -> Subscription:
    return replace(
        row,
        plan_id=FREE,
        billing_cycle=None,
        status=status,
        current_period_start=None,
        current_period_end=None,
        trial_end=None,
        cancel_at_period_end=False,
        razorpay_subscription_id=None,
        past_due_since=None,
    )
