"""What is kept of an answer, so that a repeat is told the same."""

from datetime import datetime
from typing import Any

from services.ledger.rules.model import BucketTotals, Totals
from shared.errors import FailedPrecondition


def answer_of_totals(totals: Totals) -> dict[str, Any]:
    """The balance after an operation, as it is kept for repeats."""
    return {
        "available": totals.available,
        "held": totals.held,
        "posted": totals.posted,
        "buckets": [
            [each.bucket, each.credits, each.held, _text(each.next_expires_at)] for each in totals.buckets
        ],
        "next_expires_at": _text(totals.next_expires_at),
        "seq": totals.as_of_seq,
    }


def totals_of_answer(answer: dict[str, Any], at: datetime) -> Totals:
    """The balance that an operation left behind when it was first answered."""
    return Totals(
        available=answer["available"],
        held=answer["held"],
        posted=answer["posted"],
        buckets=tuple(
            BucketTotals(bucket, credits, held, _time(expires_at))
            for bucket, credits, held, expires_at in answer["buckets"]
        ),
        next_expires_at=_time(answer["next_expires_at"]),
        as_of_seq=answer["seq"],
        as_of=at,
    )


def answer_of_refusal(refusal: FailedPrecondition) -> dict[str, Any]:
    """A refusal, as it is kept for repeats."""
    return {"refused": refusal.reason, "message": refusal.message, "metadata": refusal.metadata}


def refusal_of_answer(answer: dict[str, Any], decided_at: datetime) -> FailedPrecondition:
    """The refusal as first answered, marked as replayed and with the moment of its decision."""
    return FailedPrecondition(
        answer["message"],
        reason=answer["refused"],
        **{
            **answer["metadata"],
            "replayed": "true",
            "decided_at": decided_at.isoformat(timespec="milliseconds"),
        },
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
