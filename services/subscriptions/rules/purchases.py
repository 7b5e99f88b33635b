"""Intentions to buy, committed before the provider is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from services.subscriptions.rules.catalog import Cycle
from services.subscriptions.rules.events import ProviderSubscription
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.lifecycle import Subscription
from shared import sensitive

CURRENCY = "INR"
# The provider knows no "until cancelled": ten years of either cycle.
TOTAL_COUNT = {"monthly": 120, "yearly": 10}


@dataclass(frozen=True)
class Intent:
    """One purchase of a plan."""

    id: str
    tenant_id: str
    idempotency_key: str
    kind: str
    plan_id: str
    billing_cycle: Cycle
    with_trial: bool
    amount_paise: int
    tax_paise: int
    currency: str
    first_charge_at: datetime | None
    provider: str
    provider_plan_id: str | None
    provider_subscription_id: str | None
    attempted_at: datetime | None
    created_at: datetime
    # Of a change: what it takes the place of, and what its quote was computed from.
    replaces_subscription_id: str | None = None
    quoted_at: datetime | None = None
    quoted_payment_id: str | None = None

    @property
    def trial_ends_at(self) -> datetime | None:
        """End of the free days; None: none were granted."""
        return self.first_charge_at if self.with_trial and self.replaces_subscription_id is None else None

    @property
    def starts_at(self) -> datetime | None:
        """When it takes over from what it follows; None: at once."""
        return self.first_charge_at if self.replaces_subscription_id is not None else None

    @property
    def total_paise(self) -> int:
        """What one cycle costs the customer."""
        return self.amount_paise + self.tax_paise

    @property
    def notes(self) -> dict[str, str]:
        """What we attach to the provider's subscription: how a lost answer is found again."""
        return {
            "tenant_id": self.tenant_id,
            "plan_code": self.plan_id,
            "cycle": self.billing_cycle,
            "intent_id": self.id,
        }


@dataclass(frozen=True)
class PackPurchase:
    """One purchase of credits; its id is the receipt of the provider's order."""

    id: str
    tenant_id: str
    idempotency_key: str
    pack_id: str
    credits: int
    amount_paise: int
    tax_paise: int
    currency: str
    provider: str
    provider_order_id: str | None
    payment_id: str | None


def was_begun_by(intent: Intent, subscription: ProviderSubscription) -> bool:
    """Whether a subscription that we do not know yet is this purchase, whose answer was lost on the way."""
    return (
        intent.provider_subscription_id in (None, subscription.id)
        and intent.attempted_at is not None
        and intent.provider_plan_id == subscription.provider_plan_id
        and _says(subscription.notes, intent.notes)
    )


def first_knowledge(intent: Intent, subscription_id: str) -> KnownSubscription:
    """What we know of a provider subscription before its first snapshot."""
    return KnownSubscription(
        id=subscription_id,
        tenant_id=intent.tenant_id,
        intent_id=intent.id,
        plan_id=intent.plan_id,
        billing_cycle=intent.billing_cycle,
        provider_plan_id=intent.provider_plan_id or "",
        purchased_at=intent.created_at,
        trial_ends_at=intent.trial_ends_at,
        starts_at=intent.starts_at,
    )


def begun(row: Subscription, intent: Intent, subscription_id: str) -> Subscription:
    """The row once a purchase stands at the provider: what it changes is pending."""
    scheduled = ("downgrade", "cycle_switch")
    # An upgrade asked for at the same moment takes the place of a scheduled change, and of its end.
    ends = row.cancel_at_period_end and not (intent.kind == "upgrade" and row.pending_kind in scheduled)
    return replace(
        row,
        cancel_at_period_end=ends or intent.kind in scheduled,
        pending_plan_id=intent.plan_id,
        pending_billing_cycle=intent.billing_cycle,
        pending_razorpay_subscription_id=subscription_id,
        pending_kind="upgrade" if intent.kind == "checkout" else intent.kind,
        pending_since=intent.created_at,
        pending_effective_at=intent.starts_at,
    )


def _says(notes: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    # A tenant's id may look like a card number, which whoever takes deliveries in has masked.
    return all(
        notes.get(name) in (value, sensitive.MASK if sensitive.holds_card(value) else value)
        for name, value in ours.items()
    )
