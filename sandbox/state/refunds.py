"""Money going back: refunds and disputes."""

import json
import re

from sandbox import entities, ids
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import checks
from sandbox.state.world import Record, World

_KEY = re.compile(r"[A-Za-z0-9_-]{10,}")
_WEEK = 7 * 86_400


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
    amount = _refundable(payment.entity, request)
    notes, receipt = checks.notes(request), request.get("receipt")
    entity = entities.refund(
        payment_id=payment_id,
        amount=amount,
        currency=payment.entity["currency"],
        notes=notes,
        receipt=receipt,
        now=world.now(),
    )
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


def _announce(world: World, name: str, refund: Record, payment: Record) -> None:
    world.emit(name, ["refund", "payment"], refund=refund.entity, payment=_terse(payment.entity, "token_id"))


def _terse(payment: Entity, *absent: str) -> Entity:
    """The payment as refund and dispute events show it: no description, fewer fields."""
    hidden = {"emi_plan", "reward", *absent}
    return {name: value for name, value in payment.items() if name not in hidden} | {"description": None}


def open_dispute(world: World, payment_id: str, *, amount: int | None) -> Record:
    """The customer's bank asks for the money back; nothing is taken yet."""
    payment = world.get("payment", payment_id)
    if payment.entity["status"] not in ("captured", "refunded"):
        raise Refusal("Only captured payments can be disputed")
    disputed = amount if amount is not None else payment.entity["amount"]
    if not 0 < disputed <= payment.entity["amount"]:
        raise Refusal("The disputed amount must be between 1 and the payment's amount", field="amount")
    now = world.now()
    entity = entities.dispute(
        payment_id=payment_id,
        amount=disputed,
        currency=payment.entity["currency"],
        respond_by=now + _WEEK,
        now=now,
    )
    dispute = world.add("dispute", entity)
    _announce_dispute(world, "created", dispute)
    return dispute


def settle_dispute(world: World, dispute_id: str, outcome: str) -> Record:
    """The dispute is lost (the money goes now), won, closed, or under review."""
    dispute = world.edit("dispute", dispute_id)
    if dispute.entity["status"] not in ("open", "under_review"):
        raise Refusal(f"The dispute is already {dispute.entity['status']}")
    dispute.entity["status"] = outcome
    if outcome == "lost":
        dispute.entity["amount_deducted"] = dispute.entity["amount"]
    if outcome in ("won", "under_review"):
        dispute.entity["evidence"] |= {
            "summary": "usage logs attached",
            "access_activity_log": [ids.new_id("doc")],
            "others": [{"type": "invoice_copy", "document_ids": [ids.new_id("doc")]}],
            "submitted_at": world.now(),
        }
    _announce_dispute(world, outcome, dispute)
    return dispute


def _announce_dispute(world: World, outcome: str, dispute: Record) -> None:
    payment = _terse(world.get("payment", dispute.entity["payment_id"]).entity, "token_id")
    if outcome == "won":
        # Razorpay's own sample shows the payment as it was before its capture.
        payment |= {"status": "authorized", "captured": False, "fee": None, "tax": None}
    world.emit(f"payment.dispute.{outcome}", ["payment", "dispute"], payment=payment, dispute=dispute.entity)
