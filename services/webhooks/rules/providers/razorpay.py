"""Everything that is Razorpay's: its signature, its headers, its words."""

import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from services.webhooks.errors import Poison
from services.webhooks.rules import bodies, values
from services.webhooks.rules.events import (
    Dispute,
    Facts,
    Glance,
    Invoice,
    Order,
    Payment,
    Refund,
    Subscription,
)
from services.webhooks.rules.providers.seam import Headers
from shared import sensitive

NAME = "razorpay"
_SIGNATURE = b"x-razorpay-signature"
_EVENT_ID = b"x-razorpay-event-id"
_HEX_DIGEST = re.compile(rb"[0-9a-f]{64}")
_HEADER_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")

_SUBSCRIPTION_EVENTS = frozenset({
    "authenticated", "activated", "charged", "completed", "updated", "pending", "halted", "cancelled",
    "paused", "resumed",
})  # fmt: skip
_DISPUTE_EVENTS = frozenset({
    "created", "under_review", "action_required", "won", "lost", "closed",
})  # fmt: skip

Entity = TypeVar("Entity")


def verify(headers: Headers, body: bytes, secrets: Sequence[bytes], now: datetime) -> int | None:
    """Which of the secrets signed the body, by position. Everything odd is a no, never an exception.

    Razorpay signs no time (its webhook documentation, "Validate"), so a body stays good for ever: that it is one of
    those taken in before is what protects from replays. It writes its digests in lower case, so nothing else is read.
    """
    given = [value for name, value in headers if name == _SIGNATURE]
    if len(given) != 1 or not _HEX_DIGEST.fullmatch(given[0]):
        return None
    matches = [
        hmac.compare_digest(hmac.digest(secret, body, "sha256").hex().encode(), given[0])
        for secret in secrets
    ]  # all of them are computed, so that the time does not tell which one matched
    return matches.index(True) if any(matches) else None


def event_id(headers: Headers) -> str | None:
    """The event id that an unsigned header claims; for people only."""
    claimed = [value for name, value in headers if name == _EVENT_ID]
    if not claimed or not _HEADER_ID.fullmatch(claimed[0]):
        return None
    text = claimed[0].decode()
    return None if sensitive.looks_like_card(text) else text


def glance(document: Mapping[str, Any]) -> Glance:
    """What the inbox can tell at once; whatever looks odd is left out."""
    entities = _entities(document)

    def text(value: object) -> str | None:
        return values.clean(value, 128) or None if isinstance(value, str) else None

    def of(name: str, attribute: str) -> str | None:
        return text(entities.get(name, {}).get(attribute))

    aggregate = of("subscription", "id") or of("invoice", "subscription_id")
    aggregate = aggregate or of("order", "id") or of("payment", "order_id") or of("payment", "id")
    # Notes of subscriptions and orders are ours; a payment's may be the customer's browser's.
    noted = (values.notes(entities.get(name, {}).get("notes")) for name in ("subscription", "order"))
    tenant = next((found["tenant_id"] for found in noted if found.get("tenant_id")), None)
    return Glance(
        event_type=text(document.get("event")),
        aggregate_id=aggregate,
        tenant_id=tenant if tenant and re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", tenant) else None,
    )


def normalise(body: bytes) -> Facts:
    """The body in our words, or Poison. Unknown events pass with whatever entities can be read."""
    document = bodies.parse(body)
    event_type = values.word(document.get("event"))
    if not event_type:
        raise Poison("event_type_missing", "event")
    found = _entities(document)
    match event_type.split("."):
        case ["subscription", known] if known in _SUBSCRIPTION_EVENTS:
            facts = _facts(event_type, document, found, needs="subscription")
        case ["payment", "dispute", known] if known in _DISPUTE_EVENTS:
            facts = _facts(event_type, document, found, needs="dispute")
        case ["payment", "authorized" | "captured" | "failed" | "pending"]:
            facts = _facts(event_type, document, found, needs="payment")
        case ["order", "paid"]:
            facts = _facts(event_type, document, found, needs="order")
        case ["invoice", "paid" | "partially_paid" | "expired"]:
            facts = _facts(event_type, document, found, needs="invoice")
        case ["refund", "created" | "processed" | "failed" | "speed_changed"]:
            facts = _facts(event_type, document, found, needs="refund")
        case _:
            facts = _facts(event_type, document, found, needs=None)
    return facts


def _facts(
    event_type: str, document: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], *, needs: str | None
) -> Facts:
    if needs is not None and needs not in found:
        raise Poison("entity_missing", f"payload.{needs}.entity")
    # An event that we do not know must not be set aside for an entity that we do not know either.
    lenient = needs is None
    return Facts(
        event_type=event_type,
        account_id=_or_none(values.identifier, document.get("account_id"), "account_id", lenient) or "",
        occurred_at=_or_none(values.moment, document.get("created_at"), "created_at", lenient),
        subscription=_entity(found, "subscription", _subscription, lenient),
        payment=_entity(found, "payment", _payment, lenient),
        order=_entity(found, "order", _order, lenient),
        invoice=_entity(found, "invoice", _invoice, lenient),
        refund=_entity(found, "refund", _refund, lenient),
        dispute=_entity(found, "dispute", _dispute, lenient),
    )


