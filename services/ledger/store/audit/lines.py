"""What new lines say about each other, about their transactions and about their lots."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.rules.evidence import Header, Line
from services.ledger.rules.findings import Found
from services.ledger.store.audit.found import run
from services.ledger.store.audit.mirrors import Reading

ASKED = """
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:afters AS bigint[]), CAST(:untils AS bigint[]),
        CAST(:posted AS bigint[]), CAST(:held AS bigint[]), CAST(:ats AS timestamptz[]))
        AS asked (tenant_id, after, until, posted, held, at))"""

LINES = f"""{ASKED},
lines AS MATERIALIZED (
    SELECT e.*, COALESCE(lag(e.seq) OVER tenant, asked.after) AS seq_before,
           COALESCE(lag(e.at) OVER tenant, asked.at) AS at_before,
           COALESCE(lag(e.account_posted_after) OVER tenant, asked.posted) AS posted_before,
           COALESCE(lag(e.account_held_after) OVER tenant, asked.held) AS held_before,
           COALESCE(lag(e.lot_posted_after) OVER lot, (
               SELECT p.lot_posted_after FROM credit_entries p
               WHERE p.tenant_id = e.tenant_id AND p.lot = e.lot AND p.seq <= asked.after
               ORDER BY p.seq DESC LIMIT 1), 0) AS lot_posted_before,
           COALESCE(lag(e.lot_held_after) OVER lot, (
               SELECT p.lot_held_after FROM credit_entries p
               WHERE p.tenant_id = e.tenant_id AND p.lot = e.lot AND p.seq <= asked.after
               ORDER BY p.seq DESC LIMIT 1), 0) AS lot_held_before
    FROM asked CROSS JOIN LATERAL (
        SELECT * FROM credit_entries
        WHERE tenant_id = asked.tenant_id AND seq > asked.after AND seq <= asked.until OFFSET 0) e
    WINDOW tenant AS (PARTITION BY e.tenant_id ORDER BY e.seq),
           lot AS (PARTITION BY e.tenant_id, e.lot ORDER BY e.seq))"""

BOOKED = f"""{LINES},
booked AS MATERIALIZED (
    SELECT g.*, t.*
    FROM (
        SELECT tenant_id, transaction_id, min(seq) AS first_line, max(seq) AS last_line, count(*) AS lines,
               sum(d_posted)::bigint AS moved, min(at) AS first_at, max(at) AS last_at,
               array_agg(DISTINCT kind) AS line_kinds
        FROM lines GROUP BY tenant_id, transaction_id) g
    LEFT JOIN LATERAL (
        SELECT t.id, t.kind, t.amount, t.tx_status, t.first_seq, t.last_seq, t.created_at, t.reference_id
        FROM credit_transactions t WHERE t.tenant_id = g.tenant_id AND t.id = g.transaction_id OFFSET 0) t ON true)"""

OF_LINES = f"""{LINES}
SELECT tenant_id, check_type, observed FROM (
    SELECT tenant_id, seq, 'sequence_gap' AS check_type,
           jsonb_build_object('missing_seq', seq_before + 1, 'found_seq', seq) AS observed
    FROM lines WHERE seq <> seq_before + 1
    UNION ALL
    SELECT a.tenant_id, a.until, 'sequence_gap',
           jsonb_build_object('missing_seq', COALESCE(found.last, a.after) + 1, 'seq', a.until)
    FROM asked a LEFT JOIN (SELECT tenant_id, max(seq) AS last FROM lines GROUP BY 1) found USING (tenant_id)
    WHERE COALESCE(found.last, a.after) <> a.until
    UNION ALL
    SELECT tenant_id, seq, 'time_went_back', jsonb_build_object('seq', seq, 'at', at, 'before', at_before)
    FROM lines WHERE at < at_before
    UNION ALL
    SELECT tenant_id, seq, 'entry_mismatch', jsonb_build_object(
        'seq', seq, 'transaction_id', transaction_id,
        'totals_after', jsonb_build_array(lot_posted_after, lot_held_after, account_posted_after, account_held_after),
        'expected', jsonb_build_array(lot_posted_before + d_posted, lot_held_before + d_held,
            posted_before + d_posted, held_before + d_held))
    FROM lines
    WHERE lot_posted_after <> lot_posted_before + d_posted OR lot_held_after <> lot_held_before + d_held
       OR account_posted_after <> posted_before + d_posted OR account_held_after <> held_before + d_held
    UNION ALL
    SELECT tenant_id, seq, 'lot_mismatch',
           jsonb_build_object('seq', seq, 'lot', lot, 'posted', lot_posted_after, 'held', lot_held_after)
    FROM lines WHERE lot_held_after > lot_posted_after
    UNION ALL
    SELECT l.tenant_id, l.seq, 'expired_spent',
           jsonb_build_object('seq', l.seq, 'lot', l.lot, 'at', l.at, 'expired_at', b.expires_at)
    FROM lines l CROSS JOIN LATERAL (
        SELECT expires_at FROM credit_buckets WHERE tenant_id = l.tenant_id AND lot = l.lot OFFSET 0) b
    WHERE l.kind IN ('debit', 'hold', 'adjustment') AND l.d_posted <= 0 AND l.at >= b.expires_at
    UNION ALL
    SELECT l.tenant_id, l.seq, 'entry_mismatch',
           jsonb_build_object('seq', l.seq, 'lot', l.lot, 'bucket', l.bucket, 'expected_bucket', b.bucket)
    FROM lines l CROSS JOIN LATERAL (
        SELECT bucket FROM credit_buckets WHERE tenant_id = l.tenant_id AND lot = l.lot OFFSET 0) b
    WHERE l.bucket <> b.bucket
    UNION ALL
    SELECT l.tenant_id, l.seq, 'entry_mismatch', jsonb_build_object(
        'seq', l.seq, 'refunded_seq', l.refunded_seq, 'refunded_transaction', source.transaction_id,
        'refunded_lot', source.lot)
    FROM lines l
    CROSS JOIN LATERAL (
        SELECT transaction_id, lot FROM credit_entries
        WHERE tenant_id = l.tenant_id AND seq = l.refunded_seq OFFSET 0) source
    CROSS JOIN LATERAL (
        SELECT refunded_transaction_id FROM credit_transactions
        WHERE tenant_id = l.tenant_id AND id = l.transaction_id OFFSET 0) t
    LEFT JOIN LATERAL (
        SELECT grant_transaction_id FROM credit_buckets
        WHERE tenant_id = l.tenant_id AND lot = l.lot OFFSET 0) b ON true
    WHERE l.refunded_seq IS NOT NULL AND (
        source.transaction_id <> t.refunded_transaction_id
        OR (source.lot <> l.lot AND b.grant_transaction_id IS DISTINCT FROM l.transaction_id))
    UNION ALL
    SELECT l.tenant_id, l.seq, 'refund_exceeds_debit', jsonb_build_object(
        'seq', l.seq, 'refunded_seq', l.refunded_seq, 'taken', COALESCE(taken.credits, 0), 'refunded', given.credits)
    FROM lines l
    LEFT JOIN LATERAL (
        SELECT -d_posted AS credits FROM credit_entries
        WHERE tenant_id = l.tenant_id AND seq = l.refunded_seq AND seq < l.seq AND kind IN ('debit', 'capture')
        OFFSET 0) taken ON true
    CROSS JOIN LATERAL (
        SELECT sum(d_posted)::bigint AS credits FROM credit_entries
        WHERE tenant_id = l.tenant_id AND refunded_seq = l.refunded_seq OFFSET 0) given
    WHERE (l.refunded_seq IS NOT NULL AND given.credits > COALESCE(taken.credits, 0))
       OR (l.kind = 'refund') <> (l.refunded_seq IS NOT NULL)
) AS found ORDER BY tenant_id, seq"""

# What becomes of a transaction of each kind, and which lines it may consist of.
KINDS = """(VALUES ('grant', 'posted', '{grant}'::text[]), ('debit', 'posted', '{debit}'), ('hold', 'held', '{hold}'),
    ('capture', 'captured', '{capture,debit,release}'), ('void', 'voided', '{release}'),
    ('lapse', 'expired', '{release}'), ('expiry', 'expired', '{expiry}'), ('refund', 'posted', '{refund}'),
    ('adjustment', 'posted', '{adjustment}'), ('revoke', 'posted', '{revoke}'), ('restore', 'posted', '{restore}'))
    AS allowed (kind, status, lines)"""

OF_TRANSACTIONS = f"""{BOOKED}
SELECT tenant_id, check_type, observed FROM (
    SELECT tenant_id, first_line, 'entry_mismatch' AS check_type,
           jsonb_build_object('seq', first_line, 'missing_transaction', transaction_id) AS observed
    FROM booked WHERE id IS NULL
    UNION ALL
    SELECT tenant_id, first_line, 'entry_mismatch',
           jsonb_build_object('transaction_id', id, 'amount', amount, 'lines_sum', moved)
    FROM booked WHERE amount <> moved
    UNION ALL
    SELECT b.tenant_id, b.first_line, 'entry_mismatch', jsonb_build_object(
        'transaction_id', b.id, 'kind', b.kind, 'status', b.tx_status, 'line_kinds', to_jsonb(b.line_kinds),
        'created_at', b.created_at, 'at', b.last_at)
    FROM booked b LEFT JOIN {KINDS} ON allowed.kind = b.kind
    WHERE b.id IS NOT NULL
      AND (b.tx_status IS DISTINCT FROM allowed.status OR b.created_at <> b.first_at OR b.created_at <> b.last_at
        OR NOT b.line_kinds <@ COALESCE(allowed.lines, '{{}}'))
    UNION ALL
    SELECT tenant_id, first_line, 'sequence_gap', jsonb_build_object(
        'transaction_id', id, 'first_seq', first_seq, 'last_seq', last_seq,
        'lines', jsonb_build_array(first_line, last_line))
    FROM booked WHERE (first_seq, last_seq, lines) <> (first_line, last_line, last_line - first_line + 1)
    UNION ALL
    SELECT b.tenant_id, b.first_line, 'duplicate_reference',
           jsonb_build_object('kind', b.kind, 'reference_id', b.reference_id, 'transactions', twice.n)
    FROM booked b CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM credit_transactions t
        WHERE t.tenant_id = b.tenant_id AND t.kind = b.kind AND t.reference_id = b.reference_id
          AND t.tx_status <> 'rejected' AND t.kind IN ('grant', 'revoke', 'restore') OFFSET 0) twice
    WHERE b.kind IN ('grant', 'revoke', 'restore') AND twice.n > 1
) AS found ORDER BY tenant_id, first_line"""

CHAIN = f"""{ASKED}
SELECT e.tenant_id, e.seq, e.transaction_id, e.lot, e.bucket, e.kind, e.d_posted, e.d_held, e.lot_posted_after,
       e.lot_held_after, e.account_posted_after, e.account_held_after, e.refunded_seq, e.at, e.hash,
       t.id, t.kind, t.idempotency_key, t.reason, t.reference_id, t.amount, t.tx_status, t.hold_id,
       t.refunded_transaction_id, t.first_seq, t.last_seq, t.created_at
