"""Entities in Razorpay's exact field order, as the API answers them and as events show them."""

from typing import Any

from sandbox import ids

Entity = dict[str, Any]

ISSUER = {"bank": "ICIC", "vpa": "asha.iyer@okhdfcbank"}
DEFAULT_EMAIL = "asha.iyer@example.com"
DEFAULT_CONTACT = "+919000000001"
# What Razorpay writes when it was told nothing.
NO_EMAIL = "void@razorpay.com"
BARE_CONTACT = "9000000001"


def notes_or_list(notes: Any) -> Any:
    """Empty notes are an empty list: the sandbox keeps PHP's confusion of the two."""
    return dict(notes) if notes else []


def plan(*, period: str, interval: int, item: Entity, notes: Any, now: int) -> Entity:
    """A plan; immutable from here on."""
    return {
        "id": ids.new_id("plan"),
        "entity": "plan",
        "interval": interval,
        "period": period,
        "item": _item(item, kind="plan", now=now),
        "notes": notes_or_list(notes),
        "created_at": now,
    }


def addon(*, item: Entity, quantity: int, now: int) -> Entity:
    """An amount that is billed once."""
    return {
        "id": ids.new_id("ao"),
        "entity": "addon",
        "item": _item(item, kind="addon", now=now),
        "quantity": quantity,
        "created_at": now,
        "subscription_id": None,
        "invoice_id": None,
    }


def _item(item: Entity, *, kind: str, now: int) -> Entity:
    return {
        "id": ids.new_id("item"),
        "active": True,
        "name": item["name"],
        "description": item.get("description"),
        "amount": item["amount"],
        "unit_amount": item["amount"],
        "currency": item.get("currency", "INR"),
        "type": kind,
        "unit": None,
        "tax_inclusive": False,
        "hsn_code": None,
        "sac_code": None,
        "tax_rate": None,
        "tax_id": None,
        "tax_group_id": None,
        "created_at": now,
        "updated_at": now,
    }


def customer(*, name: str | None, email: str | None, contact: str | None, notes: Any, now: int) -> Entity:
    """A customer."""
    return {
        "id": ids.new_id("cust"),
        "entity": "customer",
        "name": name,
        "email": email,
        "contact": contact,
        "gstin": None,
        "notes": notes_or_list(notes),
        "created_at": now,
    }


def subscription(request: Entity, *, now: int) -> Entity:
    """A subscription nobody has authorised yet."""
    start_at = request.get("start_at")
    return {
        "id": ids.new_id("sub"),
        "entity": "subscription",
        "plan_id": request["plan_id"],
        "customer_id": request.get("customer_id"),
        "status": "created",
        "type": 3 if start_at else 2,
        "current_start": None,
        "current_end": None,
        "ended_at": None,
        "quantity": request.get("quantity", 1),
        "notes": notes_or_list(request.get("notes")),
        "charge_at": start_at,
        "start_at": start_at,
        "end_at": None,
        "auth_attempts": 0,
        "total_count": request["total_count"],
        "paid_count": 0,
        "customer_notify": request.get("customer_notify", True) not in (False, 0, "0"),
        "created_at": now,
        "expire_by": request.get("expire_by"),
        "short_url": None,
        "has_scheduled_changes": False,
        "change_scheduled_at": None,
        "source": "api",
        "payment_method": None,
        "offer_id": request.get("offer_id"),
        "remaining_count": request["total_count"],
    }


def order(*, amount: int, currency: str, receipt: str | None, notes: Any, now: int) -> Entity:
    """An order nobody has paid yet."""
    return {
        "id": ids.new_id("order"),
        "entity": "order",
        "amount": amount,
        "amount_paid": 0,
        "amount_due": amount,
        "currency": currency,
        "receipt": receipt,
        "offer_id": None,
        "status": "created",
        "attempts": 0,
        "notes": notes_or_list(notes),
        "created_at": now,
        "description": None,
        "checkout": None,
    }


