"""Questions about credits, answered from committed rows in one snapshot each."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.rules import lots
from services.ledger.rules.model import Account, Entry, Lot, Transaction
from services.ledger.store.load import ENTRY, TRANSACTION
from services.ledger.store.rows import account_of, entry_of

# One statement, so that the account, its lots and its holds are of one moment. What holds that are due have set aside
# counts as free, whether or not their lapse is booked.
ACCOUNT = """
WITH clock AS MATERIALIZED (SELECT clock_timestamp() + make_interval(secs => :offset) AS now),
account AS MATERIALIZED (SELECT * FROM tenant_credits WHERE tenant_id = :tenant_id),
due AS MATERIALIZED (
    SELECT leg.lot, sum(leg.open)::bigint AS held
    FROM credit_holds h
    CROSS JOIN LATERAL (
        SELECT lot, reserved - captured - released AS open FROM credit_hold_legs
        WHERE tenant_id = :tenant_id AND hold_id = h.id OFFSET 0) leg
    WHERE h.tenant_id = :tenant_id AND h.open
      AND h.expires_at <= (SELECT greatest(clock.now, account.last_at) FROM clock, account)
    GROUP BY leg.lot)
SELECT a.tenant_id, a.seq, a.last_at, a.chain_head, a.state, a.frozen_reason, a.next_lot, a.frozen_at, clock.now,
       b.lot, b.bucket, b.priority, b.granted, b.remaining, b.held - coalesce(due.held, 0), b.expires_at,
       b.reference_id, b.grant_transaction_id, b.created_at, b.claimed
FROM clock, account a
LEFT JOIN credit_buckets b ON b.tenant_id = :tenant_id AND NOT b.closed
LEFT JOIN due ON due.lot = b.lot"""

# What every lot held after its last line up to a seq: the lines themselves, not the current rows. Holds that lapsed
# after that line and up to the moment asked about count as lapsed, though their lapse was booked later.
LOTS_AT_SEQ = """
WITH lapsed AS MATERIALIZED (
    SELECT leg.lot, sum(leg.left_over)::bigint AS held
    FROM (
        SELECT id FROM credit_holds
        WHERE tenant_id = :tenant_id AND open AND expires_at > :since AND expires_at <= :until
        UNION ALL
        SELECT id FROM credit_holds
        WHERE tenant_id = :tenant_id AND status = 'expired' AND expires_at > :since AND expires_at <= :until) h
    CROSS JOIN LATERAL (
        SELECT lot, reserved - captured AS left_over FROM credit_hold_legs
        WHERE tenant_id = :tenant_id AND hold_id = h.id OFFSET 0) leg
    GROUP BY leg.lot)
SELECT b.lot, b.bucket, b.priority, b.granted, e.lot_posted_after, e.lot_held_after - coalesce(lapsed.held, 0),
       b.expires_at, b.reference_id, b.grant_transaction_id, b.created_at
FROM credit_buckets b
CROSS JOIN LATERAL (
    SELECT lot_posted_after, lot_held_after FROM credit_entries
    WHERE tenant_id = :tenant_id AND lot = b.lot AND seq <= :seq ORDER BY seq DESC LIMIT 1) e
LEFT JOIN lapsed ON lapsed.lot = b.lot
WHERE b.tenant_id = :tenant_id AND e.lot_posted_after > 0"""

# Seq is gapless and `at` never decreases with it, so halving finds the line without an index on `at`.
SEQ_AT = """
WITH RECURSIVE halves (low, high) AS (
    SELECT 0::bigint, seq FROM tenant_credits WHERE tenant_id = :tenant_id
    UNION ALL
    SELECT CASE WHEN e.at <= :at THEN e.seq ELSE low END, CASE WHEN e.at <= :at THEN high ELSE e.seq - 1 END
    FROM halves
    CROSS JOIN LATERAL (
        SELECT seq, at FROM credit_entries WHERE tenant_id = :tenant_id AND seq = low + (high - low + 1) / 2) e
    WHERE low < high)
