"""What lots, holds and revocations say, against the lines and against each other."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.rules.findings import Found
from services.ledger.store.audit.found import run
from services.ledger.store.audit.mirrors import Reading

# `after` 0: every lot that the tenant ever had; otherwise those that are open, and those that later lines moved.
NUMBERS = """
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:afters AS bigint[]), CAST(:untils AS bigint[]))
        AS asked (tenant_id, after, until)),
numbers AS MATERIALIZED (
    SELECT tenant_id, lot FROM credit_buckets WHERE tenant_id = ANY(:tenants) AND NOT closed
    UNION
    SELECT tenant_id, lot FROM credit_revocations WHERE tenant_id = ANY(:tenants) AND claimed > 0
    UNION
    SELECT a.tenant_id, n FROM asked JOIN tenant_credits a USING (tenant_id)
    CROSS JOIN LATERAL generate_series(1, a.next_lot - 1) n WHERE asked.after = 0
    UNION
    SELECT asked.tenant_id, e.lot FROM asked CROSS JOIN LATERAL (
        SELECT lot FROM credit_entries
        WHERE tenant_id = asked.tenant_id AND seq > asked.after AND seq <= asked.until AND asked.after > 0
        OFFSET 0) e)"""

LOTS = f"""{NUMBERS},
legs AS MATERIALIZED (
    SELECT h.tenant_id, l.lot, sum(l.reserved - l.captured - l.released)::bigint AS open
    FROM credit_holds h CROSS JOIN LATERAL (
        SELECT * FROM credit_hold_legs WHERE tenant_id = h.tenant_id AND hold_id = h.id OFFSET 0) l
    WHERE h.tenant_id = ANY(:tenants) AND h.open GROUP BY h.tenant_id, l.lot),
claims AS MATERIALIZED (
    SELECT tenant_id, lot, sum(claimed)::bigint AS claimed FROM credit_revocations
    WHERE tenant_id = ANY(:tenants) AND claimed > 0 GROUP BY tenant_id, lot),
compared AS MATERIALIZED (
    SELECT n.tenant_id, n.lot, b.id, b.closed, b.remaining, b.held, b.claimed, b.granted,
           COALESCE(origin.posted, 0) AS line_granted, COALESCE(line.posted, 0) AS line_posted,
           COALESCE(line.held, 0) AS line_held, COALESCE(legs.open, 0) AS legs_open,
           COALESCE(claims.claimed, 0) AS open_claims
    FROM numbers n
    LEFT JOIN LATERAL (
        SELECT * FROM credit_buckets WHERE tenant_id = n.tenant_id AND lot = n.lot OFFSET 0) b ON true
    LEFT JOIN LATERAL (
        SELECT lot_posted_after AS posted, lot_held_after AS held FROM credit_entries
        WHERE tenant_id = n.tenant_id AND lot = n.lot ORDER BY seq DESC LIMIT 1) line ON true
    LEFT JOIN LATERAL (
        SELECT sum(e.d_posted)::bigint AS posted
        FROM (SELECT first_seq, last_seq FROM credit_transactions
              WHERE tenant_id = n.tenant_id AND id = b.grant_transaction_id OFFSET 0) t
        CROSS JOIN LATERAL (
            SELECT d_posted FROM credit_entries
            WHERE tenant_id = n.tenant_id AND seq BETWEEN t.first_seq AND t.last_seq AND lot = n.lot OFFSET 0) e
    ) origin ON true
    LEFT JOIN legs ON legs.tenant_id = n.tenant_id AND legs.lot = n.lot
    LEFT JOIN claims ON claims.tenant_id = n.tenant_id AND claims.lot = n.lot)
SELECT tenant_id, 'lot_mismatch' AS check_type, jsonb_build_object(
    'lot', lot, 'missing', id IS NULL, 'remaining', remaining, 'held', held, 'expected_remaining', line_posted,
    'expected_held', line_held, 'closed', closed, 'granted', granted, 'expected_granted', line_granted) AS observed
FROM compared
WHERE id IS NULL OR remaining <> line_posted OR held <> line_held OR closed <> (remaining = 0)
   OR granted <> line_granted
UNION ALL
SELECT tenant_id, 'hold_mismatch', jsonb_build_object('lot', lot, 'held', held, 'open', legs_open)
FROM compared WHERE held <> legs_open
UNION ALL
SELECT tenant_id, 'claim_mismatch',
       jsonb_build_object('lot', lot, 'claimed', claimed, 'expected_claimed', open_claims)
FROM compared WHERE claimed <> open_claims"""

# Open holds, and those that the new lines are about.
HOLDS = """
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:afters AS bigint[]), CAST(:untils AS bigint[]))
        AS asked (tenant_id, after, until)),
ids AS MATERIALIZED (
    SELECT tenant_id, id FROM credit_holds WHERE tenant_id = ANY(:tenants) AND open
    UNION
    SELECT h.tenant_id, h.id FROM asked JOIN credit_holds h USING (tenant_id) WHERE asked.after = 0
    UNION
    SELECT asked.tenant_id, t.hold_id FROM asked CROSS JOIN LATERAL (
        SELECT DISTINCT transaction_id FROM credit_entries
        WHERE tenant_id = asked.tenant_id AND seq > asked.after AND seq <= asked.until AND asked.after > 0
          AND kind IN ('hold', 'capture', 'release') OFFSET 0) e
    CROSS JOIN LATERAL (
        SELECT hold_id FROM credit_transactions
        WHERE tenant_id = asked.tenant_id AND id = e.transaction_id OFFSET 0) t
    WHERE t.hold_id <> '')
