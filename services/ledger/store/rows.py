"""Rows to the rules' values, column by column in the order of the statements' lists."""

from collections.abc import Iterable, Sequence
from typing import Any

from services.ledger.rules import lots
from services.ledger.rules.model import (
    Account,
    Entry,
    Hold,
    Leg,
    Lot,
    Record,
    Revocation,
    Spent,
    SpentLine,
    Transaction,
)

_OPERATION_WIDTH = 8


def account_of(row: Sequence[Any], found: Iterable[Lot]) -> Account:
    """The first columns of `tenant_credits`, and the lots that were found, open or empty."""
    tenant_id, seq, last_at, chain_head, state, frozen_reason, next_lot, frozen_at = row
    own = list(found)
    return Account(
        tenant_id=tenant_id,
        seq=seq,
        last_at=last_at,
        chain_head=chain_head,
        state=state,
        frozen_reason=frozen_reason,
        next_lot=next_lot,
        lots=lots.in_burn_order(lot for lot in own if lot.remaining),
        emptied={lot.lot: lot for lot in own if not lot.remaining},
        frozen_at=frozen_at,
    )


def record_of(row: Sequence[Any]) -> Record:
    """A row of `credit_transactions` (RECORD) or of `tenant_operations`."""
    if len(row) == _OPERATION_WIDTH:
        return Record(*row)
    transaction = Transaction(*row[3:])
    return Record(
        transaction.tenant_id,
        transaction.idempotency_key,
        transaction.kind,
        rejected=transaction.status == "rejected",
        decided_at=transaction.created_at,
        fingerprint=row[0],
        fingerprint_version=row[1],
        answer=row[2],
        transaction=transaction,
    )


def entry_of(row: Sequence[Any]) -> Entry:
    """A row of `credit_entries` (ENTRY)."""
    return Entry(*row)


def hold_of(row: Sequence[Any]) -> Hold:
    """A row of `credit_holds` and the array of its legs."""
    *columns, legs = row
    return Hold._make([*columns, tuple(Leg(*leg) for leg in legs)])


def revocation_of(row: Sequence[Any]) -> Revocation:
    """A row of `credit_revocations` (REVOCATION)."""
    return Revocation(*row)


def spent_of(earlier: Spent | None, transaction_id: str, row: Sequence[Any]) -> Spent:
    """The transaction with one more of its lines."""
    kind, status, seq, lot, credits, refunded = row[:6]
    lines = () if seq is None else (SpentLine(seq, lot, credits, refunded),)
    return Spent(transaction_id, kind, status, (*(earlier.lines if earlier else ()), *lines))
