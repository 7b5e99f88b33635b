"""The lanes' SQL: load what a batch touches in one round trip, write what it changed in another.

Each statement of a pipeline takes its snapshot when it runs, so everything after the lock sees what the lock waited
for. Arrays keep the number of statements the same for a batch of one and of two hundred.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from services.ledger.rules.batch import Decided, Known
from services.ledger.rules.model import SUBSCRIPTION, Account, Entry, Lot, Outcome, Record
from services.ledger.store.rows import account_of, entry_of, record_of

Connection = AsyncConnection[TupleRow]
Key = tuple[str, str]

OPEN_ACCOUNTS = """
INSERT INTO tenant_credits (tenant_id, id, last_at, chain_head, created_at)
SELECT tenant_id, id, %s, %s, %s FROM unnest(%s::text[], %s::text[]) AS opened (tenant_id, id) ORDER BY tenant_id
ON CONFLICT (tenant_id) DO NOTHING"""

# Row locks in one order, so that two lanes or processes never wait for each other in a circle.
LOCK_ACCOUNTS = """
SELECT tenant_id, seq, last_at, chain_head, state, frozen_reason, next_lot
FROM tenant_credits WHERE tenant_id = ANY(%s) ORDER BY tenant_id FOR NO KEY UPDATE"""

# Read after the lock was granted: a transaction's own now() would predate the wait.
CLOCK = "SELECT clock_timestamp() + make_interval(secs => %s)"

OPEN_LOTS = """
SELECT tenant_id, lot, bucket, priority, granted, remaining, held, expires_at, reference_id, grant_transaction_id,
       created_at
FROM credit_buckets WHERE tenant_id = ANY(%s) AND NOT closed"""

RECORD = """t.tenant_id, t.id, t.idempotency_key, t.fingerprint, t.fingerprint_version, t.kind, t.amount, t.tx_status,
       t.reason, t.description, t.reference_id, t.hold_id, t.refunded_transaction_id, t.metadata, t.answer, t.first_seq,
       t.last_seq, t.created_at"""

ENTRY = """e.seq, e.transaction_id, e.lot, e.bucket, e.kind, e.d_posted, e.d_held, e.lot_posted_after,
       e.lot_held_after, e.account_posted_after, e.account_held_after, e.at, e.hash"""

RECORDS_BY_KEY = f"""
SELECT {RECORD}
FROM unnest(%s::text[], %s::text[]) AS asked (tenant_id, idempotency_key)
JOIN credit_transactions t ON t.tenant_id = asked.tenant_id AND t.idempotency_key = asked.idempotency_key
WHERE t.tenant_id = ANY(%s)"""

# Lateral behind OFFSET 0 fixes the plan of the next two: one index probe for each that is asked. Plain joins on arrays,
# whose length a prepared plan does not know, were planned as walks over all that the tenant ever had.
GRANTS_BY_REFERENCE = """
SELECT asked.tenant_id, asked.reference_id, found.id
FROM unnest(%s::text[], %s::text[]) AS asked (tenant_id, reference_id)
CROSS JOIN LATERAL (
    SELECT t.id FROM credit_transactions t
    WHERE t.tenant_id = asked.tenant_id AND t.kind = 'grant' AND t.reference_id = asked.reference_id
      AND t.tx_status <> 'rejected' AND t.tenant_id = ANY(%s) OFFSET 0) AS found"""

ENTRIES_OF_RECORDS = f"""
SELECT {ENTRY}
FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS asked (tenant_id, first_seq, last_seq)
CROSS JOIN LATERAL (
    SELECT * FROM credit_entries
    WHERE tenant_id = asked.tenant_id AND seq BETWEEN asked.first_seq AND asked.last_seq AND tenant_id = ANY(%s)
    ORDER BY seq OFFSET 0) e"""

INSERT_TRANSACTIONS = """
INSERT INTO credit_transactions (tenant_id, id, idempotency_key, fingerprint, fingerprint_version, kind, amount,
    tx_status, reason, description, reference_id, hold_id, refunded_transaction_id, metadata, answer, first_seq,
    last_seq, created_at)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::bytea[], %s::smallint[], %s::text[], %s::bigint[],
    %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::jsonb[], %s::jsonb[], %s::bigint[],
    %s::bigint[], %s::timestamptz[])"""

INSERT_ENTRIES = """
INSERT INTO credit_entries (tenant_id, seq, transaction_id, lot, bucket, kind, d_posted, d_held, lot_posted_after,
    lot_held_after, account_posted_after, account_held_after, at, hash)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::bigint[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[], %s::bytea[])"""

INSERT_LOTS = """
INSERT INTO credit_buckets (tenant_id, lot, id, bucket, priority, granted, remaining, held, expires_at, reference_id,
    grant_transaction_id, closed, created_at)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::smallint[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::timestamptz[], %s::text[], %s::text[], %s::boolean[], %s::timestamptz[])"""

UPDATE_LOTS = """
UPDATE credit_buckets b SET remaining = u.remaining, held = u.held, closed = u.remaining = 0
FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[]) AS u (tenant_id, lot, remaining, held)
WHERE b.tenant_id = u.tenant_id AND b.lot = u.lot AND b.tenant_id = ANY(%s)"""

UPDATE_ACCOUNTS = """
UPDATE tenant_credits a
SET balance = u.subscription + u.permanent, subscription_balance = u.subscription, permanent_balance = u.permanent,
    subscription_expires_at = u.subscription_expires_at, held = u.held, seq = u.seq, last_at = u.last_at,
    chain_head = u.chain_head, next_lot = u.next_lot
FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::timestamptz[], %s::bigint[], %s::bigint[], %s::timestamptz[],
    %s::bytea[], %s::bigint[])
    AS u (tenant_id, subscription, permanent, subscription_expires_at, held, seq, last_at, chain_head, next_lot)
WHERE a.tenant_id = u.tenant_id AND a.tenant_id = ANY(%s)"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a batch needs to know."""

    tenants: list[str]
    opening: list[tuple[str, str]]  # (tenant, account id), for operations that open an account
    keys: list[Key]
    grant_references: list[Key]
    clock_offset: timedelta


async def load(connection: Connection, wanted: Wanted, *, opened_at: datetime, genesis: bytes) -> Known:
    """Begins the transaction, locks the tenants and reads what they have: one round trip."""
    async with connection.pipeline() as pipeline:
        await connection.execute("BEGIN")
        if wanted.opening:
            tenants, ids = zip(*wanted.opening, strict=True)
            # The epoch: the first operation's own time follows it.
            await connection.execute(
                OPEN_ACCOUNTS,
                [datetime.fromtimestamp(0, opened_at.tzinfo), genesis, opened_at, list(tenants), list(ids)],
            )
        accounts = await connection.execute(LOCK_ACCOUNTS, [wanted.tenants])
        clock = await connection.execute(CLOCK, [wanted.clock_offset.total_seconds()])
        open_lots = await connection.execute(OPEN_LOTS, [wanted.tenants])
        records = await connection.execute(RECORDS_BY_KEY, [*_columns(wanted.keys, 2), wanted.tenants])
        granted = None
        if wanted.grant_references:
            granted = await connection.execute(
                GRANTS_BY_REFERENCE, [*_columns(wanted.grant_references, 2), wanted.tenants]
            )
        await pipeline.sync()
        by_tenant: dict[str, list[Lot]] = {}
        for tenant, *lot in await open_lots.fetchall():
            by_tenant.setdefault(tenant, []).append(Lot(*lot))
        ((now,),) = await clock.fetchall()
        return Known(
            now=now,
            accounts={
                row[0]: account_of(row, by_tenant.get(row[0], ())) for row in await accounts.fetchall()
            },
            records={
                (record.transaction.tenant_id, record.transaction.idempotency_key): record
                for record in map(record_of, await records.fetchall())
            },
            granted={} if granted is None else {(row[0], row[1]): row[2] for row in await granted.fetchall()},
        )


async def entries_of(connection: Connection, records: Sequence[Record]) -> dict[str, tuple[Entry, ...]]:
    """The lines of earlier transactions, for repeats: transaction id → lines."""
    transactions = [record.transaction for record in records if record.transaction.last_seq]
    asked = [(each.tenant_id, each.first_seq, each.last_seq) for each in transactions]
    if not asked:
        return {}
    cursor = await connection.execute(
        ENTRIES_OF_RECORDS, [*_columns(asked, 3), sorted({each[0] for each in asked})]
    )
    found: dict[str, list[Entry]] = {}
    for row in await cursor.fetchall():
        entry = entry_of(row)
        found.setdefault(entry.transaction_id, []).append(entry)
    return {transaction_id: tuple(lines) for transaction_id, lines in found.items()}