FROM asked CROSS JOIN LATERAL (
    SELECT * FROM credit_entries
    WHERE tenant_id = asked.tenant_id AND seq > asked.after AND seq <= asked.until OFFSET 0) e
LEFT JOIN LATERAL (
    SELECT * FROM credit_transactions t WHERE t.tenant_id = e.tenant_id AND t.id = e.transaction_id OFFSET 0) t ON true
ORDER BY e.tenant_id, e.seq"""

# A window never ends inside a transaction.
ENDS = """
SELECT asked.tenant_id, t.last_seq
FROM unnest(CAST(:tenants AS text[]), CAST(:untils AS bigint[])) AS asked (tenant_id, until)
CROSS JOIN LATERAL (
    SELECT transaction_id FROM credit_entries WHERE tenant_id = asked.tenant_id AND seq = asked.until OFFSET 0) e
CROSS JOIN LATERAL (
    SELECT last_seq FROM credit_transactions
    WHERE tenant_id = asked.tenant_id AND id = e.transaction_id OFFSET 0) t
WHERE t.last_seq > asked.until"""


async def list_ends(db: AsyncConnection, windows: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Where the transaction ends whose line a window would end with, where that is later."""
    tenants, untils = [each[0] for each in windows], [each[1] for each in windows]
    result = await db.execute(text(ENDS), {"tenants": tenants, "untils": untils})
    return {row[0]: row[1] for row in result}


async def check(db: AsyncConnection, windows: Sequence[tuple[Reading, int]]) -> list[Found]:
    """What is wrong with the lines of each window: after the reading's point, up to and with a line."""
    return await run(db, [OF_LINES, OF_TRANSACTIONS], _values(windows))


async def list_lines(db: AsyncConnection, windows: Sequence[tuple[Reading, int]]) -> dict[str, list[Line]]:
    """The lines of each window with what their hashes cover, by tenant."""
    lines: dict[str, list[Line]] = {each.tenant_id: [] for each, _ in windows}
    for row in await db.execute(text(CHAIN), _values(windows)):
        lines[row[0]].append(Line._make((*row[1:15], None if row[15] is None else Header(*row[15:]), None)))
    return lines


def _values(windows: Sequence[tuple[Reading, int]]) -> dict[str, Any]:
    points = [reading.point for reading, _ in windows]
    return {
        "tenants": [reading.tenant_id for reading, _ in windows],
        "afters": [point.seq for point in points],
        "untils": [until for _, until in windows],
        "posted": [point.posted for point in points],
        "held": [point.held for point in points],
        "ats": [point.at for point in points],
    }
