"""Deleting what no rule needs any longer; never a transaction or a line."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# One that ended while the tenant is still above its limit stays: without it the next use would begin another.
GRACE = """
FROM grace_periods g WHERE expires_at < :ended_before AND NOT EXISTS (
    SELECT FROM tenant_usage u
    JOIN tenant_services s ON s.tenant_id = u.tenant_id AND s.service_code = split_part(u.limit_key, '.', 1)
    WHERE u.tenant_id = g.tenant_id AND u.limit_key = g.limit_key
      AND u.used > (s.limits -> split_part(u.limit_key, '.', 2) ->> 'limit')::bigint)"""
RATES = "FROM rate_limit_buckets WHERE room = 'ledger' AND tat < :now"


async def count(db: AsyncConnection, *, ended_before: datetime, now: datetime) -> tuple[int, int]:
    """(grace periods, rate limits) that `delete` would delete."""
    grace = await db.scalar(text(f"SELECT count(*) {GRACE}"), {"ended_before": ended_before})
    rates = await db.scalar(text(f"SELECT count(*) {RATES}"), {"now": now})
    return int(grace or 0), int(rates or 0)


async def delete(db: AsyncConnection, *, ended_before: datetime, now: datetime) -> tuple[int, int]:
    """(grace periods that ended before then, rate limits that limit nobody any more), deleted."""
    grace = await db.execute(text(f"DELETE {GRACE}"), {"ended_before": ended_before})
    rates = await db.execute(text(f"DELETE {RATES}"), {"now": now})
    return grace.rowcount, rates.rowcount
