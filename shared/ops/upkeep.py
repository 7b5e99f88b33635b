"""What rooms forget of their own rows in the schema `ops`; row-level security keeps them from others'."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Table, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.ops.tables import billing_signature_failures as failures
from shared.ops.tables import rate_limit_buckets as buckets

# Every limit is over within a quarter of an hour.
BUCKETS_KEPT = timedelta(days=1)


async def forget_signature_failures(
    db: AsyncConnection, *, room: str, before: datetime, limit: int, dry_run: bool = False
) -> int:
    """Deletes the oldest refused signatures recorded before a moment; a rehearsal counts them all."""
    old = (failures.c.room == room) & (failures.c.created_at < before)
    return await _forget(db, failures, failures.c.created_at, failures.c.id, old, limit, dry_run=dry_run)


async def forget_buckets(
    db: AsyncConnection, *, room: str, before: datetime, limit: int, dry_run: bool = False
) -> int:
    """Deletes rate limits that have limited nobody since a moment; a rehearsal counts them all."""
    old = (buckets.c.room == room) & (buckets.c.tat < before)
    return await _forget(db, buckets, buckets.c.tat, buckets.c.key, old, limit, dry_run=dry_run)


async def _forget(
    db: AsyncConnection,
    table: Table,
    age: ColumnElement[datetime],
    key: ColumnElement[str],
    old: ColumnElement[bool],
    limit: int,
    *,
    dry_run: bool,
) -> int:
    if dry_run:
        return (await db.execute(select(func.count()).select_from(table).where(old))).scalar_one()
    oldest = select(key).where(old).order_by(age).limit(limit)
    # The condition again: a bucket may have been filled since it was chosen.
    return (await db.execute(delete(table).where(key.in_(oldest), old))).rowcount
