"""How lines are booked: numbered, chained, totalled, and every invariant asserted on the result."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple

from services.ledger import errors
from services.ledger.rules import chain, lots
from services.ledger.rules.model import FROZEN, NOTHING, Account, Entry, Lot, Outcome, Transaction

# The id of the next transaction.
NewId = Callable[[], str]


class Line(NamedTuple):
    """A change of one lot, before it has a number."""

    kind: str
    lot: int
    d_posted: int
    d_held: int = 0
    refunded_seq: int | None = None


class Header(NamedTuple):
    """What a transaction says about itself, before it has lines."""

    id: str
    idempotency_key: str
    kind: str
    status: str
    amount: int
    reason: str
    description: str = ""
    reference_id: str = ""
    hold_id: str = ""
    refunded_transaction_id: str = ""
    metadata: Mapping[str, str] = NOTHING
    actor: str = ""


def book(account: Account, header: Header, lines: list[Line], now: datetime) -> tuple[Account, Outcome]:
    """The account after these lines, and the outcome; the account given stays as it was."""
    seq, head, posted, held = account.seq, account.chain_head, account.posted, account.held
    words = chain.words(header.id, header.kind, header.idempotency_key, header.reason, header.reference_id)
    entries, touched = [], {}
    after = account
    for kind, number, d_posted, d_held, refunded_seq in lines:
        seq, posted, held = seq + 1, posted + d_posted, held + d_held
        before = lots.find(after, number)
        lot = before._replace(remaining=before.remaining + d_posted, held=before.held + d_held)
        touched[number] = lot
        after = lots.put(after, lot)
        totals = (d_posted, d_held, lot.remaining, lot.held, posted, held)
        head = chain.line_hash(head, seq, number, *totals, at=now, amount=header.amount, words=words)
        entries.append(Entry(seq, header.id, number, lot.bucket, kind, *totals, now, head, refunded_seq))
    after = after._replace(seq=seq, last_at=now, chain_head=head)
    _assert_sound(after, header, entries)
    transaction = _transaction(account.tenant_id, header, entries, now)
    return after, Outcome(transaction, tuple(entries), lots.totals(after, now), tuple(touched.values()))


def open_lot(
    account: Account,
    *,
    bucket: str,
    priority: int,
    credits: int,
    expires_at: datetime | None,
    reference_id: str,
    transaction_id: str,
    now: datetime,
) -> tuple[Account, Lot]:
    """A new lot that holds nothing yet: the lines that follow fill it."""
    lot = Lot(
        lot=account.next_lot,
        bucket=bucket,
        priority=priority,
        granted=credits,
        remaining=0,
        held=0,
        expires_at=expires_at,
        reference_id=reference_id,
        grant_transaction_id=transaction_id,
        created_at=now,
    )
    emptied = {**account.emptied, lot.lot: lot}
    return account._replace(next_lot=account.next_lot + 1, emptied=emptied), lot


def refuse_frozen(account: Account) -> None:
    """Raises AccountFrozen unless the account's credits may change."""
    if account.state == FROZEN:
        raise errors.AccountFrozen(
            "the account is frozen", tenant_id=account.tenant_id, reason_given=account.frozen_reason
        )


def refuse_other_seq(account: Account, if_seq: int | None) -> None:
    """Raises ConditionFailed unless the account is where the caller saw it."""
    if if_seq is not None and if_seq != account.seq:
        raise errors.ConditionFailed(
            f"the account is at seq {account.seq}, not {if_seq}", expected=if_seq, actual=account.seq
        )


def refuse_shortfall(account: Account, needed: int, now: datetime) -> int:
    """What is available; raises InsufficientCredits when that is less than needed."""
    available = account.available(now)
    if available < needed:
        raise errors.InsufficientCredits(
            f"{needed} credits are needed, {available} are available",
            available=available,
            requested=needed,
            shortfall=needed - available,
        )
    return available


def _transaction(tenant_id: str, header: Header, entries: list[Entry], now: datetime) -> Transaction:
    return Transaction(
        id=header.id,
        tenant_id=tenant_id,
        idempotency_key=header.idempotency_key,
        kind=header.kind,
        status=header.status,
        amount=header.amount,
        reason=header.reason,
        description=header.description,
        reference_id=header.reference_id,
        hold_id=header.hold_id,
        refunded_transaction_id=header.refunded_transaction_id,
        metadata=header.metadata,
        first_seq=entries[0].seq if entries else 0,
        last_seq=entries[-1].seq if entries else 0,
        created_at=now,
        actor=header.actor,
    )


def _assert_sound(account: Account, header: Header, entries: list[Entry]) -> None:
    """What must hold before every commit; a violation aborts the batch and is a bug."""
    if sum([entry.d_posted for entry in entries]) != header.amount:
        raise AssertionError(f"{header.id}: its lines do not add up to its amount")
    posted = held = 0
    for lot in account.lots:
        if not 0 <= lot.held <= lot.remaining:
            raise AssertionError(f"{account.tenant_id}: a lot holds less than is held in it")
        posted, held = posted + lot.remaining, held + lot.held
    last = entries[-1] if entries else None
    if last is not None and (last.account_posted_after, last.account_held_after) != (posted, held):
        raise AssertionError(f"{account.tenant_id}: lots and lines disagree")
    for lot in account.emptied.values():
        if lot.remaining or lot.held:
            raise AssertionError(f"{account.tenant_id}: an empty lot is not empty")
