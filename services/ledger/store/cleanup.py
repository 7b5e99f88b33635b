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


COUNT = f"SELECT count(*) {GRACE}"
# The end again: one that began anew since it was chosen stays.
DELETE = f"""
DELETE FROM grace_periods
WHERE (tenant_id, limit_key) IN (SELECT tenant_id, limit_key {GRACE} ORDER BY expires_at LIMIT :limit)
  AND expires_at < :ended_before"""


async def grace_periods(db: AsyncConnection, *, ended_before: datetime, limit: int, dry_run: bool) -> int:
    """Deletes up to `limit` grace periods that ended before then, and says how many; a rehearsal counts them all."""
    if dry_run:
        return int((await db.execute(text(COUNT), {"ended_before": ended_before})).scalar_one())
    result = await db.execute(text(DELETE), {"ended_before": ended_before, "limit": limit})
    return int(result.rowcount)
