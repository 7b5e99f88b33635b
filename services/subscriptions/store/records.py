"""Who changed what and why, as all rooms recorded it."""

from datetime import datetime

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions.rules.records import Record
from shared.ops.tables import billing_audit_log


async def list_records(
    db: AsyncConnection,
    *,
    tenant_id: str | None,
    action: str | None,
    room: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[Record]:
    """A page of changes, newest first, older than the place where the page before ended."""
    table = billing_audit_log
    query = select(table)
    if room is not None:
        query = query.where(table.c.room == room)
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    if action is not None:
        query = query.where(table.c.action == action)
    if before is not None:
        query = query.where(tuple_(table.c.created_at, table.c.id) < tuple_(*before))
    rows = await db.execute(query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit))
    return [
        Record(
            id=row.id,
            action=row.action,
            actor_type=row.actor_type,
            actor_id=row.actor_id,
            tenant_id=row.tenant_id,
            resource_type=row.resource_type,
            resource_id=row.resource_id,
            before=row.metadata.get("before"),
            after=row.metadata.get("after"),
            reason=row.metadata.get("reason") or "",
            created_at=row.created_at,
            room=row.room,
            request_id=row.request_id,
        )
        for row in rows
    ]
