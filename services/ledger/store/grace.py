"""Grace periods that ended."""

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_DUE = "NOT ended AND expires_at <= (SELECT clock_timestamp() + make_interval(secs => :offset))"


async def count_due(db: AsyncConnection, offset: timedelta) -> int:
    """How many ended without being marked."""
    values = {"offset": offset.total_seconds()}
    return int(
        (await db.execute(text(f"SELECT count(*) FROM grace_periods WHERE {_DUE}"), values)).scalar_one()
    )


async def end_due(db: AsyncConnection, offset: timedelta) -> int:
    """Marks those that ended, and says how many. Limits refuse by the clock, marked or not."""
    values = {"offset": offset.total_seconds()}
    result = await db.execute(text(f"UPDATE grace_periods SET ended = true WHERE {_DUE}"), values)
    return int(result.rowcount)
