"""Rows to the rules' values."""

from collections.abc import Iterable, Sequence
from typing import Any

from services.ledger.rules import lots
from services.ledger.rules.model import Account, Entry, Lot, Record, Transaction


def account_of(row: Sequence[Any], open_lots: Iterable[Lot]) -> Account:
    """The first columns of `tenant_credits`, up to `next_lot`, and the open lots."""
    tenant_id, seq, last_at, chain_head, state, frozen_reason, next_lot = row
    return Account(
        tenant_id=tenant_id,
        seq=seq,
        last_at=last_at,
        chain_head=chain_head,
        state=state,
        frozen_reason=frozen_reason,
        next_lot=next_lot,
        lots=lots.in_burn_order(open_lots),
    )


def record_of(row: Sequence[Any]) -> Record:
    """A row of `credit_transactions`, in the order of `_RECORD`."""
    transaction = Transaction(
        tenant_id=row[0],
        id=row[1],
        idempotency_key=row[2],
        kind=row[5],
        amount=row[6],
        status=row[7],
        reason=row[8],
        description=row[9],
        reference_id=row[10],
        hold_id=row[11],
        refunded_transaction_id=row[12],
        metadata=row[13],
        first_seq=row[15],
        last_seq=row[16],
        created_at=row[17],
    )
    return Record(transaction, fingerprint=row[3], fingerprint_version=row[4], answer=row[14])


def entry_of(row: Sequence[Any]) -> Entry:
    """A row of `credit_entries` without its tenant, in the order of `_ENTRY`."""
    return Entry(*row)