SELECT e.seq, e.at FROM halves JOIN credit_entries e ON e.tenant_id = :tenant_id AND e.seq = low WHERE low = high"""
LINE = "SELECT seq, at FROM credit_entries WHERE tenant_id = :tenant_id AND seq = :seq"

# Newest first by id, which sorts as the operations were decided; 'txo' follows every id. The filters apply to what
# the inner query reads, so that a rare reason costs a bounded walk instead of the whole history.
TRANSACTIONS = f"""
SELECT {TRANSACTION} FROM (
    SELECT * FROM credit_transactions WHERE tenant_id = :tenant_id AND id < COALESCE(:before, 'txo')
    ORDER BY id DESC LIMIT :scan) t
WHERE (CAST(:reason AS text) IS NULL OR starts_with(t.reason, :reason))
  AND (:rejected OR t.tx_status <> 'rejected')
ORDER BY t.id DESC LIMIT :page"""
SCAN_MAX = 10_000

END_OF_SCAN = """
SELECT id FROM credit_transactions WHERE tenant_id = :tenant_id AND id < COALESCE(:before, 'txo')
ORDER BY id DESC OFFSET :scan - 1 LIMIT 1"""

TRANSACTION_BY_ID = (
    f"SELECT {TRANSACTION} FROM credit_transactions t WHERE t.tenant_id = :tenant_id AND t.id = :value"
)
TRANSACTION_BY_KEY = f"""
SELECT {TRANSACTION} FROM credit_transactions t WHERE t.tenant_id = :tenant_id AND t.idempotency_key = :value"""

ENTRIES = f"""
SELECT {ENTRY} FROM credit_entries e
WHERE e.tenant_id = :tenant_id AND e.transaction_id = ANY(:ids) AND e.seq BETWEEN :first AND :last ORDER BY e.seq"""

GRANTS = """
SELECT lot, bucket, priority, granted, remaining, held, expires_at, reference_id, grant_transaction_id, created_at
FROM credit_buckets WHERE tenant_id = :tenant_id AND lot < COALESCE(:before, 9223372036854775807)
ORDER BY lot DESC LIMIT :page"""

# The clock is a query of its own: it is then read once, and the index serves the comparison.
_NOW = "(SELECT clock_timestamp() + make_interval(secs => :offset))"
_ACTIVE = "NOT EXISTS (SELECT FROM tenant_credits a WHERE a.tenant_id = due.tenant_id AND a.state = 'frozen')"

# A lot whose rest is all held waits for its hold, a frozen account for its end: settling them would change nothing.
LOTS_DUE = f"""
FROM credit_buckets due WHERE NOT closed AND remaining > held AND expires_at <= {_NOW} AND {_ACTIVE}"""
HOLDS_DUE = f"FROM credit_holds due WHERE open AND expires_at <= {_NOW} AND {_ACTIVE}"

_ASKED = "due.tenant_id <> ALL(CAST(:without AS text[]))"
TENANTS_DUE = f"""
(SELECT tenant_id, expires_at {LOTS_DUE} AND {_ASKED} ORDER BY expires_at, tenant_id LIMIT :page)
UNION ALL
(SELECT tenant_id, expires_at {HOLDS_DUE} AND {_ASKED} ORDER BY expires_at, tenant_id LIMIT :page)
ORDER BY 2, 1 LIMIT :page"""

DUE = f"""
SELECT (SELECT count(*) {LOTS_DUE}), (SELECT coalesce(sum(remaining - held), 0)::bigint {LOTS_DUE}),
       (SELECT count(*) {HOLDS_DUE})"""


async def find_account(
    db: AsyncConnection, tenant_id: str, offset: timedelta
) -> tuple[Account, datetime] | None:
    """The account with its open lots, and the database's time."""
    result = await db.execute(text(ACCOUNT), {"tenant_id": tenant_id, "offset": offset.total_seconds()})
    rows = result.all()
    if not rows:
        return None
    open_lots = [Lot(*row[9:]) for row in rows if row[9] is not None]
    return account_of(rows[0][:8], open_lots), rows[0][8]


async def has_account(db: AsyncConnection, tenant_id: str) -> bool:
    """Tells an empty answer from a tenant that is not there."""
    found = await db.execute(
        text("SELECT FROM tenant_credits WHERE tenant_id = :tenant_id"), {"tenant_id": tenant_id}
    )
    return found.first() is not None


