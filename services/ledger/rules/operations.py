"""What an operation does to an account: `apply(account, operation, now)`, and nothing else decides."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from services.ledger import errors
from services.ledger.rules import chain, lots
from services.ledger.rules.model import (
    FROZEN,
    PRIORITY,
    Account,
    Debit,
    Entry,
    Grant,
    Lot,
    Outcome,
    Transaction,
)

NewId = Callable[[], str]


@dataclass(frozen=True, slots=True)
class _Line:
    """A change of one lot, before it has a number."""

    kind: str
    lot: int
    d_posted: int


def apply(
    account: Account, operation: Debit | Grant, now: datetime, new_id: NewId
) -> tuple[Account, Outcome]:
    """The account and the outcome after `operation`, or the refusal raised; the account given stays as it was.

    Due expiries are not booked here: `settle` comes first, so that history does not depend on who came first.
    """
    match operation:
        case Debit():
            return _debit(account, operation, now, new_id)
        case Grant():
            return _grant(account, operation, now, new_id)


def settle(account: Account, now: datetime, new_id: NewId) -> tuple[Account, list[Outcome]]:
    """Books the expiry of every lot whose end has come, one transaction each; what is held stays for its hold."""
    outcomes = []
    for lot in lots.due(account, now):
        transaction_id = new_id()
        transaction = Transaction(
            id=transaction_id,
            tenant_id=account.tenant_id,
            # Nobody asked under a key; the lock alone makes it happen once, since a settled lot has nothing left.
            idempotency_key=transaction_id,
            kind="expiry",
            status="expired",
            amount=-lot.free,
            reason="lot.expired",
            description="",
            reference_id=lot.reference_id,
            hold_id="",
            refunded_transaction_id="",
            metadata={},
            first_seq=0,
            last_seq=0,
            created_at=now,
        )
        account, outcome = _book(account, transaction, [_Line("expiry", lot.lot, -lot.free)], now)
        outcomes.append(outcome)
    return account, outcomes


def _debit(account: Account, debit: Debit, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    _refuse_frozen(account)
    if debit.if_seq is not None and debit.if_seq != account.seq:
        raise errors.ConditionFailed(
            f"the account is at seq {account.seq}, not {debit.if_seq}",
            expected=debit.if_seq,
            actual=account.seq,
        )
    available = account.available(now)
    if available < debit.min_credits:
        raise errors.InsufficientCredits(
            f"{debit.min_credits} credits are needed, {available} are available",
            available=available,
            requested=debit.min_credits,
            shortfall=debit.min_credits - available,
        )
    credits = min(debit.credits, available)
    transaction = Transaction(
        id=new_id(),
        tenant_id=debit.tenant_id,
        idempotency_key=debit.idempotency_key,
        kind="debit",
        status="posted",
        amount=-credits,
        reason=debit.reason,
        description=debit.description,
        reference_id=debit.reference_id,
        hold_id="",
        refunded_transaction_id="",
        metadata=debit.metadata,
        first_seq=0,
        last_seq=0,
        created_at=now,
    )
    parts = lots.take(account, credits, now)
    return _book(account, transaction, [_Line("debit", lot.lot, -part) for lot, part in parts], now)


def _grant(account: Account, grant: Grant, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    _refuse_frozen(account)
    if grant.expires_at is not None and grant.expires_at <= now:
        raise errors.AlreadyExpired(
            "expires_at must be in the future", expires_at=grant.expires_at.isoformat(timespec="seconds")
        )
    transaction_id = new_id()
    lot = Lot(
        lot=account.next_lot,
        bucket=grant.bucket,
        priority=PRIORITY[grant.bucket],
        granted=grant.credits,
        remaining=0,
        held=0,
        expires_at=grant.expires_at,
        reference_id=grant.reference_id,
        grant_transaction_id=transaction_id,
        created_at=now,
    )
    account = replace(account, next_lot=account.next_lot + 1, lots=lots.in_burn_order((*account.lots, lot)))
    transaction = Transaction(
        id=transaction_id,
        tenant_id=grant.tenant_id,
        idempotency_key=grant.idempotency_key,
        kind="grant",
        status="posted",
        amount=grant.credits,
        reason=grant.reason,
        description=grant.description,
        reference_id=grant.reference_id,
        hold_id="",
        refunded_transaction_id="",
        metadata={},
        first_seq=0,
        last_seq=0,
        created_at=now,
    )
    return _book(account, transaction, [_Line("grant", lot.lot, grant.credits)], now)


def _book(
    account: Account, transaction: Transaction, lines: list[_Line], now: datetime
) -> tuple[Account, Outcome]:
    """Numbers, chains and totals the lines; every invariant is asserted on the result."""
    first_seq, head, entries, touched = account.seq + 1, account.chain_head, [], {}
    posted, held = account.posted, account.held
    texts = (
        transaction.id,
        transaction.kind,
        transaction.idempotency_key,
        transaction.reason,
        transaction.reference_id,
    )
    for seq, line in enumerate(lines, start=first_seq):
        posted += line.d_posted
        before = lots.find(account, line.lot)
        after = touched[line.lot] = replace(before, remaining=before.remaining + line.d_posted)
        numbers = {
            "seq": seq,
            "lot": line.lot,
            "d_posted": line.d_posted,
            "d_held": 0,
            "lot_posted_after": after.remaining,
            "lot_held_after": after.held,
            "account_posted_after": posted,
            "account_held_after": held,
        }
        head = chain.line_hash(head, **numbers, at=now, amount=transaction.amount, texts=texts)
        entries.append(
            Entry(
                transaction_id=transaction.id,
                bucket=after.bucket,
                kind=line.kind,
                at=now,
                hash=head,
                **numbers,
            )
        )
        account = replace(account, lots=lots.put(account, after))
    last_seq = first_seq + len(lines) - 1
    account = replace(account, seq=last_seq, last_at=now, chain_head=head)
    _assert_sound(account, transaction, entries)
    transaction = replace(transaction, first_seq=first_seq, last_seq=last_seq)
    totals = lots.totals(account, now)
    return account, Outcome(transaction, tuple(entries), totals, tuple(touched.values()))


def _assert_sound(account: Account, transaction: Transaction, entries: list[Entry]) -> None:
    """What must hold before every commit; a violation aborts the batch and is a bug."""
    if sum(entry.d_posted for entry in entries) != transaction.amount:
        raise AssertionError(f"{transaction.id}: its lines do not add up to its amount")
    if entries and entries[-1].account_posted_after != account.posted:
        raise AssertionError(f"{account.tenant_id}: lots and lines disagree")
    if any(not 0 <= lot.held <= lot.remaining for lot in account.lots):
        raise AssertionError(f"{account.tenant_id}: a lot holds less than is held in it")


def _refuse_frozen(account: Account) -> None:
    if account.state == FROZEN:
        raise errors.AccountFrozen(
            "the account is frozen", tenant_id=account.tenant_id, reason_given=account.frozen_reason
        )
