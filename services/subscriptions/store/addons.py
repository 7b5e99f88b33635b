"""Add-ons of tenants."""

from dataclasses import asdict, fields
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.addons import TenantAddon

Waiting = Literal["due", "paused"]

table = tables.tenant_addons
_ROW = [table.c[field.name] for field in fields(TenantAddon)]
_NEVER_CHANGES = ("id", "tenant_id", "addon_id", "idempotency_key", "created_at")


async def insert_addon(db: AsyncConnection, row: TenantAddon) -> None:
    """A purchase that is about to be charged."""
    await db.execute(insert(table).values(**asdict(row)))


async def save_addon(db: AsyncConnection, row: TenantAddon) -> None:
    """Write the row; the caller holds the tenant's lock."""
    values = {name: value for name, value in asdict(row).items() if name not in _NEVER_CHANGES}
    await db.execute(update(table).where(table.c.id == row.id).values(**values, updated_at=func.now()))


async def find_addon(db: AsyncConnection, tenant_id: str, tenant_addon_id: str) -> TenantAddon | None:
    """An add-on of this tenant."""
    return await _one(db, table.c.tenant_id == tenant_id, table.c.id == tenant_addon_id)


async def find_by_key(db: AsyncConnection, tenant_id: str, key: str) -> TenantAddon | None:
    """What a purchase under this key became."""
    return await _one(db, table.c.tenant_id == tenant_id, table.c.idempotency_key == key)


async def find_live(db: AsyncConnection, tenant_id: str, addon_id: str) -> TenantAddon | None:
    """The one that has not ended."""
    return await _one(
        db, table.c.tenant_id == tenant_id, table.c.addon_id == addon_id, table.c.status != "canceled"
    )


async def find_charged_for(db: AsyncConnection, tenant_id: str, key: str) -> TenantAddon | None:
    """What is being charged for a call with this key."""
    return await _one(
        db, table.c.tenant_id == tenant_id, table.c.charge_key == key, table.c.charge_credits.is_not(None)
    )


async def list_addons(
    db: AsyncConnection, tenant_id: str, *, before: str | None, limit: int
) -> list[TenantAddon]:
    """A page, newest first, without purchases that were refused."""
    query = (
        select(*_ROW)
        .where(table.c.tenant_id == tenant_id, or_(table.c.period > 0, table.c.status == "pending"))
        .order_by(table.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(table.c.id < before)
    return [TenantAddon(**row._mapping) for row in await db.execute(query)]


async def list_waiting_tenants(
    db: AsyncConnection, waiting: Waiting, now: datetime, *, after: str, limit: int
) -> list[str]:
    """A page of tenants with an add-on that time or new credits may move."""
    rows = await db.execute(
        select(table.c.tenant_id)
        .where(_waits(waiting, now), table.c.tenant_id > after)
        .distinct()
        .order_by(table.c.tenant_id)
        .limit(limit)
    )
    return [row.tenant_id for row in rows]


async def list_waiting(
    db: AsyncConnection, tenant_id: str, waiting: Waiting, now: datetime
) -> list[TenantAddon]:
    """A tenant's add-ons that wait, the oldest first: it keeps what it has had longest."""
    rows = await db.execute(
        select(*_ROW).where(table.c.tenant_id == tenant_id, _waits(waiting, now)).order_by(table.c.id)
    )
    return [TenantAddon(**row._mapping) for row in rows]


def _waits(waiting: Waiting, now: datetime) -> ColumnElement[bool]:
    if waiting == "paused":
        return and_(table.c.status == "paused", table.c.charge_credits.is_(None))
    return or_(
        table.c.charge_credits.is_not(None),
        and_(table.c.status.in_(("active", "canceling")), table.c.next_renewal <= now),
    )


async def _one(db: AsyncConnection, *conditions: ColumnElement[bool]) -> TenantAddon | None:
    row = (await db.execute(select(*_ROW).where(*conditions).limit(1))).one_or_none()
    return TenantAddon(**row._mapping) if row else None