async def list_lots_at(
    db: AsyncConnection, tenant_id: str, seq: int, *, since: datetime, until: datetime
) -> tuple[Lot, ...]:
    """The lots after line `seq` of `since`, less what lapsed up to `until`; recomputed from the lines."""
    values = {"tenant_id": tenant_id, "seq": seq, "since": since, "until": until}
    result = await db.execute(text(LOTS_AT_SEQ), values)
    return lots.in_burn_order(Lot(*row) for row in result)


async def find_line(
    db: AsyncConnection, tenant_id: str, *, seq: int | None, at: datetime | None
) -> tuple[int, datetime] | None:
    """Line `seq`, or the last line at or before `at`: (seq, at)."""
    statement, values = (LINE, {"seq": seq}) if seq is not None else (SEQ_AT, {"at": at})
    row = (await db.execute(text(statement), {"tenant_id": tenant_id, **values})).first()
    return None if row is None else (row[0], row[1])


async def list_transactions(
    db: AsyncConnection, tenant_id: str, *, before: str | None, reason: str | None, rejected: bool, page: int
) -> tuple[list[tuple[Transaction, tuple[Entry, ...]]], str | None]:
    """(transactions with their lines, newest first; the id that the next page comes before, None at the end)."""
    where = {"tenant_id": tenant_id, "before": before, "scan": SCAN_MAX}
    values = {**where, "reason": reason, "rejected": rejected, "page": page + 1}
    found = [Transaction(*row) for row in await db.execute(text(TRANSACTIONS), values)]
    if len(found) > page:
        found = found[:page]
        following: str | None = found[-1].id
    else:
        following = (await db.execute(text(END_OF_SCAN), where)).scalar()
    return await _with_entries(db, tenant_id, found), following


async def find_transaction(
    db: AsyncConnection, tenant_id: str, *, transaction_id: str | None, idempotency_key: str | None
) -> tuple[Transaction, tuple[Entry, ...]] | None:
    """One transaction with its lines, by its id or by its key."""
    statement = TRANSACTION_BY_KEY if transaction_id is None else TRANSACTION_BY_ID
    value = transaction_id if transaction_id is not None else idempotency_key
    row = (await db.execute(text(statement), {"tenant_id": tenant_id, "value": value})).first()
    if row is None:
        return None
    return (await _with_entries(db, tenant_id, [Transaction(*row)]))[0]


async def list_grants(db: AsyncConnection, tenant_id: str, *, before: int | None, page: int) -> list[Lot]:
    """Lots, newest first, spent and expired ones included."""
    result = await db.execute(text(GRANTS), {"tenant_id": tenant_id, "before": before, "page": page})
    return [Lot(*row) for row in result]


async def list_tenants_due(
    db: AsyncConnection, offset: timedelta, page: int, *, without: Sequence[str] = ()
) -> list[str]:
    """Tenants of up to `page` lots and holds whose end has come and is not booked, the longest due first."""
    values = {"offset": offset.total_seconds(), "page": page, "without": list(without)}
    result = await db.execute(text(TENANTS_DUE), values)
    return list(dict.fromkeys(row[0] for row in result))


async def count_due(db: AsyncConnection, offset: timedelta) -> tuple[int, int, int]:
    """(lots, credits in them, holds) whose end has come and is not booked."""
    row = (await db.execute(text(DUE), {"offset": offset.total_seconds()})).one()
    return row[0], row[1], row[2]


async def _with_entries(
    db: AsyncConnection, tenant_id: str, found: Sequence[Transaction]
) -> list[tuple[Transaction, tuple[Entry, ...]]]:
    booked = [transaction for transaction in found if transaction.last_seq]
    by_transaction: dict[str, list[Entry]] = {}
    if booked:
        values = {
            "tenant_id": tenant_id,
            "ids": [transaction.id for transaction in booked],
            "first": min(transaction.first_seq for transaction in booked),
            "last": max(transaction.last_seq for transaction in booked),
        }
        for row in await db.execute(text(ENTRIES), values):
            entry = entry_of(row)
            by_transaction.setdefault(entry.transaction_id, []).append(entry)
    return [(each, tuple(by_transaction.get(each.id, ()))) for each in found]