def _entities(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    # `contains` omits entities that are there and names some that are not: only the payload counts.
    payload = document.get("payload")
    if not isinstance(payload, dict):
        return {}
    return {
        name: content["entity"]
        for name, content in payload.items()
        if isinstance(content, dict) and isinstance(content.get("entity"), dict)
    }


def _entity(
    found: Mapping[str, Mapping[str, Any]],
    name: str,
    read: Callable[[Mapping[str, Any], str], Entity],
    lenient: bool,
) -> Entity | None:
    if name not in found:
        return None
    return _or_none(read, found[name], f"payload.{name}.entity", lenient)


def _or_none(read: Callable[[Any, str], Entity], value: object, place: str, lenient: bool) -> Entity | None:
    try:
        return read(value, place)
    except Poison:
        if lenient:
            return None
        raise


def _subscription(entity: Mapping[str, Any], place: str) -> Subscription:
    return Subscription(
        id=values.required_identifier(entity.get("id"), f"{place}.id"),
        provider_plan_id=values.identifier(entity.get("plan_id"), f"{place}.plan_id"),
        customer_id=values.identifier(entity.get("customer_id"), f"{place}.customer_id"),
        status=values.word(entity.get("status")),
        current_start=values.moment(entity.get("current_start"), f"{place}.current_start"),
        current_end=values.moment(entity.get("current_end"), f"{place}.current_end"),
        ended_at=values.moment(entity.get("ended_at"), f"{place}.ended_at"),
        start_at=values.moment(entity.get("start_at"), f"{place}.start_at"),
        charge_at=values.moment(entity.get("charge_at"), f"{place}.charge_at"),
        paid_count=values.count(entity.get("paid_count"), f"{place}.paid_count"),
        total_count=values.count(entity.get("total_count"), f"{place}.total_count"),
        auth_attempts=values.count(entity.get("auth_attempts"), f"{place}.auth_attempts"),
        has_scheduled_changes=values.flag(entity.get("has_scheduled_changes")),
        payment_method=values.word(entity.get("payment_method")),
        notes=values.notes(entity.get("notes")),
        created_at=values.moment(entity.get("created_at"), f"{place}.created_at"),
    )


def _payment(entity: Mapping[str, Any], place: str) -> Payment:
    status = values.word(entity.get("status"))
    return Payment(
        id=values.required_identifier(entity.get("id"), f"{place}.id"),
        amount=values.money(entity.get("amount"), f"{place}.amount"),
        currency=values.word(entity.get("currency")).upper(),
        status=status,
        # The flag `captured` comes as true, "1", 1 and false; a refunded payment was captured before.
        captured=status in ("captured", "refunded"),
        amount_refunded=values.money_or_zero(entity.get("amount_refunded"), f"{place}.amount_refunded"),
        order_id=values.identifier(entity.get("order_id"), f"{place}.order_id"),
        invoice_id=values.identifier(entity.get("invoice_id"), f"{place}.invoice_id"),
        method=values.word(entity.get("method")),
        notes=values.notes(entity.get("notes")),
        error_code=values.word(entity.get("error_code")),
        error_reason=values.word(entity.get("error_reason")),
        created_at=values.moment(entity.get("created_at"), f"{place}.created_at"),
    )


def _order(entity: Mapping[str, Any], place: str) -> Order:
    return Order(
        id=values.required_identifier(entity.get("id"), f"{place}.id"),
        amount=values.money(entity.get("amount"), f"{place}.amount"),
        amount_paid=values.money_or_zero(entity.get("amount_paid"), f"{place}.amount_paid"),
        currency=values.word(entity.get("currency")).upper(),
        receipt=values.word(entity.get("receipt")),
        status=values.word(entity.get("status")),
        notes=values.notes(entity.get("notes")),
    )


def _invoice(entity: Mapping[str, Any], place: str) -> Invoice:
    return Invoice(
        id=values.required_identifier(entity.get("id"), f"{place}.id"),
        amount=values.money(entity.get("amount"), f"{place}.amount"),
        subscription_id=values.identifier(entity.get("subscription_id"), f"{place}.subscription_id"),
        payment_id=values.identifier(entity.get("payment_id"), f"{place}.payment_id"),
        order_id=values.identifier(entity.get("order_id"), f"{place}.order_id"),
        currency=values.word(entity.get("currency")).upper(),
        status=values.word(entity.get("status")),
        billing_start=values.moment(entity.get("billing_start"), f"{place}.billing_start"),
        billing_end=values.moment(entity.get("billing_end"), f"{place}.billing_end"),
    )


def _refund(entity: Mapping[str, Any], place: str) -> Refund:
    return Refund(
        id=values.required_identifier(entity.get("id"), f"{place}.id"),
        amount=values.money(entity.get("amount"), f"{place}.amount"),
        payment_id=values.identifier(entity.get("payment_id"), f"{place}.payment_id"),
        currency=values.word(entity.get("currency")).upper(),
        status=values.word(entity.get("status")),
        notes=values.notes(entity.get("notes")),
    )


def _dispute(entity: Mapping[str, Any], place: str) -> Dispute:
    return Dispute(
        id=values.required_identifier(entity.get("id"), f"{place}.id"),
        amount=values.money(entity.get("amount"), f"{place}.amount"),
        payment_id=values.identifier(entity.get("payment_id"), f"{place}.payment_id"),
        amount_deducted=values.money_or_zero(entity.get("amount_deducted"), f"{place}.amount_deducted"),
        currency=values.word(entity.get("currency")).upper(),
        status=values.word(entity.get("status")),
        phase=values.word(entity.get("phase")),
    )
