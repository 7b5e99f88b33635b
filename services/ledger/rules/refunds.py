"""Giving back what a debit or capture took: line by line, last taken first, to the lots it came from."""

from datetime import datetime

from services.ledger import errors
from services.ledger.rules import lots
from services.ledger.rules.booking import Header, Line, NewId, book, open_lot, refuse_frozen
from services.ledger.rules.model import (
    PERMANENT,
    PRIORITY,
    REGRANT,
    SUBSCRIPTION,
    Account,
    Audit,
    Outcome,
    Spent,
    SpentLine,
)
from services.ledger.rules.requests import EXPIRE_AGAIN, TO_PERMANENT, Refund, RefundOverdebit
from shared.errors import InvalidArgument

_REFUNDABLE = ("debit", "capture")


def refund(
    account: Account, asked: Refund, spent: Spent | None, now: datetime, new_id: NewId
) -> tuple[Account, Outcome]:
    """Gives back `credits`, or all that is left. `spent` None: there is no such transaction."""
    refuse_frozen(account)
    spent = _refundable(asked, spent)
    left = spent.refundable
    if isinstance(asked, RefundOverdebit):
        left = max(left - asked.should_cost, 0)
    credits = left if asked.credits is None else asked.credits
    if not 0 < credits <= left:
        raise errors.ExceedsRefundable(
            f"{left} credits are left to refund, {credits} were asked for", refundable=left, requested=credits
        )
    header = Header(
        id=new_id(),
        idempotency_key=asked.idempotency_key,
        kind="refund",
        status="posted",
        amount=credits,
        reason=asked.reason,
        description=asked.description,
        refunded_transaction_id=asked.transaction_id,
        actor=asked.actor if isinstance(asked, RefundOverdebit) else "",
    )
    back, stranded = _split(account, spread(spent, credits), asked.expired_policy, now)
    lines = [Line("refund", line.lot, part, refunded_seq=line.seq) for line, part in back]
    if stranded:
        permanent = asked.expired_policy == TO_PERMANENT
        bucket = PERMANENT if permanent else SUBSCRIPTION
        account, lot = open_lot(
            account,
            bucket=bucket,
            priority=PRIORITY[bucket],
            credits=sum(part for _, part in stranded),
            expires_at=None if permanent else now + REGRANT,
            reference_id=f"refund:{header.id}",
            transaction_id=header.id,
            now=now,
        )
        lines += [Line("refund", lot.lot, part, refunded_seq=line.seq) for line, part in stranded]
    return book(account, header, lines, now)


def audit(account: Account, asked: RefundOverdebit, spent: Spent, outcome: Outcome, now: datetime) -> Audit:
    """What a person gave back; `account` and `spent` as they were before."""
    return Audit(
        action="refund_overdebit",
        actor=asked.actor,
        before={
            "available": account.available(now),
            "refundable": spent.refundable,
            "transactionId": spent.transaction_id,
        },
        after={
            "available": outcome.totals.available,
            "refundable": spent.refundable - outcome.transaction.amount,
            "credits": outcome.transaction.amount,
            "transactionId": outcome.transaction.id,
        },
        reason=asked.description,
        request_id=asked.request_id,
    )


def spread(spent: Spent, credits: int) -> list[tuple[SpentLine, int]]:
    """How much of each line is given back: what was taken last comes back first."""
    parts = []
    for line in reversed(spent.lines):
        if part := min(line.refundable, credits):
            parts.append((line, part))
            credits -= part
    return parts


def after(spent: Spent, outcome: Outcome) -> Spent:
    """The same, once these lines gave some of it back."""
    given: dict[int | None, int] = {}
    for entry in outcome.entries:
        given[entry.refunded_seq] = given.get(entry.refunded_seq, 0) + entry.d_posted
    lines = tuple(
        SpentLine(line.seq, line.lot, line.credits, line.refunded + given.get(line.seq, 0))
        for line in spent.lines
    )
    if any(line.refundable < 0 for line in lines):
        raise AssertionError(f"{spent.transaction_id}: more was given back than was taken")
    return Spent(spent.transaction_id, spent.kind, spent.status, lines)


def _refundable(asked: Refund, spent: Spent | None) -> Spent:
    if spent is None:
        raise errors.UnknownTransaction(
            f"there is no transaction {asked.transaction_id}", transaction_id=asked.transaction_id
        )
    if spent.kind not in _REFUNDABLE:
        what = f"names a transaction of kind {spent.kind}; only a debit or a capture can be refunded"
        raise InvalidArgument(f"transaction_id {what}", violations=[("transaction_id", what)])
    return spent


def _split(
    account: Account, parts: list[tuple[SpentLine, int]], expired_policy: str, now: datetime
) -> tuple[list[tuple[SpentLine, int]], list[tuple[SpentLine, int]]]:
    """(what returns to its lot, what must go elsewhere): a claim on an ended lot is served before the policy."""
    back, stranded = [], []
    claimed: dict[int, int] = {}  # what is still claimed of each ended lot
    for line, part in parts:
        lot = lots.find(account, line.lot)
        home = part
        if not lot.live(now) and expired_policy != EXPIRE_AGAIN:
            home = min(part, claimed.get(line.lot, lot.claimed))
            claimed[line.lot] = claimed.get(line.lot, lot.claimed) - home
        if home:
            back.append((line, home))
        if part > home:
            stranded.append((line, part - home))
    return back, stranded
