"""Money that goes back: refunds."""

import json
import re

from sandbox import entities, ids
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import checks
from sandbox.state.world import Record, World

_KEY = re.compile(r"[A-Za-z0-9_-]{10,}")
# Banks take nothing back for older payments.
WINDOW_DAYS = 183
_DAY = 86_400


def create_refund(
    world: World, payment_id: str, request: Entity, *, key: str | None = None
) -> tuple[Record, bool]:
    """A refund and whether it is new: the same idempotency key gives the first one back."""
    checks.only(request, "payment_id amount speed notes receipt")
    content = json.dumps([payment_id, request], sort_keys=True)
    if key is not None:
        if not _KEY.fullmatch(key):
            raise Refusal("The idempotency key must have at least 10 letters, digits, hyphens or underscores")
        if used := world.find("refund_key", key):
            if used.inner["content"] != content:
                raise Refusal("Different request with the same idempotency key has already been processed.")
            return world.get("refund", used.inner["refund_id"]), False
    payment = world.edit("payment", payment_id)
    _refuse_old(world, payment.entity)
    amount = _refundable(payment.entity, request)
    speed = request.get("speed", "normal")
    if speed not in ("normal", "optimum"):
        raise Refusal("The selected speed is invalid.", field="speed")
    notes, receipt = checks.notes(request), checks.text(request, "receipt", most=40)
    entity = entities.refund(
        payment_id=payment_id,
        amount=amount,
        currency=payment.entity["currency"],
        notes=notes,
        receipt=receipt,
        now=world.now(),
    ) | {"speed_requested": speed, "speed_processed": "instant" if speed == "optimum" else "normal"}
    refund = world.add("refund", entity)
    if key is not None:
        world.add("refund_key", {"id": key}, content=content, refund_id=entity["id"])
    _count_refunded(payment.entity, amount)
    _announce(world, "refund.created", refund, payment)
    return refund, True


def _refundable(payment: Entity, request: Entity) -> int:
    if payment["status"] == "refunded":
        raise Refusal("The payment has been fully refunded already")
    if payment["status"] != "captured":
        raise Refusal("The payment status should be captured for action to be taken")
    rest: int = payment["amount"] - payment["amount_refunded"]
    if request.get("amount") is None:
        return rest
    amount = checks.amount(request)
    if amount > payment["amount"]:
        raise Refusal("The refund amount provided is greater than amount captured", field="amount")
    if amount > rest:
        raise Refusal("The total refund amount is greater than the refund payment amount", field="amount")
    return amount


def _refuse_old(world: World, payment: Entity) -> None:
    habit = world.find("habits", "refund_window")
    days = habit.inner["days"] if habit else WINDOW_DAYS
    if days and payment["created_at"] < world.now() - days * _DAY:
        raise Refusal("Refund is not supported by the bank because the payment is more than 6 months old")


def set_window(world: World, days: int) -> Record:
    """For how many days a payment can be refunded; 0 for ever."""
    return world.add("habits", {"id": "refund_window"}, days=days)


def _count_refunded(payment: Entity, change: int) -> None:
    payment["amount_refunded"] += change
    if payment["amount_refunded"] == payment["amount"]:
        payment.update(refund_status="full", status="refunded")
    else:
        payment.update(refund_status="partial" if payment["amount_refunded"] else None, status="captured")


def process_refund(world: World, refund_id: str) -> Record:
    """The bank took it."""
    refund = _pending(world, refund_id)
    payment = world.get("payment", refund.entity["payment_id"])
    reference = "rrn" if payment.entity["method"] == "upi" else "arn"
    refund.entity |= {"status": "processed", "acquirer_data": {reference: ids.digits(12)}}
    _announce(world, "refund.processed", refund, payment)
    return refund


def slow_down(world: World, refund_id: str) -> Record:
    """An instant refund that turned out to be a normal one: its event has the time inside the payload."""
    refund = world.edit("refund", refund_id)
    if refund.entity["speed_processed"] != "instant":
        raise Refusal("Only an instant refund changes its speed")
    refund.entity["speed_processed"] = "normal"
    payment = world.get("payment", refund.entity["payment_id"])
    _announce(world, "refund.speed_changed", refund, payment, beside={"created_at": world.now()})
    return refund


def fail_refund(world: World, refund_id: str) -> Record:
    """The bank refused; the payment counts it as never refunded."""
    refund = _pending(world, refund_id)
    payment = world.edit("payment", refund.entity["payment_id"])
    refund.entity["status"] = "failed"
    _count_refunded(payment.entity, -refund.entity["amount"])
    _announce(world, "refund.failed", refund, payment)
    return refund


def _pending(world: World, refund_id: str) -> Record:
    refund = world.edit("refund", refund_id)
    if refund.entity["status"] != "pending":
        raise Refusal(f"The refund is already {refund.entity['status']}")
    return refund


def _announce(
    world: World, name: str, refund: Record, payment: Record, *, beside: Entity | None = None
) -> None:
    shown = terse(payment.entity)
    world.emit(name, ["refund", "payment"], beside=beside, refund=refund.entity, payment=shown)


def terse(payment: Entity) -> Entity:
    """The payment as refund and dispute events show it: no description, fewer fields."""
    hidden = {"emi_plan", "reward", "token_id"}
    return {name: value for name, value in payment.items() if name not in hidden} | {"description": None}
