"""Intentions to buy, committed before the provider is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from services.subscriptions.rules.catalog import Cycle
from services.subscriptions.rules.events import ProviderSubscription
from services.subscriptions.rules.fence import KnownSubscription

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
        trial_ends_at=intent.first_charge_at if intent.with_trial else None,
    )


def _says(notes: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    return all(notes.get(name) == value for name, value in ours.items())
