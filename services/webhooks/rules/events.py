"""What a provider's event says, in our words and with clean types; nothing is decided here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Subscription:
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
    has_scheduled_changes: bool = False
    payment_method: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True)
class Payment:
    id: str
    amount: int
    currency: str = ""
    status: str = ""
    captured: bool = False
    amount_refunded: int = 0
    order_id: str = ""
    invoice_id: str = ""
    method: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    error_code: str = ""
    error_reason: str = ""
    created_at: datetime | None = None


@dataclass(frozen=True)
class Order:
    id: str
    amount: int
    amount_paid: int = 0
    currency: str = ""
    receipt: str = ""
    status: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Invoice:
    id: str
    amount: int
    subscription_id: str = ""
    payment_id: str = ""
    order_id: str = ""
    currency: str = ""
    status: str = ""
    billing_start: datetime | None = None
    billing_end: datetime | None = None


@dataclass(frozen=True)
class Refund:
    id: str
    amount: int
    payment_id: str = ""
    currency: str = ""
    status: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dispute:
    id: str
    amount: int
    payment_id: str = ""
    amount_deducted: int = 0
    currency: str = ""
    status: str = ""
    phase: str = ""


@dataclass(frozen=True)
class Facts:
    """One body, understood. Entities are snapshots of the moment of the event; None: the body has none."""

    event_type: str
    account_id: str = ""
    occurred_at: datetime | None = None
    subscription: Subscription | None = None
    payment: Payment | None = None
    order: Order | None = None
    invoice: Invoice | None = None
    refund: Refund | None = None
    dispute: Dispute | None = None

    @property
    def order_id(self) -> str:
        """The order behind the money: what the many events of one payment have in common."""
        if self.payment is not None and self.payment.order_id:
            return self.payment.order_id
        return self.order.id if self.order is not None else ""


@dataclass(frozen=True)
class Glance:
    """What the inbox wants to know of a body at once; None where it does not say so plainly."""

    event_type: str | None = None
    aggregate_id: str | None = None
    tenant_id: str | None = None
    # Of a provider that signs it; shown before what a header claims, decides nothing.
    event_id: str | None = None
