"""Razorpay's JSON in our words; types cleaned, nothing decided."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from services.subscriptions.rules.events import (
    ProviderDispute,
    ProviderInvoice,
    ProviderOrder,
    ProviderPayment,
    ProviderRefund,
    ProviderSubscription,
)
from shared import sensitive

Entity = Mapping[str, Any]


def subscription(entity: Entity) -> ProviderSubscription:
    """A subscription."""
    return ProviderSubscription(
        id=_text(entity, "id"),
        provider_plan_id=_text(entity, "plan_id"),
        customer_id=_text(entity, "customer_id"),
        status=_text(entity, "status"),
        current_start=_moment(entity, "current_start"),
        current_end=_moment(entity, "current_end"),
        ended_at=_moment(entity, "ended_at"),
        start_at=_moment(entity, "start_at"),
        charge_at=_moment(entity, "charge_at"),
        paid_count=_count(entity, "paid_count"),
        total_count=_count(entity, "total_count"),
        auth_attempts=_count(entity, "auth_attempts"),
        payment_method=_text(entity, "payment_method"),
        notes=_notes(entity),
    )


def payment(entity: Entity) -> ProviderPayment:
    """A payment; `captured` comes in four types, so the status decides."""
    status = _text(entity, "status")
    return ProviderPayment(
        id=_text(entity, "id"),
        amount_paise=_count(entity, "amount"),
        currency=_text(entity, "currency").upper(),
        status=status,
        captured=status in ("captured", "refunded"),
        amount_refunded_paise=_count(entity, "amount_refunded"),
        order_id=_text(entity, "order_id"),
        invoice_id=_text(entity, "invoice_id"),
        method=_text(entity, "method"),
        error_code=_text(entity, "error_code"),
        error_reason=_text(entity, "error_reason"),
        notes=_notes(entity),
        created_at=_moment(entity, "created_at"),
    )


def order(entity: Entity) -> ProviderOrder:
    """An order."""
    return ProviderOrder(
        id=_text(entity, "id"),
        amount_paise=_count(entity, "amount"),
        currency=_text(entity, "currency").upper(),
        receipt=_text(entity, "receipt"),
        status=_text(entity, "status"),
        notes=_notes(entity),
    )


def invoice(entity: Entity) -> ProviderInvoice:
    """An invoice, which is not a tax invoice."""
    return ProviderInvoice(
        id=_text(entity, "id"),
        subscription_id=_text(entity, "subscription_id"),
        payment_id=_text(entity, "payment_id"),
        status=_text(entity, "status"),
        billing_start=_moment(entity, "billing_start"),
        billing_end=_moment(entity, "billing_end"),
    )


def refund(entity: Entity) -> ProviderRefund:
    """A refund."""
    return ProviderRefund(
        id=_text(entity, "id"),
        payment_id=_text(entity, "payment_id"),
        amount_paise=_count(entity, "amount"),
        currency=_text(entity, "currency").upper(),
        status=_text(entity, "status"),
        notes=_notes(entity),
    )


def dispute(entity: Entity) -> ProviderDispute:
    """A dispute."""
    return ProviderDispute(
        id=_text(entity, "id"),
        payment_id=_text(entity, "payment_id"),
        amount_paise=_count(entity, "amount"),
        amount_deducted_paise=_count(entity, "amount_deducted"),
        currency=_text(entity, "currency").upper(),
        status=_text(entity, "status"),
        phase=_text(entity, "phase"),
    )


def _text(entity: Entity, name: str) -> str:
    value = entity.get(name)
    return _fit_to_keep(value) if isinstance(value, str) else ""


def _count(entity: Entity, name: str) -> int:
    value = entity.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _moment(entity: Entity, name: str) -> datetime | None:
    seconds = _count(entity, name)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _notes(entity: Entity) -> dict[str, str]:
    notes = entity.get("notes")
    if not isinstance(notes, dict):  # an empty list where there are none
        return {}
    return {_fit_to_keep(str(name)): _note(str(name), str(value)) for name, value in notes.items()}


def _note(name: str, value: str) -> str:
    if name == "tenant_id":
        return value  # compared, never kept; many a tenant's is a number
    return sensitive.MASK if sensitive.is_never_kept(name) else _fit_to_keep(value)


def _fit_to_keep(text: str) -> str:
    # The other way in for what people write there: webhooks' bodies were masked by the room that took them in.
    return sensitive.MASK if sensitive.holds_card(text) else text
