"""Counting usage, and one decision over limits and credits together."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from services.ledger.rules import holds, limits, lots, spending
from services.ledger.rules.booking import NewId
from services.ledger.rules.limits import Counted, LimitDecision, LimitState
from services.ledger.rules.model import Account, Noted, Outcome, Totals
from services.ledger.rules.requests import Authorize, Consume, Debit, PlaceHold, Release, SetUsage
from shared.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class Parts:
    """What each part of a refused decision said."""

    limits: tuple[LimitDecision, ...]
    totals: Totals


class NotAuthorized(Exception):
    """One part refused, so nothing was done. Carries the refusal of the first part that did, and what all said."""

    def __init__(self, refusal: FailedPrecondition, parts: Parts) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.parts = parts


def count(
    account: Account,
    asked: Consume | Release | SetUsage,
    states: Mapping[str, LimitState],
    now: datetime,
) -> Noted:
    """What each limit says afterwards; PlanLimitReached, and nothing counted, where one refuses."""
    match asked:
        case Consume():
            counted = limits.consume(states, asked.limits, now)
        case Release():
            counted = limits.release(states, asked.limits, now)
        case SetUsage():
            counted = limits.set_usage(states, asked.limit_key, asked.used, now)
    if counted.refused is not None:
        raise limits.limit_reached(counted.refused)
    return Noted(lots.totals(account, now), limits=counted.decisions, counted=counted.changed)


def authorize(
    account: Account,
    asked: Authorize,
    states: Mapping[str, LimitState],
    now: datetime,
    new_id: NewId,
) -> tuple[Account, Outcome | Noted]:
    """All parts or none; raises NotAuthorized with what every part said."""
    counted = limits.consume(states, asked.limits, now)
    if counted.refused is not None:
        refusal = limits.limit_reached(counted.refused)
        raise NotAuthorized(refusal, Parts(counted.decisions, lots.totals(account, now)))
    if not (asked.debit_credits or asked.hold_credits):
        return account, _noted(account, counted, now)
    try:
        after, outcome = _spend(account, asked, now, new_id)
    except FailedPrecondition as refusal:
        before = tuple(limits.decide(states[key], amount, now) for key, amount in asked.limits)
        raise NotAuthorized(refusal, Parts(before, lots.totals(account, now))) from None
    return after, outcome._replace(limits=counted.decisions, counted=counted.changed)


def _noted(account: Account, counted: Counted, now: datetime) -> Noted:
    return Noted(lots.totals(account, now), limits=counted.decisions, counted=counted.changed)


def _spend(account: Account, asked: Authorize, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    if asked.hold_credits:
        hold = PlaceHold(
            tenant_id=asked.tenant_id,
            idempotency_key=asked.idempotency_key,
            credits=asked.hold_credits,
            ttl=asked.hold_ttl,
            reason=asked.reason,
            reference_id=asked.reference_id,
        )
        return holds.place(account, hold, now, new_id)
    debit = Debit(
        tenant_id=asked.tenant_id,
        idempotency_key=asked.idempotency_key,
        credits=asked.debit_credits,
        min_credits=asked.debit_credits,
        reason=asked.reason,
        reference_id=asked.reference_id,
    )
    return spending.debit(account, debit, now, new_id)
