"""Orders, payments and invoices."""

from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.rest.call import Call, collection
from sandbox.state import checks, payments


def create_order(call: Call) -> Entity:
    return call.change(lambda world: payments.create_order(world, call.body))


def fetch_order(call: Call) -> Entity:
    return call.till.world.get("order", call.entity_id("order")).entity


def edit_order(call: Call) -> Entity:
    order_id = call.entity_id("order")
    return call.change(lambda world: checks.edit_notes(world, "order", order_id, call.body))


def list_orders(call: Call) -> Entity:
    receipt = call.query.get("receipt")
    return collection(
        call.page(
            "order", also="receipt authorized", keep=lambda entity: receipt in (None, entity["receipt"])
        )
    )


def list_order_payments(call: Call) -> Entity:
    order = call.till.world.get("order", call.entity_id("order"))
    every = reversed(call.till.world.all("payment"))
    return collection([payment for payment in every if payment.entity["order_id"] == order.entity["id"]])


def fetch_payment(call: Call) -> Entity:
    return call.till.world.get("payment", call.entity_id("pay")).entity


def edit_payment(call: Call) -> Entity:
    payment_id = call.entity_id("pay")
    return call.change(lambda world: checks.edit_notes(world, "payment", payment_id, call.body))


def fetch_card(call: Call) -> Entity:
    payment = fetch_payment(call)
    if "card" not in payment:
        raise Refusal("Payment was not done using card")
    card: Entity = payment["card"]
    return card


def list_payments(call: Call) -> Entity:
    return collection(call.page("payment"))


def capture_payment(call: Call) -> Entity:
    payment_id = call.entity_id("pay")
    checks.only(call.body, "amount currency")
    return call.change(lambda world: payments.capture(world, payment_id, call.body))


def fetch_invoice(call: Call) -> Entity:
    return call.till.world.get("invoice", call.entity_id("inv")).entity


def list_invoices(call: Call) -> Entity:
    wanted = {name: call.query[name] for name in ("subscription_id", "payment_id") if name in call.query}
    return collection(
        call.page(
            "invoice",
            also="subscription_id payment_id type",
            keep=lambda entity: all(entity[name] == value for name, value in wanted.items()),
        )
    )
