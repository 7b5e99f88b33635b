"""Refunds."""

from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.rest.call import Call, collection
from sandbox.state import checks, refunds
from sandbox.state.world import World


def refund_payment(call: Call) -> Entity:
    return _refund(call, call.entity_id("pay"), call.body)


def create_refund(call: Call) -> Entity:
    return _refund(call, str(checks.required(call.body, "payment_id")), call.body)


def _refund(call: Call, payment_id: str, body: Entity) -> Entity:
    key = call.headers.get("x-refund-idempotency")

    def work(world: World) -> tuple[Entity, bool]:
        refund, new = refunds.create_refund(world, payment_id, body, key=key)
        return dict(refund.entity), new

    (shown, new), _ = call.till.ring_up(work, subject=payment_id)
    if new and not call.till.faults.hold_refunds:
        call.till.ring_up(lambda world: refunds.process_refund(world, shown["id"]), subject=payment_id)
    return shown


def fetch_refund(call: Call) -> Entity:
    return call.till.world.get("refund", call.entity_id("rfnd")).entity


def edit_refund(call: Call) -> Entity:
    refund_id = call.entity_id("rfnd")
    return call.change(lambda world: checks.edit_notes(world, "refund", refund_id, call.body))


def fetch_refund_of_payment(call: Call) -> Entity:
    refund = call.till.world.get("refund", call.entity_id("rfnd", "refund_id")).entity
    if refund["payment_id"] != call.entity_id("pay"):
        raise Refusal("The id provided does not exist")
    return refund


def list_refunds(call: Call) -> Entity:
    return collection(call.page("refund"))


def list_payment_refunds(call: Call) -> Entity:
    payment_id = call.entity_id("pay")
    return collection(call.page("refund", keep=lambda entity: entity["payment_id"] == payment_id))