def card(card_id: str, *, international: bool) -> Entity:
    """The card behind a card payment; only its last four digits exist."""
    return {
        "id": card_id,
        "entity": "card",
        "name": "",
        "last4": "4366",
        "network": "Visa",
        "type": "credit",
        "issuer": None if international else "HDFC",
        "international": international,
        "emi": False,
        "sub_type": "consumer",
        "token_iin": None,
    }


def payment(
    *,
    order_entity: Entity,
    invoice_id: str | None,
    instrument: Entity,
    description: str | None,
    notes: Any,
    now: int,
) -> Entity:
    """An authorised payment; the instrument is what the customer pays with."""
    method = instrument["method"]
    international = bool(instrument.get("international"))
    entity: Entity = {
        "id": ids.new_id("pay"),
        "entity": "payment",
        "amount": order_entity["amount"],
        "currency": order_entity["currency"],
        "base_amount": order_entity["amount"],
        "status": "authorized",
        "order_id": order_entity["id"],
        "invoice_id": invoice_id,
        "international": international,
        "method": method,
        "amount_refunded": 0,
        "amount_transferred": 0,
        "refund_status": None,
        "captured": False,
        "description": description,
        "card_id": instrument["card_id"] if method == "card" else None,
        "bank": ISSUER["bank"] if method == "netbanking" else None,
        "wallet": None,
        "vpa": ISSUER["vpa"] if method == "upi" else None,
        "email": instrument.get("email") or DEFAULT_EMAIL,
        "contact": instrument.get("contact") or DEFAULT_CONTACT,
        "notes": notes_or_list(notes),
        "fee": None,
        "tax": None,
        "error_code": None,
        "error_description": None,
        "error_source": None,
        "error_step": None,
        "error_reason": None,
        "acquirer_data": _acquirer_data(method),
        "created_at": now,
    }
    if method == "card":
        entity["card"] = card(instrument["card_id"], international=international)
    if method == "upi":
        entity["upi"] = {"vpa": ISSUER["vpa"], "payer_account_type": "bank_account", "flow": "intent"}
    if instrument.get("customer_id"):
        entity["customer_id"] = instrument["customer_id"]
        if instrument.get("token_id"):
            entity["token_id"] = instrument["token_id"]
    elif method == "upi":
        entity |= {"emi_plan": None, "reward": None}
    return entity


def _acquirer_data(method: str) -> Entity:
    match method:
        case "card":
            return {"auth_code": ids.digits(6), "rrn": ids.digits(12)}
        case "upi":
            return {"rrn": ids.digits(12), "upi_transaction_id": ids.upi_transaction()}
    return {"bank_transaction_id": ids.digits(10)}


def fee_and_tax(amount: int) -> tuple[int, int]:
    """Razorpay's 2 % and the 18 % GST on it, in paise; the fee includes the tax."""
    return (amount * 236 + 5_000) // 10_000, (amount * 36 + 5_000) // 10_000


def failure(method: str) -> Entity:
    """Why the customer's bank or app said no."""
    if method == "upi":
        description, step, reason = (
            "Payment failed because of incorrect UPI PIN", "payment_authentication", "incorrect_pin",
        )  # fmt: skip
    else:
        description, step, reason = (
            "Your card has insufficient balance. Try another payment method.",
            "payment_debit_request",
            "insufficient_funds",
        )
    return {
        "error_code": "BAD_REQUEST_ERROR",
        "error_description": description,
        "error_source": "customer",
        "error_step": step,
        "error_reason": reason,
    }


