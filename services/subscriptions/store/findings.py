"""This room's findings: listed, and closed in a person's name."""

from dataclasses import fields

from sqlalchemy import func, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions.rules.records import FindingRow
from services.subscriptions.store.audit import ROOM
from shared.ops.tables import billing_integrity_reports as table

_COLUMNS = [table.c[field.name] for field in fields(FindingRow)]


async def find_finding(db: AsyncConnection, finding_id: str, *, lock: bool = False) -> FindingRow | None:
    """One finding of this room's."""
    query = select(*_COLUMNS).where(table.c.id == finding_id, table.c.room == ROOM)
    row = (await db.execute(query.with_for_update() if lock else query)).one_or_none()
    return FindingRow(**row._mapping) if row else None


async def list_findings(
    db: AsyncConnection,
    *,
    tenant_id: str | None,
    check_type: str | None,
    severity: str | None,
    resolved: bool,
    before: FindingRow | None,
    limit: int,
) -> list[FindingRow]:
    """Most severe first, then newest; those that come after `before` in this order."""
    order = (table.c.severity, table.c.created_at, table.c.id)
    query = select(*_COLUMNS).where(table.c.room == ROOM)
    for column, wanted in (
        (table.c.tenant_id, tenant_id),
        (table.c.check_type, check_type),
        (table.c.severity, severity),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    if not resolved:
        query = query.where(table.c.resolved_at.is_(None))
    if before is not None:
        place = (literal(before.severity, table.c.severity.type), before.created_at, before.id)
        query = query.where(tuple_(*order) < tuple_(*place))
    rows = await db.execute(query.order_by(*(column.desc() for column in order)).limit(limit))
    return [FindingRow(**row._mapping) for row in rows]


async def close_finding(db: AsyncConnection, finding_id: str, *, by: str) -> FindingRow:
    """Close an open finding."""
    rows = await db.execute(
        update(table)
        .where(table.c.id == finding_id, table.c.room == ROOM, table.c.resolved_at.is_(None))
        .values(resolved_at=func.clock_timestamp(), resolved_by=by)
        .returning(*_COLUMNS)
    )
    return FindingRow(**rows.one()._mapping)
