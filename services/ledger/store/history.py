"""Everything that a tenant's ledger consists of, read in order for its recomputation."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.rules.evidence import Header, HoldRow, Line, LotRow, Refunded, Standing

ACCOUNT = """
SELECT a.seq, a.chain_head, a.balance, a.subscription_balance, a.permanent_balance, a.held,
       a.subscription_expires_at, a.next_lot, s.checked_seq, s.checked_head
FROM tenant_credits a LEFT JOIN audit_state s ON s.tenant_id = a.tenant_id WHERE a.tenant_id = :tenant_id"""

TENANTS = "SELECT tenant_id FROM tenant_credits WHERE tenant_id > :after ORDER BY tenant_id LIMIT :page"

LINES = """
SELECT e.seq, e.transaction_id, e.lot, e.bucket, e.kind, e.d_posted, e.d_held, e.lot_posted_after, e.lot_held_after,
       e.account_posted_after, e.account_held_after, e.refunded_seq, e.at, e.hash,
       t.id, t.kind, t.idempotency_key, t.reason, t.reference_id, t.amount, t.tx_status, t.hold_id,
       t.refunded_transaction_id, t.first_seq, t.last_seq, t.created_at, r.kind, r.d_posted, r.lot, r.transaction_id
FROM (SELECT * FROM credit_entries WHERE tenant_id = :tenant_id AND seq > :after ORDER BY seq LIMIT :page) e
LEFT JOIN LATERAL (
    SELECT * FROM credit_transactions WHERE tenant_id = :tenant_id AND id = e.transaction_id OFFSET 0) t ON true
LEFT JOIN LATERAL (
    SELECT kind, d_posted, lot, transaction_id FROM credit_entries
    WHERE tenant_id = :tenant_id AND seq = e.refunded_seq OFFSET 0) r ON true
ORDER BY e.seq"""

LOTS = """
SELECT b.lot, b.bucket, b.granted, b.remaining, b.held, b.claimed, b.closed, b.expires_at, b.pinned_until,
       b.grant_transaction_id, COALESCE(r.claimed, 0), COALESCE(r.taken, 0)
FROM credit_buckets b
LEFT JOIN (
    SELECT lot, sum(claimed)::bigint AS claimed, sum(taken)::bigint AS taken FROM credit_revocations
    WHERE tenant_id = :tenant_id GROUP BY lot) r ON r.lot = b.lot
WHERE b.tenant_id = :tenant_id ORDER BY b.lot"""

HOLDS = """
SELECT h.id, h.transaction_id, h.status, h.open, h.reserved, h.captured, h.released, COALESCE(l.reserved, 0),
       COALESCE(l.captured, 0), COALESCE(l.released, 0)
FROM credit_holds h
LEFT JOIN (
    SELECT hold_id, sum(reserved)::bigint AS reserved, sum(captured)::bigint AS captured,
           sum(released)::bigint AS released
    FROM credit_hold_legs WHERE tenant_id = :tenant_id GROUP BY hold_id) l ON l.hold_id = h.id
WHERE h.tenant_id = :tenant_id ORDER BY h.id"""

OPEN_LEGS = """
SELECT l.lot, sum(l.reserved - l.captured - l.released)::bigint
FROM credit_holds h JOIN credit_hold_legs l ON l.tenant_id = h.tenant_id AND l.hold_id = h.id
WHERE h.tenant_id = :tenant_id AND h.open GROUP BY l.lot"""

SUMS = """
SELECT COALESCE(sum(amount), 0)::bigint, count(*) FILTER (WHERE first_seq <> 0),
       count(*) FILTER (WHERE first_seq = 0 AND tx_status <> 'rejected'
           AND (amount <> 0 OR kind NOT IN ('extend', 'revoke', 'restore')))
FROM credit_transactions WHERE tenant_id = :tenant_id"""

STRAYS = """
SELECT t.id FROM credit_transactions t
WHERE t.tenant_id = :tenant_id AND t.tx_status <> 'rejected'
  AND (t.amount <> 0 OR t.first_seq <> 0 OR t.kind NOT IN ('extend', 'revoke', 'restore'))
  AND NOT EXISTS (
    SELECT FROM credit_entries e
    WHERE e.tenant_id = t.tenant_id AND e.seq = t.first_seq AND e.transaction_id = t.id)
ORDER BY t.created_at LIMIT 20"""

DUPLICATES = """
SELECT kind, reference_id, count(*) FROM credit_transactions
WHERE tenant_id = :tenant_id AND kind IN ('grant', 'revoke', 'restore') AND tx_status <> 'rejected'
GROUP BY kind, reference_id HAVING count(*) > 1 LIMIT 20"""


async def list_tenants(db: AsyncConnection, *, after: str, page: int) -> list[str]:
    """The tenants that follow, in order."""
    return list((await db.execute(text(TENANTS), {"after": after, "page": page})).scalars())


async def find_checked(db: AsyncConnection, tenant_id: str) -> tuple[bool, tuple[int, bytes] | None]:
    """(whether there is an account, the line that the auditor checked last and its hash)."""
    row = (await db.execute(text(ACCOUNT), {"tenant_id": tenant_id})).first()
    if row is None:
        return False, None
    return True, None if row.checked_seq is None else (row.checked_seq, row.checked_head)


async def list_lines(db: AsyncConnection, tenant_id: str, *, after: int, page: int) -> list[Line]:
    """The lines that follow, in order, with what their hashes cover and what they give back."""
    result = await db.execute(text(LINES), {"tenant_id": tenant_id, "after": after, "page": page})
    return [
        Line._make(
            (
                *row[:14],
                None if row[14] is None else Header(*row[14:26]),
                None if row[26] is None else Refunded(*row[26:]),
            )
        )
        for row in result
    ]


async def list_ends(db: AsyncConnection, tenant_id: str) -> dict[int, datetime | None]:
    """When the credits of each lot expire."""
    return {row.lot: row.expires_at for row in await _lots(db, tenant_id)}


async def find_standing(db: AsyncConnection, tenant_id: str, *, booked: int) -> Standing:
    """What the other tables say; `booked`: the transactions that were seen with their lines."""
    asked = {"tenant_id": tenant_id}
    account = (await db.execute(text(ACCOUNT), asked)).one()
    ledger_sum, with_lines, without = (await db.execute(text(SUMS), asked)).one()
    strays: list[str] = []
    if without or with_lines != booked:
        strays = list((await db.execute(text(STRAYS), asked)).scalars())
    return Standing(
        seq=account.seq,
        chain_head=account.chain_head,
        balance=account.balance,
        subscription_balance=account.subscription_balance,
        permanent_balance=account.permanent_balance,
        held=account.held,
        subscription_expires_at=account.subscription_expires_at,
        next_lot=account.next_lot,
        lots=await _lots(db, tenant_id),
        holds=[HoldRow(*row) for row in await db.execute(text(HOLDS), asked)],
        open_legs={row[0]: row[1] for row in await db.execute(text(OPEN_LEGS), asked)},
        ledger_sum=ledger_sum,
        strays=strays,
        duplicates=[(row[0], row[1], row[2]) for row in await db.execute(text(DUPLICATES), asked)],
    )


async def _lots(db: AsyncConnection, tenant_id: str) -> list[LotRow]:
    return [LotRow(*row) for row in await db.execute(text(LOTS), {"tenant_id": tenant_id})]