def invoice(
    *,
    subscription_entity: Entity,
    lines: list[Entity],
    order_entity: Entity,
    start: int | None,
    end: int | None,
    now: int,
) -> Entity:
    """A subscription's invoice for one cycle: no number, no tax split, as Razorpay makes them."""
    amount = order_entity["amount"]
    customer_id = subscription_entity["customer_id"]
    return {
        "id": ids.new_id("inv"),
        "entity": "invoice",
        "receipt": None,
        "invoice_number": None,
        "customer_id": customer_id,
        "customer_details": {
            "id": customer_id,
            "name": None,
            "email": DEFAULT_EMAIL,
            "contact": DEFAULT_CONTACT,
            "gstin": None,
            "billing_address": None,
            "shipping_address": None,
            "customer_name": None,
            "customer_email": DEFAULT_EMAIL,
            "customer_contact": DEFAULT_CONTACT,
        },
        "order_id": order_entity["id"],
        "subscription_id": subscription_entity["id"],
        "line_items": lines,
        "payment_id": None,
        "status": "issued",
        "expire_by": None,
        "issued_at": now,
        "paid_at": None,
        "cancelled_at": None,
        "expired_at": None,
        "sms_status": None,
        "email_status": None,
        "date": now,
        "terms": None,
        "partial_payment": False,
        "gross_amount": amount,
        "tax_amount": 0,
        "taxable_amount": amount,
        "amount": amount,
        "amount_paid": 0,
        "amount_due": amount,
        "currency": order_entity["currency"],
        "currency_symbol": "₹" if order_entity["currency"] == "INR" else order_entity["currency"],
        "description": None,
        "notes": [],
        "comment": None,
        "short_url": f"https://rzp.io/i/{ids.token(7)}",
        "view_less": True,
        "billing_start": start,
        "billing_end": end,
        "type": "invoice",
        "group_taxes_discounts": False,
        "created_at": now,
        "idempotency_key": None,
    }


def line_item(item: Entity, *, amount: int, quantity: int) -> Entity:
    """What a part of an invoice is for."""
    return {
        "id": ids.new_id("li"),
        "item_id": None,
        "ref_id": None,
        "ref_type": None,
        "name": item["name"],
        "description": None,
        "amount": amount,
        "unit_amount": amount // quantity,
        "gross_amount": amount,
        "tax_amount": 0,
        "taxable_amount": amount,
        "net_amount": amount,
        "currency": item["currency"],
        "type": item["type"],
        "tax_inclusive": False,
        "hsn_code": None,
        "sac_code": None,
        "tax_rate": None,
        "unit": None,
        "quantity": quantity,
        "taxes": [],
    }


def refund(
    *, payment_id: str, amount: int, currency: str, notes: Any, receipt: str | None, now: int
) -> Entity:
    """A refund on its way to the bank."""
    return {
        "id": ids.new_id("rfnd"),
        "entity": "refund",
        "amount": amount,
        "currency": currency,
        "payment_id": payment_id,
        "notes": notes_or_list(notes),
        "receipt": receipt,
        "acquirer_data": {"arn": None},
        "created_at": now,
        "batch_id": None,
        "status": "pending",
        "speed_processed": "normal",
        "speed_requested": "normal",
    }


def dispute(*, payment_id: str, amount: int, currency: str, respond_by: int, now: int) -> Entity:
    """A chargeback that has taken nothing yet."""
    evidence: Entity = dict.fromkeys(
        (
            "amount", "summary", "shipping_proof", "billing_proof", "cancellation_proof", "customer_communication",
            "proof_of_service", "explanation_letter", "refund_confirmation", "access_activity_log",
            "refund_cancellation_policy", "term_and_conditions", "others", "submitted_at",
        )
    )  # fmt: skip
    return {
        "id": ids.new_id("disp"),
        "entity": "dispute",
        "payment_id": payment_id,
        "amount": amount,
        "currency": currency,
        "amount_deducted": 0,
        "gateway_dispute_id": None,
        "reason_code": "goods_or_services_not_received_or_partially_received",
        "respond_by": respond_by,
        "status": "open",
        "phase": "chargeback",
        "created_at": now,
        "evidence": evidence | {"amount": amount},
    }


def collection(items: list[Entity]) -> Entity:
    """A page of a list."""
    return {"entity": "collection", "count": len(items), "items": items}
