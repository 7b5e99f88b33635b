"""What is kept of an answer, so that a repeat is told the same."""

from datetime import datetime
from typing import Any

from services.ledger.rules.limits import LimitDecision
from services.ledger.rules.model import (
    PERMANENT,
    SUBSCRIPTION,
    BucketTotals,
    Entry,
    Hold,
    Mirrors,
    Noted,
    Outcome,
    Record,
    Revoked,
    Totals,
)
from services.ledger.rules.usage import Parts
from shared.errors import FailedPrecondition

_HOLD = ("id", "transaction_id", "status", "reserved", "captured", "released", "reason", "reference_id")
_HOLD_MOMENTS = ("expires_at", "max_expires_at", "created_at")
_DECISION = ("limit_key", "allowed", "reason", "limit", "used", "remaining", "kind", "addon", "requested")


def of_outcome(outcome: Outcome) -> dict[str, Any]:
    """What an operation on credits answered, beside its transaction."""
    answer: dict[str, Any] = {"balance": _of_totals(outcome.totals)}
    if outcome.totals.as_of != outcome.transaction.created_at:  # what followed at once is in the balance
        answer["as_of"] = _text(outcome.totals.as_of)
    if outcome.hold is not None:
        answer["hold"] = _of_hold(outcome.hold)
    if outcome.refundable:
        answer["refundable"] = outcome.refundable
    if outcome.revoked is not None:
        revoked = outcome.revoked
        answer["revoked"] = [revoked.taken, revoked.claimed, revoked.already_spent]
    if outcome.limits:
        answer["limits"] = [_of_decision(each) for each in outcome.limits]
    return answer


def of_noted(noted: Noted) -> dict[str, Any]:
    """What an operation answered that moves no credits."""
    answer: dict[str, Any] = {"balance": _of_totals(noted.totals)}
    answer["limits"] = [_of_decision(each) for each in noted.limits]
    answer["frozen_at"] = _text(noted.frozen_at)
    if noted.mirrors is not None:
        answer["mirrors"] = [_of_mirrors(each) for each in noted.mirrors]
    return answer


def of_refusal(refusal: FailedPrecondition, parts: Parts | None) -> dict[str, Any]:
    """A refusal, with what each part said where it had several."""
    answer: dict[str, Any] = {
        "refused": refusal.reason,
        "message": refusal.message,
        "metadata": refusal.metadata,
    }
    if parts is not None:
        answer["limits"] = [_of_decision(each) for each in parts.limits]
        answer["balance"] = _of_totals(parts.totals)
    return answer


def outcome(record: Record, lines: tuple[Entry, ...]) -> Outcome:
    """The outcome of a stored operation on credits, as it was first answered."""
    if record.transaction is None:
        raise TypeError(f"{record.idempotency_key} moved no credits")
    answer = record.answer
    hold, revoked = answer.get("hold"), answer.get("revoked")
    return Outcome(
        record.transaction,
        lines,
        _totals(answer["balance"], record.decided_at),
        hold=None if hold is None else _hold(hold),
        refundable=answer.get("refundable", 0),
        revoked=None if revoked is None else Revoked(*revoked),
        limits=tuple(_decision(each) for each in answer.get("limits", ())),
        replayed=True,
    )


def noted(record: Record) -> Noted:
    """The answer of a stored operation that moved no credits."""
    answer = record.answer
    mirrors = answer.get("mirrors")
    return Noted(
        _totals(answer["balance"], record.decided_at),
        limits=tuple(_decision(each) for each in answer["limits"]),
        frozen_at=_time(answer["frozen_at"]),
        mirrors=None if mirrors is None else (_mirrors(mirrors[0]), _mirrors(mirrors[1])),
        replayed=True,
    )


def refusal(record: Record) -> FailedPrecondition:
    """The refusal as first answered, marked as replayed and with the moment of its decision."""
    answer = record.answer
    return FailedPrecondition(
        answer["message"],
        reason=answer["refused"],
        **{
            **answer["metadata"],
            "replayed": "true",
            "decided_at": record.decided_at.isoformat(timespec="milliseconds"),
        },
    )


def parts(record: Record) -> Parts | None:
    """What each part of a refused decision said; None where it had only one."""
    answer = record.answer
    if "balance" not in answer:
        return None
    decisions = tuple(_decision(each) for each in answer["limits"])
    return Parts(decisions, _totals(answer["balance"], record.decided_at))


def _of_totals(totals: Totals) -> list[Any]:
    """Short, since it is kept with every debit: what the rest is added up from."""
    subscription, permanent = totals.buckets
    return [
        totals.available,
        subscription.credits,
        subscription.held,
        _text(subscription.next_expires_at),
        permanent.credits,
        permanent.held,
        totals.as_of_seq,
    ]


def _totals(kept: list[Any], at: datetime) -> Totals:
    available, subscription, held_subscription, ends_at, permanent, held_permanent, seq = kept
    next_expires_at = _time(ends_at)
    return Totals(
        available=available,
        held=held_subscription + held_permanent,
        posted=subscription + permanent,
        buckets=(
            BucketTotals(SUBSCRIPTION, subscription, held_subscription, next_expires_at),
            BucketTotals(PERMANENT, permanent, held_permanent, None),
        ),
        next_expires_at=next_expires_at,
        as_of_seq=seq,
        as_of=at,
    )


def _of_mirrors(mirrors: Mirrors) -> dict[str, Any]:
    return mirrors._asdict() | {"subscription_expires_at": _text(mirrors.subscription_expires_at)}


def _mirrors(kept: dict[str, Any]) -> Mirrors:
    return Mirrors(**kept | {"subscription_expires_at": _time(kept["subscription_expires_at"])})


def _of_hold(hold: Hold) -> dict[str, Any]:
    kept: dict[str, Any] = {name: getattr(hold, name) for name in _HOLD}
    return kept | {name: getattr(hold, name).isoformat() for name in _HOLD_MOMENTS}


def _hold(kept: dict[str, Any]) -> Hold:
    values: dict[str, Any] = {name: kept[name] for name in _HOLD}
    values |= {name: datetime.fromisoformat(kept[name]) for name in _HOLD_MOMENTS}
    return Hold(**values)


def _of_decision(decision: LimitDecision) -> dict[str, Any]:
    kept: dict[str, Any] = {name: getattr(decision, name) for name in _DECISION}
    return kept | {"grace_expires_at": _text(decision.grace_expires_at)}


def _decision(kept: dict[str, Any]) -> LimitDecision:
    values = {name: kept[name] for name in _DECISION}
    return LimitDecision(**values, grace_expires_at=_time(kept["grace_expires_at"]))


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
