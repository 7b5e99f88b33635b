"""Derives where a tenant stands from everything known of its provider subscriptions.

The newest purchase that is set up or paid is the live one; older ones are cancelled, so that two never charge.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from services.subscriptions.rules.catalog import FREE, Cycle
from services.subscriptions.rules.fence import KnownSubscription

# Statuses in which the plan entitles; in the others the free plan does.
ENTITLING = frozenset({"trialing", "active", "past_due"})
_STATUS = {
    "authenticated": "trialing",
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
    past_due_since: datetime | None = None
    entitlements_version: int = 0

    @property
    def entitling_plan_id(self) -> str:
        """The plan whose limits hold now."""
        return self.plan_id if self.status in ENTITLING else FREE

    @property
    def has_pending_change(self) -> bool:
        """True while a change waits; operators clear only the plan, the cycle and the subscription."""
        return self.pending_plan_id is not None


@dataclass(frozen=True)
class Standing:
    """The derived row and the provider subscriptions that must not charge any more."""

    row: Subscription
    to_cancel: tuple[KnownSubscription, ...]


def derive(row: Subscription, known: Sequence[KnownSubscription]) -> Standing:
    """Where the tenant stands; depends on the set of what is known, not on the order in which we heard of it."""
    live = max((k for k in known if _is_set_up(k)), key=_newest, default=None)
    began_trial = any(k.trial_ends_at and k.status not in ("created", "expired") for k in known)
    customers = [k.customer_id for k in sorted(known, key=_newest) if k.customer_id]
    row = replace(
        row,
        has_used_trial=row.has_used_trial or began_trial,
        razorpay_customer_id=customers[-1] if customers else row.razorpay_customer_id,
    )
    row = _clear_pending(row, known, live)
    if live is None:
        ended = [k for k in known if k.ended and k.released_at is None]
        was_paid = any(k.paid_count > 0 or (k.trial_ends_at and k.status != "expired") for k in ended)
        if row.razorpay_subscription_id is not None or was_paid:
            row = _on_free(row, status="canceled" if was_paid else "active")
        return Standing(row, ())
    status = _STATUS[live.status]
    moved = live.id != row.razorpay_subscription_id
    row = replace(
        row,
        plan_id=live.plan_id,
        billing_cycle=live.billing_cycle,
        status=status,
        current_period_start=live.current_start,
        current_period_end=live.current_end,
        trial_end=live.trial_ends_at,
        cancel_at_period_end=False if moved else row.cancel_at_period_end,
        razorpay_subscription_id=live.id,
        past_due_since=live.past_due_since if status == "past_due" else None,
    )
    obsolete = tuple(k for k in known if not k.ended and _newest(k) < _newest(live))
    return Standing(row, obsolete)


def _is_set_up(known: KnownSubscription) -> bool:
    """Paid for, or authorised with a trial, and still alive at the provider and with us."""
    if known.ended or (known.released_at is not None and known.paid_count <= known.released_paid_count):
        return False
    if known.status == "created":
        return False
    return known.status != "authenticated" or known.trial_ends_at is not None


def _newest(known: KnownSubscription) -> tuple[datetime, str]:
    return known.purchased_at, known.intent_id


def _clear_pending(
    row: Subscription, known: Sequence[KnownSubscription], live: KnownSubscription | None
) -> Subscription:
    """A pending purchase ends when it becomes the live one, dies, or is overtaken by a newer one that is paid."""
    pending = next((k for k in known if k.id == row.pending_razorpay_subscription_id), None)
    if pending is None:
        return row
    overtaken = live is not None and _newest(pending) <= _newest(live)
    if not (pending.ended or overtaken):
        return row
    return replace(
        row,
        pending_plan_id=None,
        pending_billing_cycle=None,
        pending_razorpay_subscription_id=None,
        pending_kind=None,
        pending_since=None,
    )


def _on_free(row: Subscription, *, status: str) -> Subscription:
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
