"""What a provider reported, in our words: snapshots of its objects at the moment of an event."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

# Statuses that a provider's subscription never leaves.
TERMINAL = frozenset({"cancelled", "completed", "expired"})


@dataclass(frozen=True)
class ProviderSubscription:
    """A subscription as the provider sees it."""

    id: str
    provider_plan_id: str = ""
    customer_id: str = ""
    status: str = ""
    current_start: datetime | None = None
    current_end: datetime | None = None
    ended_at: datetime | None = None
    start_at: datetime | None = None
    charge_at: datetime | None = None
    paid_count: int = 0
    total_count: int = 0
    auth_attempts: int = 0
    payment_method: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProviderPayment:
    """A payment as the provider sees it."""

    id: str
    amount_paise: int
    currency: str
    status: str
    captured: bool
    amount_refunded_paise: int = 0
    order_id: str = ""
    invoice_id: str = ""
    method: str = ""
    error_code: str = ""
    error_reason: str = ""
    # Only of what we ask for ourselves; what a customer's page handed over, too.
    notes: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True)
class ProviderOrder:
    """A one-time order as the provider sees it."""

    id: str
    amount_paise: int = 0
    currency: str = ""
    receipt: str = ""
    status: str = ""
    # Only of what we ask for ourselves.
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProviderInvoice:
    """An invoice as the provider sees it."""

    id: str
    subscription_id: str = ""
    payment_id: str = ""
    status: str = ""
    billing_start: datetime | None = None
    billing_end: datetime | None = None


@dataclass(frozen=True)
class ProviderRefund:
    """A refund as the provider sees it."""

    id: str
    payment_id: str
    amount_paise: int
    currency: str
    status: str
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProviderDispute:
    """A dispute as the provider sees it."""

    id: str
    payment_id: str
    amount_paise: int
    amount_deducted_paise: int
    currency: str
    status: str
    phase: str = ""


@dataclass(frozen=True)
class PaymentEvent:
    """One delivery, normalised; `body_sha256` is its identity within provider, account and mode."""

    provider: str
    account_id: str
    mode: str
    body_sha256: str
    event_id: str
    event_type: str
    occurred_at: datetime | None
    received_at: datetime
    subscription: ProviderSubscription | None = None
    payment: ProviderPayment | None = None
    order: ProviderOrder | None = None
    invoice: ProviderInvoice | None = None
    refund: ProviderRefund | None = None
    dispute: ProviderDispute | None = None
    # Not delivered: we asked, and this is the provider's own word of now.
    looked_up: bool = False
    # When it is decided: long after it was received, when it was set aside or is replayed.
    decided_at: datetime | None = None

    @property
    def observed_at(self) -> datetime:
        """The best guess at when the snapshots were taken; never the only ordering key."""
        return self.occurred_at or self.received_at

    @property
    def heard_at(self) -> datetime:
        """When we hear of it: what it brings lives from then on."""
        return self.received_at if self.decided_at is None else max(self.received_at, self.decided_at)


def look(event_type: str, mode: str, now: datetime, **entities: Any) -> PaymentEvent:
    """What the provider answered when asked, in the shape of an event, so that it takes the same way."""
    return PaymentEvent(
        provider="razorpay",
        account_id="",
        mode=mode,
        body_sha256="",
        event_id="",
        event_type=event_type,
        occurred_at=now,
        received_at=now,
        looked_up=True,
        **entities,
    )
