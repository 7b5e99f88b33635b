"""How far the auditor has come: by tenant, and in its walks over all of them."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.rules.findings import Found
from services.ledger.store.audit.mirrors import Point, Reading

WALK = "SELECT tenant_id, until FROM audit_progress WHERE walk = :walk"

ADVANCE_WALK = """
INSERT INTO audit_progress (walk, tenant_id, until, updated_at) VALUES (:walk, :tenant_id, :until, :now)
ON CONFLICT (walk) DO UPDATE SET tenant_id = excluded.tenant_id, until = excluded.until,
    updated_at = excluded.updated_at
WHERE audit_progress.until IS NULL OR audit_progress.until <= excluded.until"""

# Whoever is ahead stays ahead: two runs at once never take each other back.
SAVE_CHECKED = """
INSERT INTO audit_state AS s (tenant_id, checked_seq, checked_head, checked_posted, checked_held, checked_at,
    reread_seq, reread_head, reread_posted, reread_held, reread_at, reread_on, created_at)
SELECT tenant_id, seq, head, posted, held, at, 0, :genesis, 0, 0, :epoch, :now, :now
FROM unnest(CAST(:tenants AS text[]), CAST(:seqs AS bigint[]), CAST(:heads AS bytea[]), CAST(:posted AS bigint[]),
    CAST(:held AS bigint[]), CAST(:ats AS timestamptz[])) AS read (tenant_id, seq, head, posted, held, at)
ORDER BY tenant_id
ON CONFLICT (tenant_id) DO UPDATE SET checked_seq = excluded.checked_seq, checked_head = excluded.checked_head,
    checked_posted = excluded.checked_posted, checked_held = excluded.checked_held,
    checked_at = excluded.checked_at
WHERE s.checked_seq < excluded.checked_seq"""

SAVE_REREAD = """
UPDATE audit_state s
SET reread_seq = read.seq, reread_head = read.head, reread_posted = read.posted, reread_held = read.held,
    reread_at = read.at, reread_on = CASE WHEN read.seq = 0 THEN :now ELSE s.reread_on END
FROM unnest(CAST(:tenants AS text[]), CAST(:seqs AS bigint[]), CAST(:heads AS bytea[]), CAST(:posted AS bigint[]),
    CAST(:held AS bigint[]), CAST(:ats AS timestamptz[])) AS read (tenant_id, seq, head, posted, held, at)
WHERE s.tenant_id = read.tenant_id"""

# A tenant that was read halfway comes first again, since its date stays what it was.
DUE_AGAIN = """
SELECT tenant_id, reread_seq, reread_head, reread_posted, reread_held, reread_at, checked_seq, checked_head
FROM audit_state WHERE reread_on < :before ORDER BY reread_on, tenant_id LIMIT :page"""

# The database's own clock, whatever the test clock says: what is written by hand is dated by it.
SPAN = """
SELECT COALESCE(CAST(:until AS timestamptz), (SELECT min(created_at) FROM tenant_credits), clock_timestamp()),
       clock_timestamp()"""

# Rows that no operation wrote: they say that they moved credits, but no line says so. `created_at` finds them without
# a walk over the history; one that was dated back is found when its tenant is read again.
STRAYS = """
SELECT t.tenant_id, t.id, t.amount, t.tx_status
FROM credit_transactions t
LEFT JOIN LATERAL (
    SELECT true AS found FROM credit_entries e
    WHERE e.tenant_id = t.tenant_id AND e.seq = t.first_seq AND e.transaction_id = t.id OFFSET 0) line ON true
WHERE t.created_at >= :since AND t.created_at < :until AND t.tx_status <> 'rejected'
  AND (t.amount <> 0 OR t.first_seq <> 0 OR t.kind NOT IN ('extend', 'revoke', 'restore'))
  AND line.found IS NULL
LIMIT :page"""


async def find_walk(db: AsyncConnection, walk: str) -> tuple[str, datetime | None]:
    """(the last tenant that the walk compared, until when it looked at transactions)."""
    row = (await db.execute(text(WALK), {"walk": walk})).first()
    return ("", None) if row is None else (row[0], row[1])


async def advance_walk(
    db: AsyncConnection, walk: str, *, tenant_id: str = "", until: datetime | None = None, now: datetime
) -> None:
    """The walk goes on from here."""
    await db.execute(text(ADVANCE_WALK), {"walk": walk, "tenant_id": tenant_id, "until": until, "now": now})


async def save(db: AsyncConnection, readings: Sequence[Reading], *, start: Point, now: datetime) -> None:
    """Keeps how far the tenants were read; those read again to their end begin anew, at `start`."""
    for again, statement in ((False, SAVE_CHECKED), (True, SAVE_REREAD)):
        read = [(each.tenant_id, each.point) for each in readings if each.again == again]
        if not read:
            continue
        points = [point for _, point in read]
        values = {
            "tenants": [tenant_id for tenant_id, _ in read],
            "seqs": [point.seq for point in points],
            "heads": [point.head for point in points],
            "posted": [point.posted for point in points],
            "held": [point.held for point in points],
            "ats": [point.at for point in points],
            "now": now,
        }
        if not again:
            values |= {"genesis": start.head, "epoch": start.at}
        await db.execute(text(statement), values)


async def list_due_again(db: AsyncConnection, *, before: datetime, page: int) -> list[Reading]:
    """Tenants whose lines were not all read since `before`, the longest ago first."""
    result = await db.execute(text(DUE_AGAIN), {"before": before, "page": page})
    return [Reading(row[0], Point(*row[1:6]), until=row[6], head=row[7], again=True) for row in result]


async def find_span(db: AsyncConnection, until: datetime | None) -> tuple[datetime, datetime]:
    """(since when transactions were not looked at, now): no account has any that is older than itself."""
    row = (await db.execute(text(SPAN), {"until": until})).one()
    return row[0], row[1]


async def list_strays(
    db: AsyncConnection, *, since: datetime, until: datetime, page: int
) -> list[tuple[Found, bool]]:
    """(a transaction without lines, whether it moved credits), decided in this span of time."""
    result = await db.execute(text(STRAYS), {"since": since, "until": until, "page": page})
    return [
        (
            Found(
                row[0], "stray_transaction", {"transaction_id": row[1], "amount": row[2], "status": row[3]}
            ),
            row[2] != 0,
        )
        for row in result
    ]
