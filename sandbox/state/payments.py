"""Orders and the payments that settle them."""

from sandbox import entities, ids
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import checks
from sandbox.state.world import Record, World

METHODS = ("card", "upi", "netbanking")


def create_order(world: World, request: Entity) -> Record:
    """An order; with unique_receipt the same receipt gets the same order back."""
    checks.only(
        request,
        "amount currency receipt notes partial_payment payment payment_capture unique_receipt customer_id offer_id",
    )
    checks.required(request, "currency")
    amount, currency, notes = checks.amount(request), checks.currency(request), checks.notes(request)
    receipt = checks.text(request, "receipt", most=40)
    if receipt and checks.truth(request.get("unique_receipt")):
        for existing in world.all("order"):
            if existing.entity["receipt"] == receipt:
                if (existing.entity["amount"], existing.entity["currency"]) != (amount, currency):
                    raise Refusal("Order already exists with this receipt and other details", field="receipt")
                return existing
    entity = entities.order(amount=amount, currency=currency, receipt=receipt, notes=notes, now=world.now())
    return world.add("order", entity, capture=_captures(request))


def _captures(request: Entity) -> bool:
    nested = request.get("payment")
    if isinstance(nested, dict) and nested.get("capture") == "manual":
        return False
    return checks.truth(request.get("payment_capture", True))


def instrument(
    method: str, *, customer_id: str | None = None, international: bool = False, token: bool = False
) -> Entity:
    """What a customer pays with, remembered so that renewals use the same card."""
    if method not in METHODS:
        raise Refusal(f"method must be one of {', '.join(METHODS)}", field="method")
    return {
        "method": method,
        "international": international and method == "card",
        "card_id": ids.new_id("card") if method == "card" else None,
        "customer_id": customer_id,
        "token_id": ids.new_id("token") if token else None,
    }


def pay_order(
    world: World,
    order_id: str,
    *,
    method: str,
    description: str | None = None,
    payment_id: str | None = None,
) -> Record:
    """The customer pays: captured at once unless the order asks for manual capture. A failed payment may come back."""
    order = world.edit("order", order_id)
    if order.entity["status"] == "paid":
        raise Refusal("Your payment has been declined as the order is already paid.")
    if order.inner.get("invoice_id") or order.inner.get("subscription_id"):
        raise Refusal("This order belongs to a subscription; pay the subscription")
    if payment_id:
        payment = world.edit("payment", payment_id)
        if payment.entity["order_id"] != order_id or payment.entity["status"] != "failed":
            raise Refusal("Only a failed payment of this order can come back", field="payment_id")
        _clear_failure(payment)
    else:
        payment = authorize(world, order, instrument(method), description=description)
    world.emit("payment.authorized", ["payment"], payment=payment.entity)
    if order.inner["capture"]:
        take(world, payment, order)
        announce_capture(world, payment, order)
    return payment


def fail_order(world: World, order_id: str, *, method: str) -> Record:
    """The customer's bank says no; the order stays open."""
    order = world.edit("order", order_id)
    if order.entity["status"] == "paid":
        raise Refusal("Your payment has been declined as the order is already paid.")
    payment = authorize(world, order, instrument(method), description=None)
    decline(world, payment)
    return payment


def authorize(
    world: World, order: Record, paid_with: Entity, *, description: str | None, invoice_id: str | None = None
) -> Record:
    """An authorised payment for the whole order."""
    entity = entities.payment(
        order_entity=order.entity,
        invoice_id=invoice_id,
        instrument=paid_with,
        description=description,
        notes=[] if invoice_id else order.entity["notes"],
        now=world.now(),
    )
    order.entity["attempts"] += 1
    order.entity["status"] = "attempted"
    return world.add("payment", entity)


def decline(world: World, payment: Record) -> None:
    """Turns an attempt into a failed payment and tells about it."""
    payment.entity |= {"status": "failed", "captured": False} | entities.failure(payment.entity["method"])
    payment.entity["vpa"] = None
    for absent in ("emi_plan", "reward"):
        payment.entity.pop(absent, None)
    world.emit("payment.failed", ["payment"], payment=payment.entity)


def _clear_failure(payment: Record) -> None:
    payment.entity |= {"status": "authorized"} | dict.fromkeys(entities.failure("card"))
    if payment.entity["method"] == "upi":
        payment.entity["vpa"] = entities.ISSUER["vpa"]
        payment.entity |= {"emi_plan": None, "reward": None}


def take(world: World, payment: Record, order: Record) -> None:
    """Captures the money and settles the order."""
    fee, tax = entities.fee_and_tax(payment.entity["amount"])
    payment.entity.update(status="captured", captured=True, fee=fee, tax=tax)
    order.entity.update(status="paid", amount_paid=payment.entity["amount"], amount_due=0)
    payment.inner["captured_at"] = world.now()


def announce_capture(world: World, payment: Record, order: Record) -> None:
    """Two events with two ids about one payment."""
    world.emit("payment.captured", ["payment"], payment=payment.entity)
    world.emit("order.paid", ["payment", "order"], payment=payment.entity, order=order.entity)


def capture(world: World, payment_id: str, request: Entity) -> Record:
    """Captures an authorised payment once, for exactly its amount."""
    payment = world.edit("payment", payment_id)
    amount = checks.amount(request)
    if request.get("currency", payment.entity["currency"]) != payment.entity["currency"]:
        raise Refusal("Capture currency must be the same as the payment currency", field="currency")
    if payment.entity["captured"] or payment.entity["status"] == "refunded":
        raise Refusal("This payment has already been captured")
    if payment.entity["status"] != "authorized":
        raise Refusal("Only payments which have been authorized and not yet captured can be captured")
    if amount != payment.entity["amount"]:
        raise Refusal("Capture amount must be equal to the amount authorized", field="amount")
    order = world.edit("order", payment.entity["order_id"])
    if order.entity["status"] == "paid":
        raise Refusal("Your payment has been declined as the order is already paid.")
    take(world, payment, order)
    announce_capture(world, payment, order)
    return payment
