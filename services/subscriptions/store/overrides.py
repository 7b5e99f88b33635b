"""Limits set for single tenants."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables

table = tables.tenant_overrides


@dataclass(frozen=True)
class TenantOverride:
    """A limit set for a tenant; a value of None is no limit."""

    id: str
    tenant_id: str
    service_id: str
    limit_key: str
    value: int | None
    expires_at: datetime | None
    reason: str
    actor: str


async def insert_override(db: AsyncConnection, override: TenantOverride, now: datetime) -> None:
    """Set it; the caller has closed the one that it replaces."""
    await db.execute(insert(table).values(**vars(override), created_at=now))


async def find_live(
    db: AsyncConnection, tenant_id: str, service_id: str, limit_key: str
) -> TenantOverride | None:
    """The one that holds for a limit."""
    return await _one(
        db, table.c.tenant_id == tenant_id, table.c.service_id == service_id, table.c.limit_key == limit_key
    )


async def find_override(db: AsyncConnection, tenant_id: str, override_id: str) -> TenantOverride | None:
    """One that holds, by its id."""
    return await _one(db, table.c.tenant_id == tenant_id, table.c.id == override_id)


async def close_override(db: AsyncConnection, override_id: str, now: datetime) -> None:
    """From now on it holds no more; the row stays."""
    await db.execute(update(table).where(table.c.id == override_id).values(removed_at=now))


async def list_expired(db: AsyncConnection, tenant_id: str, now: datetime) -> list[TenantOverride]:
    """Those of a tenant whose time is over."""
    rows = await db.execute(_live(table.c.tenant_id == tenant_id, table.c.expires_at <= now))
    return [TenantOverride(**row._mapping) for row in rows]


async def list_tenants_with_expired(db: AsyncConnection, now: datetime, *, limit: int) -> list[str]:
    """Tenants with an override whose time is over, those waiting longest first."""
    rows = await db.execute(
        select(table.c.tenant_id)
        .where(table.c.removed_at.is_(None), table.c.expires_at <= now)
        .group_by(table.c.tenant_id)
        .order_by(func.min(table.c.expires_at))
        .limit(limit)
    )
    return [row.tenant_id for row in rows]


async def _one(db: AsyncConnection, *conditions: ColumnElement[bool]) -> TenantOverride | None:
    row = (await db.execute(_live(*conditions))).one_or_none()
    return TenantOverride(**row._mapping) if row else None


def _live(*conditions: ColumnElement[bool]) -> Select[Any]:
    columns = [table.c[name] for name in TenantOverride.__dataclass_fields__]
    return select(*columns).where(table.c.removed_at.is_(None), *conditions).order_by(table.c.id)
