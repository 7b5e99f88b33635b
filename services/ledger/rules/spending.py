"""Taking credits: debits, and the negative adjustments of people."""

from datetime import datetime

from services.ledger.rules import lots
from services.ledger.rules.booking import (
    Header,
    Line,
    NewId,
    book,
    refuse_frozen,
    refuse_other_seq,
    refuse_shortfall,
)
from services.ledger.rules.model import Account, Outcome
from services.ledger.rules.requests import Debit


def debit(account: Account, asked: Debit, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    """Takes what is asked, or what there is from `min_credits` on."""
    refuse_frozen(account)
    refuse_other_seq(account, asked.if_seq)
    available = refuse_shortfall(account, asked.min_credits, now)
    credits = min(asked.credits, available)
    header = Header(
        id=new_id(),
        idempotency_key=asked.idempotency_key,
        kind="debit",
        status="posted",
        amount=-credits,
        reason=asked.reason,
        description=asked.description,
        reference_id=asked.reference_id,
        metadata=asked.metadata,
    )
    return book(account, header, lines_of("debit", account, credits, now), now)


def lines_of(kind: str, account: Account, credits: int, now: datetime) -> list[Line]:
    """The lines that take this much, in burn order."""
    return [Line(kind, lot.lot, -part) for lot, part in lots.take(account, credits, now)]