SELECT i.tenant_id, 'hold_mismatch', jsonb_build_object(
    'hold_id', i.id, 'missing', h.id IS NULL, 'status', h.status,
    'stored', jsonb_build_array(h.reserved, h.captured, h.released),
    'legs', jsonb_build_array(legs.reserved, legs.captured, legs.released))
FROM ids i
LEFT JOIN LATERAL (SELECT * FROM credit_holds WHERE tenant_id = i.tenant_id AND id = i.id OFFSET 0) h ON true
CROSS JOIN LATERAL (
    SELECT COALESCE(sum(reserved), 0)::bigint AS reserved, COALESCE(sum(captured), 0)::bigint AS captured,
           COALESCE(sum(released), 0)::bigint AS released
    FROM credit_hold_legs WHERE tenant_id = i.tenant_id AND hold_id = i.id OFFSET 0) legs
WHERE h.id IS NULL OR (h.reserved, h.captured, h.released) <> (legs.reserved, legs.captured, legs.released)
   OR h.open <> (h.status = 'held') OR h.open <> (h.captured + h.released < h.reserved)"""

# What lines came to over a whole history: only where all of its lines were read.
WHOLE = """
SELECT r.tenant_id, 'claim_mismatch', jsonb_build_object('lot', r.lot, 'revoked', r.taken, 'expected_revoked', l.taken)
FROM (
    SELECT tenant_id, lot, sum(taken)::bigint AS taken FROM credit_revocations WHERE tenant_id = ANY(:tenants)
    GROUP BY tenant_id, lot) r
CROSS JOIN LATERAL (
    SELECT -COALESCE(sum(d_posted), 0)::bigint AS taken FROM credit_entries
    WHERE tenant_id = r.tenant_id AND lot = r.lot AND kind = 'revoke' OFFSET 0) l
WHERE r.taken <> l.taken
UNION ALL
SELECT h.tenant_id, 'hold_mismatch', jsonb_build_object(
    'hold_id', h.id, 'transaction_id', h.transaction_id,
    'stored', jsonb_build_array(h.reserved, h.captured, h.released),
    'expected', jsonb_build_array(l.reserved, l.captured, l.released))
FROM credit_holds h
LEFT JOIN (
    SELECT t.tenant_id, t.hold_id, min(t.id) FILTER (WHERE e.kind = 'hold') AS placed_by,
           COALESCE(sum(e.d_held) FILTER (WHERE e.kind = 'hold'), 0)::bigint AS reserved,
           COALESCE(-sum(e.d_held) FILTER (WHERE e.kind = 'capture'), 0)::bigint AS captured,
           COALESCE(-sum(e.d_held) FILTER (WHERE e.kind = 'release'), 0)::bigint AS released
    FROM credit_transactions t
    CROSS JOIN LATERAL (
        SELECT kind, d_held FROM credit_entries
        WHERE tenant_id = t.tenant_id AND seq BETWEEN t.first_seq AND t.last_seq OFFSET 0) e
    WHERE t.tenant_id = ANY(:tenants) AND t.hold_id <> '' AND t.first_seq > 0
    GROUP BY t.tenant_id, t.hold_id) l ON l.tenant_id = h.tenant_id AND l.hold_id = h.id
WHERE h.tenant_id = ANY(:tenants)
  AND (h.transaction_id, h.reserved, h.captured, h.released)
      IS DISTINCT FROM (l.placed_by, l.reserved, l.captured, l.released)"""

# Reads every transaction of the tenant: only where all of its lines were read, or something is wrong.
SUMS = """
SELECT asked.tenant_id, 'ledger_sum_mismatch', jsonb_build_object(
    'balance', COALESCE(line.posted, 0), 'ledger_sum', sums.amount)
FROM unnest(CAST(:tenants AS text[])) AS asked (tenant_id)
LEFT JOIN LATERAL (
    SELECT account_posted_after AS posted FROM credit_entries
    WHERE tenant_id = asked.tenant_id ORDER BY seq DESC LIMIT 1) line ON true
CROSS JOIN LATERAL (
    SELECT COALESCE(sum(amount), 0)::bigint AS amount FROM credit_transactions
    WHERE tenant_id = asked.tenant_id OFFSET 0) sums
WHERE sums.amount <> COALESCE(line.posted, 0)"""


async def check(db: AsyncConnection, readings: Sequence[tuple[Reading, int]]) -> list[Found]:
    """Lots, holds and claims of tenants whose lines were all read, `after` a line: those that later lines moved."""
    values = {
        "tenants": [reading.tenant_id for reading, _ in readings],
        "afters": [after for _, after in readings],
        "untils": [reading.until for reading, _ in readings],
    }
    return await run(db, [LOTS, HOLDS], values)


async def check_whole(db: AsyncConnection, tenants: Sequence[str]) -> list[Found]:
    """Holds, revocations and SUM(amount) of tenants, against all of their lines."""
    return await run(db, [WHOLE, SUMS], {"tenants": list(tenants)}) if tenants else []


async def check_sums(db: AsyncConnection, tenants: Sequence[str]) -> list[Found]:
    """SUM(amount) over all transactions, against what the lines came to."""
    return await run(db, [SUMS], {"tenants": list(tenants)}) if tenants else []
