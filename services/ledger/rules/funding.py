"""Creating credits: grants from facts, and the adjustments of people."""

from datetime import datetime

from services.ledger import errors
from services.ledger.rules.booking import Header, Line, NewId, book, open_lot, refuse_frozen, refuse_shortfall
from services.ledger.rules.model import PRIORITY, Account, Audit, Outcome
from services.ledger.rules.requests import Adjust, Grant
from services.ledger.rules.spending import lines_of


def grant(account: Account, asked: Grant, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    """A lot of its own, whatever the tenant has already."""
    refuse_frozen(account)
    _refuse_past(asked.expires_at, now)
    header = Header(
        id=new_id(),
        idempotency_key=asked.idempotency_key,
        kind="grant",
        status="posted",
        amount=asked.credits,
        reason=asked.reason,
        description=asked.description,
        reference_id=asked.reference_id,
    )
    account, lot = open_lot(
        account,
        bucket=asked.bucket,
        priority=PRIORITY[asked.bucket],
        credits=asked.credits,
        expires_at=asked.expires_at,
        reference_id=asked.reference_id,
        transaction_id=header.id,
        now=now,
    )
    return book(account, header, [Line("grant", lot.lot, asked.credits)], now)


def adjust(account: Account, asked: Adjust, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    """Adds a lot, or takes in the usual order; never below zero."""
    refuse_frozen(account)
    _refuse_past(asked.expires_at, now)
    refuse_shortfall(account, -asked.credits, now)
    before = account.available(now)
    header = Header(
        id=new_id(),
        idempotency_key=asked.idempotency_key,
        kind="adjustment",
        status="posted",
        amount=asked.credits,
        reason=asked.reason,
        description=asked.description,
        actor=asked.actor,
    )
    if asked.credits < 0:
        lines = lines_of("adjustment", account, -asked.credits, now)
    else:
        account, lot = open_lot(
            account,
            bucket=asked.bucket,
            priority=PRIORITY[asked.bucket],
            credits=asked.credits,
            expires_at=asked.expires_at,
            reference_id=f"adjustment:{header.id}",
            transaction_id=header.id,
            now=now,
        )
        lines = [Line("adjustment", lot.lot, asked.credits)]
    account, outcome = book(account, header, lines, now)
    audit = Audit(
        action="adjust_credits",
        actor=asked.actor,
        before={"available": before},
        after={
            "available": outcome.totals.available,
            "credits": asked.credits,
            "transactionId": header.id,
            "reason": asked.reason,
        },
        reason=asked.description,
        request_id=asked.request_id,
    )
    return account, outcome._replace(audit=audit)


def _refuse_past(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is not None and expires_at <= now:
        raise errors.AlreadyExpired(
            "expires_at must be in the future", expires_at=expires_at.isoformat(timespec="seconds")
        )
