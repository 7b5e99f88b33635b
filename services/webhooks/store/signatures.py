"""Refused signatures, in the schema that the rooms share."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.webhooks.rules.health import Failure
from services.webhooks.rules.inbox import SignatureFailure
from services.webhooks.rules.paging import Position
from shared.ops.store import record_signature_failure
from shared.ops.tables import billing_signature_failures as table


async def insert_failures(db: AsyncConnection, failures: Sequence[SignatureFailure]) -> None:
    """Records them as one."""
    for failure in failures:
        await record_signature_failure(
            db,
            room="webhooks",
            endpoint="webhook",
            tenant_id=failure.tenant_id,
            remote_ip=failure.remote_ip,
            user_agent=failure.user_agent,
            payload_id=failure.payload_id,
            path=failure.path,
        )


async def list_failures(
    db: AsyncConnection,
    *,
    tenant_id: str | None,
    endpoint: str | None,
    since_at: datetime | None,
    before: Position | None,
    limit: int,
) -> list[SignatureFailure]:
    """Newest first."""
    query = select(
        table.c.id,
        table.c.endpoint,
        table.c.tenant_id,
        table.c.remote_ip,
        table.c.user_agent,
        table.c.payload_id,
        table.c.path,
        table.c.created_at,
    )
    if tenant_id:
        query = query.where(table.c.tenant_id == tenant_id)
    if endpoint:
        query = query.where(table.c.endpoint == endpoint)
    if since_at:
        query = query.where(table.c.created_at >= since_at)
    if before:
        query = query.where(tuple_(table.c.created_at, table.c.id) < (before.moment, before.id))
    rows = await db.execute(query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit))
    return [SignatureFailure(**row._mapping) for row in rows]


async def newest_failures(
    db: AsyncConnection, window: timedelta, limit: int
) -> tuple[datetime, list[Failure]]:
    """The database's present, by which failures are dated, and the newest failures of the window that ends there."""
    now: datetime = (await db.execute(select(func.now()))).scalar_one()
    query = (
        select(table.c.endpoint, table.c.tenant_id, table.c.created_at, table.c.path)
        .where(table.c.created_at > now - window)
        .order_by(table.c.created_at.desc())
        .limit(limit)
    )
    return now, [Failure(*row) for row in await db.execute(query)]


async def count_failures(db: AsyncConnection, window: timedelta) -> int:
    """How many there were in the window that ends now."""
    query = select(func.count()).select_from(table).where(table.c.created_at > func.now() - window)
    return (await db.execute(query)).scalar_one()
