"""What can be compared for every tenant in every run: the mirrors, whoever edited them, and the ends of the lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.rules.findings import Found
from services.ledger.store.audit.found import run

TENANTS = "SELECT tenant_id FROM tenant_credits WHERE tenant_id > :after ORDER BY tenant_id LIMIT :page"

# What open lots and open holds come to, and the last line: a few index probes a tenant.
STANDING = """
WITH standing AS MATERIALIZED (
    SELECT a.*, lots.posted AS lots_posted, lots.subscription AS lots_subscription, lots.held AS lots_held,
           lots.expires_at AS lots_expires_at, legs.open AS legs_open,
           COALESCE(line.seq, 0) AS line_seq, line.hash AS line_hash, COALESCE(line.posted, 0) AS line_posted,
           COALESCE(line.held, 0) AS line_held, s.checked_seq, s.checked_head
    FROM tenant_credits a
    LEFT JOIN audit_state s ON s.tenant_id = a.tenant_id
    CROSS JOIN LATERAL (
        SELECT COALESCE(sum(b.remaining), 0)::bigint AS posted, COALESCE(sum(b.held), 0)::bigint AS held,
               COALESCE(sum(b.remaining) FILTER (WHERE b.bucket = 'subscription'), 0)::bigint AS subscription,
               max(CASE WHEN b.held > 0 THEN greatest(b.expires_at, b.pinned_until) ELSE b.expires_at END)
                   FILTER (WHERE b.bucket = 'subscription' AND b.remaining > 0) AS expires_at
        FROM credit_buckets b
        WHERE b.tenant_id = a.tenant_id AND NOT b.closed) lots
    CROSS JOIN LATERAL (
        SELECT COALESCE(sum(l.reserved - l.captured - l.released), 0)::bigint AS open
        FROM credit_holds h CROSS JOIN LATERAL (
            SELECT * FROM credit_hold_legs WHERE tenant_id = h.tenant_id AND hold_id = h.id OFFSET 0) l
        WHERE h.tenant_id = a.tenant_id AND h.open) legs
    LEFT JOIN LATERAL (
        SELECT e.seq, e.hash, e.account_posted_after AS posted, e.account_held_after AS held FROM credit_entries e
        WHERE e.tenant_id = a.tenant_id ORDER BY e.seq DESC LIMIT 1) line ON true
    WHERE a.tenant_id = ANY(:tenants))"""

# Of two wrong ways to say the balance the first is shown; what it must be is what the lines came to.
BALANCE = f"""{STANDING}
SELECT tenant_id, 'balance_mismatch', jsonb_build_object(
    'balance', CASE WHEN balance <> line_posted THEN balance ELSE subscription_balance + permanent_balance END,
    'expected_balance', line_posted)
FROM standing WHERE balance <> line_posted OR subscription_balance + permanent_balance <> line_posted
UNION ALL
SELECT tenant_id, 'mirror_mismatch', jsonb_build_object('mirror', mirror, 'stored', stored, 'expected', expected)
FROM standing CROSS JOIN LATERAL (VALUES
    ('subscription_balance', to_jsonb(subscription_balance), to_jsonb(lots_subscription)),
    ('permanent_balance', to_jsonb(permanent_balance), to_jsonb(lots_posted - lots_subscription)),
    ('held', to_jsonb(held), to_jsonb(line_held)),
    ('subscription_expires_at', to_jsonb(subscription_expires_at), to_jsonb(lots_expires_at))
) AS mirrors (mirror, stored, expected)
-- A lot that was changed is a finding of its own, and no mirror is wrong because of it.
WHERE stored IS DISTINCT FROM expected AND lots_posted = line_posted AND lots_held = line_held
UNION ALL
SELECT tenant_id, 'lot_mismatch', jsonb_build_object(
    'lots_remaining', lots_posted, 'lots_held', lots_held, 'expected_remaining', line_posted,
    'expected_held', line_held)
FROM standing WHERE lots_posted <> line_posted OR lots_held <> line_held
UNION ALL
SELECT tenant_id, 'hold_mismatch', jsonb_build_object('open', legs_open, 'held', lots_held)
FROM standing WHERE legs_open <> lots_held
UNION ALL
SELECT tenant_id, 'sequence_gap', jsonb_build_object('seq', seq, 'last_line', line_seq, 'checked_seq', checked_seq)
FROM standing WHERE line_seq <> seq OR seq < checked_seq
UNION ALL
SELECT tenant_id, 'chain_mismatch', jsonb_build_object(
    'seq', seq, 'chain_head', encode(chain_head, 'hex'), 'hash', encode(line_hash, 'hex'),
    'checked_hash', CASE WHEN seq = checked_seq THEN encode(checked_head, 'hex') END)