async def write(connection: Connection, decided: Decided) -> None:
    """Writes each table once and commits: one round trip. Returning means that it is durable."""
    async with connection.pipeline() as pipeline:
        changed = [
            account for tenant, account in decided.after.items() if account is not decided.before[tenant]
        ]
        if decided.records:
            await connection.execute(
                INSERT_TRANSACTIONS, _columns(map(_transaction_row, decided.records), 18)
            )
        if decided.outcomes:
            rows = [_entry_row(outcome, entry) for outcome in decided.outcomes for entry in outcome.entries]
            await connection.execute(INSERT_ENTRIES, _columns(rows, 14))
        added, updated = _lot_rows(decided)
        if added:
            await connection.execute(INSERT_LOTS, _columns(added, 13))
        if updated:
            await connection.execute(
                UPDATE_LOTS, [*_columns(updated, 4), sorted({row[0] for row in updated})]
            )
        if changed:
            tenants = [account.tenant_id for account in changed]
            await connection.execute(UPDATE_ACCOUNTS, [*_columns(map(_account_row, changed), 9), tenants])
        await connection.execute("COMMIT")
        await pipeline.sync()


async def roll_back(connection: Connection) -> None:
    """Ends the transaction without effect."""
    await connection.execute("ROLLBACK")


def _columns(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    columns = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(width)]


def _transaction_row(record: Record) -> tuple[Any, ...]:
    transaction = record.transaction
    return (
        transaction.tenant_id,
        transaction.id,
        transaction.idempotency_key,
        record.fingerprint,
        record.fingerprint_version,
        transaction.kind,
        transaction.amount,
        transaction.status,
        transaction.reason,
        transaction.description,
        transaction.reference_id,
        transaction.hold_id,
        transaction.refunded_transaction_id,
        json.dumps(transaction.metadata) if transaction.metadata else "{}",
        json.dumps(record.answer, separators=(",", ":")),
        transaction.first_seq,
        transaction.last_seq,
        transaction.created_at,
    )


def _entry_row(outcome: Outcome, entry: Entry) -> tuple[Any, ...]:
    return (
        outcome.transaction.tenant_id,
        entry.seq,
        entry.transaction_id,
        entry.lot,
        entry.bucket,
        entry.kind,
        entry.d_posted,
        entry.d_held,
        entry.lot_posted_after,
        entry.lot_held_after,
        entry.account_posted_after,
        entry.account_held_after,
        entry.at,
        entry.hash,
    )


def _lot_rows(decided: Decided) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Lots to insert and lots to update: each that a line touched, as it is at the end of the batch."""
    ends = {
        (outcome.transaction.tenant_id, lot.lot): lot
        for outcome in decided.outcomes
        for lot in outcome.touched
    }
    added, updated = [], []
    for (tenant, number), lot in ends.items():
        if number >= decided.before[tenant].next_lot:
            added.append(_new_lot_row(tenant, lot))
        else:
            updated.append((tenant, number, lot.remaining, lot.held))
    return added, updated


def _new_lot_row(tenant: str, lot: Lot) -> tuple[Any, ...]:
    return (
        tenant,
        lot.lot,
        lot.grant_transaction_id.replace("txn_", "lot_", 1),
        lot.bucket,
        lot.priority,
        lot.granted,
        lot.remaining,
        lot.held,
        lot.expires_at,
        lot.reference_id,
        lot.grant_transaction_id,
        lot.remaining == 0,
        lot.created_at,
    )


def _account_row(account: Account) -> tuple[Any, ...]:
    subscription = [lot for lot in account.lots if lot.bucket == SUBSCRIPTION]
    return (
        account.tenant_id,
        sum(lot.remaining for lot in subscription),
        sum(lot.remaining for lot in account.lots if lot.bucket != SUBSCRIPTION),
        max((lot.expires_at for lot in subscription if lot.expires_at is not None), default=None),
        account.held,
        account.seq,
        account.last_at,
        account.chain_head,
        account.next_lot,
    )
