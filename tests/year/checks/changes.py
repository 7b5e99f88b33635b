"""Upgrades: what was paid ahead for the old plan goes back, in rupees and in credits, by one formula.

Credits of the unused time that were spent are taken of the new plan's; what even these do not cover is paid for.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tests.year.evidence import Evidence, Row

SMALLEST_REFUND_PAISE = 100


def prorations(evidence: Evidence) -> Iterator[str]:
    """Each upgrade that was paid gave back the unused part of the payment it was quoted from, and took its credits."""
    refunds = {
        (row["change_id"], row["payment_id"]): row
        for row in evidence.tables["refunds"]
        if row["kind"] == "proration"
    }
    mirrored = {row["id"]: row for row in evidence.tables["payments"]}
    for intent in evidence.tables["intents"]:
        payment = mirrored.get(intent["quoted_payment_id"] or "")
        if intent["kind"] != "upgrade" or payment is None or not _was_paid(evidence, intent):
            continue
        share = unused(payment["amount_paise"], payment, intent["quoted_at"])
        refund = refunds.pop((intent["id"], payment["id"]), None)
        gone = _given_back(evidence, payment["id"]) - (refund["amount_paise"] if refund else 0)
        whose = f"{intent['id']} of {intent['tenant_id']}"
        goes_back = max(0, share - _spent_paise(evidence, intent, payment))
        if refund is None:
            if share >= SMALLEST_REFUND_PAISE and payment["amount_paise"] - gone >= SMALLEST_REFUND_PAISE:
                yield f"{whose}: {share} paise of {payment['id']} were unused, and none went back"
        elif refund["status"] == "processed":
            if not _is_share(refund["amount_paise"], goes_back, payment["amount_paise"], gone):
                yield (
                    f"{whose}: {goes_back} paise of {payment['id']} had to go back, {refund['amount_paise']} did"
                )
            yield from _credits(evidence, intent, payment)
    for (change_id, payment_id), row in refunds.items():
        if row["amount_paise"] > mirrored[payment_id]["amount_paise"]:
            yield f"{change_id}: more of {payment_id} went back than was paid"


def _credits(evidence: Evidence, intent: Row, payment: Row) -> Iterator[str]:
    for grant in evidence.tables["grants"]:
        if grant["payment_id"] != payment["id"] or grant["tenant_id"] != intent["tenant_id"]:
            continue
        share = unused(grant["credits"], grant, intent["quoted_at"])
        taken = {
            row["reference_id"]: row["credits"]
            for row in evidence.tables["revocations"]
            if row["tenant_id"] == intent["tenant_id"] and row["grant_reference_id"] == grant["reference_id"]
        }
        mine = taken.pop(f"proration:{intent['id']}:{grant['reference_id']}", 0)
        if not _is_share(mine, share, grant["credits"], sum(taken.values())):
            yield (
                f"{intent['id']} of {intent['tenant_id']}: {share} credits of {grant['reference_id']} were unused,"
                f" {mine} were taken back"
            )


def _spent_paise(evidence: Evidence, intent: Row, payment: Row) -> int:
    """What credits that were spent, and that the new plan's did not make up for, had cost."""
    bought = {
        row["reference_id"]: row for row in evidence.tables["grants"] if row["payment_id"] == payment["id"]
    }
    spent = 0
    for row in evidence.tables["revocations"]:
        reference = row["grant_reference_id"]
        if (
            row["tenant_id"] == intent["tenant_id"]
            and row["reference_id"] == f"proration:{intent['id']}:{reference}"
        ):
            short = row.get("short") or 0
            spent += short if reference in bought else short - row["credits"]
    whole = sum(row["credits"] for row in bought.values())
    return -(-payment["amount_paise"] * max(0, spent) // whole) if whole else 0


def unused(whole: int, period: Row, since: datetime) -> int:
    """The share of the time after a moment, in whole seconds, rounded down."""
    start, end = period["period_start"], period["period_end"]
    length = int((end - start).total_seconds())
    return whole * int((end - max(start, min(since, end))).total_seconds()) // length


def _is_share(went: int, share: int, whole: int, gone: int) -> bool:
    """The share, or all that others had left of it."""
    return went == share or (went < share and went + gone >= whole - SMALLEST_REFUND_PAISE)


def _was_paid(evidence: Evidence, intent: Row) -> bool:
    theirs = evidence.provider["subscriptions"].get(intent["provider_subscription_id"] or "")
    return theirs is not None and theirs["paid_count"] > 0


def _given_back(evidence: Evidence, payment_id: str) -> int:
    refunded = sum(
        row["amount_paise"]
        for row in evidence.tables["refunds"]
        if row["payment_id"] == payment_id and row["status"] != "failed"
    )
    lost = sum(
        row["amount_deducted_paise"] for row in evidence.tables["disputes"] if row["payment_id"] == payment_id
    )
    return int(refunded + lost)
