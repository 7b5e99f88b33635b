"""Money that is asked back: disputes."""

from sandbox import entities, ids
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import checks
from sandbox.state.refunds import terse
from sandbox.state.world import Record, World

PHASES = ("fraud", "retrieval", "chargeback", "pre_arbitration", "arbitration")
_DOCUMENTS = (
    "shipping_proof billing_proof cancellation_proof customer_communication proof_of_service "
    "explanation_letter refund_confirmation access_activity_log refund_cancellation_policy term_and_conditions others"
)
_WEEK = 7 * 86_400


def open_dispute(world: World, payment_id: str, request: Entity) -> Record:
    """The customer's bank asks for the money back; nothing is taken yet. A won one may come back in a new phase."""
    payment = world.get("payment", payment_id)
    if payment.entity["status"] not in ("captured", "refunded"):
        raise Refusal("Only captured payments can be disputed")
    amount = payment.entity["amount"]
    if request.get("amount") is not None:
        amount = checks.whole(request, "amount", most=checks.LARGEST_AMOUNT)
    if not 0 < amount <= payment.entity["amount"]:
        raise Refusal("The disputed amount must be between 1 and the payment's amount", field="amount")
    phase = request.get("phase", "chargeback")
    if phase not in PHASES:
        raise Refusal(f"phase must be one of {', '.join(PHASES)}", field="phase")
    now = world.now()
    entity = entities.dispute(
        payment_id=payment_id,
        amount=amount,
        currency=payment.entity["currency"],
        respond_by=now + _WEEK,
        now=now,
    )
    entity |= {"phase": phase, "reason_code": checks.text(request, "reason_code") or entity["reason_code"]}
    dispute = world.add("dispute", entity)
    _announce(world, "created", dispute)
    return dispute


def settle(world: World, dispute_id: str, outcome: str) -> Record:
    """The dispute is lost (the money goes now), won, closed, or under review."""
    dispute = _unsettled(world, dispute_id)
    if outcome == "closed" and dispute.entity["phase"] != "fraud":
        raise Refusal("Only a dispute of the fraud phase is closed; others are won or lost", field="phase")
    dispute.entity["status"] = outcome
    if outcome == "lost":
        dispute.entity["amount_deducted"] = dispute.entity["amount"]
    if outcome in ("won", "under_review") and dispute.entity["evidence"]["submitted_at"] is None:
        dispute.entity["evidence"] |= {
            "summary": "usage logs attached",
            "access_activity_log": [ids.new_id("doc")],
            "others": [{"type": "invoice_copy", "document_ids": [ids.new_id("doc")]}],
            "submitted_at": world.now(),
        }
    _announce(world, outcome, dispute)
    return dispute


def ask_for_more(world: World, dispute_id: str) -> Record:
    """The bank wants other documents: open again, and the evidence is told beside the entity."""
    dispute = _unsettled(world, dispute_id)
    dispute.entity["status"] = "open"
    beside = {"dispute": {"evidence": dict(dispute.entity["evidence"])}}
    _announce(world, "action_required", dispute, beside=beside)
    return dispute


def contest(world: World, dispute_id: str, request: Entity) -> Record:
    """The merchant answers: a draft is kept, a submission goes under review."""
    checks.only(request, f"amount summary {_DOCUMENTS} action")
    action = request.get("action", "draft")
    if action not in ("draft", "submit"):
        raise Refusal("The selected action is invalid.", field="action")
    dispute = _unsettled(world, dispute_id)
    if dispute.entity["status"] != "open":
        raise Refusal("Action not allowed: dispute is already under review")
    evidence = {name: value for name, value in request.items() if name != "action"}
    dispute.entity["evidence"] |= evidence
    if action == "submit":
        if not set(evidence) & set(_DOCUMENTS.split()):
            raise Refusal("Please provide at least one document as evidence")
        dispute.entity["evidence"]["submitted_at"] = world.now()
        dispute.entity["status"] = "under_review"
        _announce(world, "under_review", dispute)
    return dispute


def _unsettled(world: World, dispute_id: str) -> Record:
    dispute = world.edit("dispute", dispute_id)
    if dispute.entity["status"] not in ("open", "under_review"):
        raise Refusal(f"The dispute is already {dispute.entity['status']}")
    return dispute


def _announce(world: World, what: str, dispute: Record, *, beside: Entity | None = None) -> None:
    payment = terse(world.get("payment", dispute.entity["payment_id"]).entity)
    if what == "won":
        # Razorpay's own sample shows the payment as it was before its capture.
        payment |= {"status": "authorized", "captured": False, "fee": None, "tax": None}
    world.emit(
        f"payment.dispute.{what}",
        ["payment", "dispute"],
        beside=beside,
        payment=payment,
        dispute=dispute.entity,
    )