FROM standing
WHERE (line_seq = seq AND line_hash <> chain_head) OR (seq = checked_seq AND chain_head <> checked_head)"""

# An account that was there when its lines were checked.
MISSING = """
SELECT s.tenant_id, 'account_missing', jsonb_build_object('checked_seq', s.checked_seq)
FROM audit_state s LEFT JOIN tenant_credits a ON a.tenant_id = s.tenant_id
WHERE a.tenant_id IS NULL ORDER BY s.tenant_id LIMIT :page"""

CHANGED = """
SELECT a.tenant_id, a.seq, a.chain_head, s.checked_seq, s.checked_head, s.checked_posted, s.checked_held, s.checked_at
FROM tenant_credits a LEFT JOIN audit_state s ON s.tenant_id = a.tenant_id
WHERE a.tenant_id = ANY(:tenants) AND a.seq > COALESCE(s.checked_seq, 0)
ORDER BY a.tenant_id"""

_ENDED = """
WITH clock AS MATERIALIZED (SELECT clock_timestamp() + make_interval(secs => :offset) - :grace AS at),
ended (tenant_id, expires_at, what) AS (
    SELECT tenant_id, expires_at, 'lot' FROM credit_buckets due
    WHERE NOT closed AND remaining > held AND expires_at <= (SELECT at FROM clock) AND {whose}
    UNION ALL
    SELECT tenant_id, expires_at, 'hold' FROM credit_holds due
    WHERE open AND expires_at <= (SELECT at FROM clock) AND {whose}
    UNION ALL
    SELECT tenant_id, expires_at, 'grace' FROM grace_periods WHERE NOT ended AND expires_at <= (SELECT at FROM clock))"""

# Credits of a frozen account wait for a person; its limits do not. There are few of those: nobody else is looked up.
_ACTIVE = "NOT EXISTS (SELECT FROM tenant_credits a WHERE a.tenant_id = due.tenant_id AND a.state = 'frozen')"

OVERDUE = f"""{_ENDED.format(whose=_ACTIVE)}
SELECT tenant_id, 'overdue_expiry', jsonb_build_object(
    'lots', count(*) FILTER (WHERE what = 'lot'), 'holds', count(*) FILTER (WHERE what = 'hold'),
    'grace_periods', count(*) FILTER (WHERE what = 'grace'), 'due_at', min(expires_at))
FROM ended GROUP BY tenant_id ORDER BY min(expires_at) LIMIT :page"""

STILL_OVERDUE = f"""{_ENDED.format(whose="tenant_id = ANY(:tenants)")}
SELECT DISTINCT tenant_id FROM ended WHERE tenant_id = ANY(:tenants)"""


@dataclass(frozen=True, slots=True)
class Point:
    """A line, and what the lines up to it come to."""

    seq: int
    head: bytes
    posted: int
    held: int
    at: datetime


@dataclass(slots=True)
class Reading:
    """A tenant whose lines are read from `point` on, up to `until`, whose hash must be `head`."""

    tenant_id: str
    point: Point
    until: int
    head: bytes
    # From the first line on, to find what was changed after it was checked.
    again: bool = False


async def list_tenants(db: AsyncConnection, *, after: str, page: int) -> list[str]:
    """The tenants that follow, in order."""
    result = await db.execute(text(TENANTS), {"after": after, "page": page})
    return list(result.scalars())


async def compare(db: AsyncConnection, tenants: list[str]) -> list[Found]:
    """Mirrors, lots, holds and last lines that disagree with each other."""
    return await run(db, [BALANCE], {"tenants": tenants})


async def list_changed(db: AsyncConnection, tenants: list[str], start: Point) -> list[Reading]:
    """Those of the tenants that have lines nobody has checked; `start` stands before a first line."""
    result = await db.execute(text(CHANGED), {"tenants": tenants})
    return [
        Reading(row[0], start if row[3] is None else Point(*row[3:]), until=row[1], head=row[2])
        for row in result
    ]


async def list_missing(db: AsyncConnection, *, page: int) -> list[Found]:
    """Tenants whose account is gone."""
    return await run(db, [MISSING], {"page": page})


async def list_overdue(db: AsyncConnection, *, offset: timedelta, grace: timedelta, page: int) -> list[Found]:
    """Tenants whose lots, holds or grace periods should have been settled long ago, the longest ago first."""
    return await run(db, [OVERDUE], {"offset": offset.total_seconds(), "grace": grace, "page": page})


async def list_still_overdue(
    db: AsyncConnection, tenants: Sequence[str], *, offset: timedelta, grace: timedelta
) -> set[str]:
    """Those of the tenants that have something which ended long ago, frozen or not."""
    values = {"offset": offset.total_seconds(), "grace": grace, "tenants": list(tenants)}
    return set((await db.execute(text(STILL_OVERDUE), values)).scalars())
