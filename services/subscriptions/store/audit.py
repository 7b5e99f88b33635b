"""The books of many tenants at one moment, and the findings that are open about them."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import datetime
from typing import TypeVar

from sqlalchemy import ColumnElement, case, func, literal_column, or_, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions import tables
from services.subscriptions.rules.entitlements import ActiveAddon, Override, from_json
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.findings import Books, GrantLine, OpenFinding, PaymentLine
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.tasks import Task
from shared.ops.tables import billing_integrity_reports

ROOM = "subscriptions"
Line = TypeVar("Line")
_ROW = [tables.subscriptions.c[field.name] for field in fields(Subscription)]
_KNOWN = [tables.provider_subscriptions.c[field.name] for field in fields(KnownSubscription)]
_TASK = [tables.billing_reconciliation_queue.c[field.name] for field in fields(Task)]


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A session whose statements all see one moment."""
    async with engine.connect() as db:
        await db.execution_options(isolation_level="REPEATABLE READ")
        yield db


async def list_tenants(db: AsyncConnection, *, after: str, limit: int) -> list[str]:
    """A page of tenants by name."""
    column = tables.subscriptions.c.tenant_id
    return list(await db.scalars(select(column).where(column > after).order_by(column).limit(limit)))


async def read_books(
    db: AsyncConnection, tenants: Sequence[str], *, completed_since: datetime
) -> list[Books]:
    """What we hold about each of these tenants; tasks are open, given up, or completed since then."""
    rows = await db.execute(
        select(*_ROW, tables.subscriptions.c.entitlements).where(
            tables.subscriptions.c.tenant_id.in_(tenants)
        )
    )
    addons, overrides = await _addons(db, tenants), await _overrides(db, tenants)
    known, payments = await _known(db, tenants), await _payments(db, tenants)
    grants, mirrored = await _grants(db, tenants)
    tasks = await _tasks(db, tenants, completed_since)
    books = []
    for found in rows:
        values = dict(found._mapping)
        services = from_json(values.pop("entitlements"))
        tenant_id = values["tenant_id"]
        books.append(
            Books(
                row=Subscription(**values),
                services=services,
                addons=tuple(addons.get(tenant_id, ())),
                overrides=tuple(overrides.get(tenant_id, ())),
                known=tuple(known.get(tenant_id, ())),
                payments=tuple(payments.get(tenant_id, ())),
                grants=tuple(grants.get(tenant_id, ())),
                mirrored=mirrored,
                tasks=tuple(tasks.get(tenant_id, ())),
            )
        )
    return books


async def _addons(db: AsyncConnection, tenants: Sequence[str]) -> dict[str, list[ActiveAddon]]:
    table = tables.tenant_addons
    rows = await db.execute(
        select(table.c.tenant_id, table.c.addon_id, table.c.units)
        .where(table.c.tenant_id.in_(tenants), table.c.status.in_(("active", "canceling")))
        .order_by(table.c.id)
    )
    return _by_tenant((row.tenant_id, ActiveAddon(row.addon_id, row.units)) for row in rows)


async def _overrides(db: AsyncConnection, tenants: Sequence[str]) -> dict[str, list[Override]]:
    table = tables.tenant_overrides
    rows = await db.execute(
        select(table.c.tenant_id, table.c.service_id, table.c.limit_key, table.c.value, table.c.expires_at)
        .where(table.c.tenant_id.in_(tenants), table.c.removed_at.is_(None))
        .order_by(table.c.id)
    )
    return _by_tenant(
        (row.tenant_id, Override(row.service_id, row.limit_key, row.value, row.expires_at)) for row in rows
    )


async def _known(db: AsyncConnection, tenants: Sequence[str]) -> dict[str, list[KnownSubscription]]:
    table = tables.provider_subscriptions
    rows = await db.execute(
        select(*_KNOWN).where(table.c.tenant_id.in_(tenants)).order_by(table.c.purchased_at, table.c.id)
    )
    return _by_tenant((row.tenant_id, KnownSubscription(**row._mapping)) for row in rows)


async def _payments(db: AsyncConnection, tenants: Sequence[str]) -> dict[str, list[PaymentLine]]:
    table, disputes = tables.payments, tables.billing_disputes
    lost = (
        select(func.coalesce(func.sum(disputes.c.amount_deducted_paise), 0))
        .where(disputes.c.payment_id == table.c.id, disputes.c.status == "lost")
        .scalar_subquery()
    )
    plain = [table.c[field.name] for field in fields(PaymentLine) if field.name in table.c]
    rows = await db.execute(
        select(
            table.c.tenant_id,
            *plain,
            (table.c.amount_refunded_paise + lost).label("given_back"),
        )
        .where(table.c.tenant_id.in_(tenants))
        .order_by(table.c.received_at, table.c.id)
    )
    return _by_tenant(
        (
            row.tenant_id,
            PaymentLine(
                **{column.name: row._mapping[column.name] for column in plain},
                given_back_paise=int(row.given_back),
            ),
        )
        for row in rows
    )


async def _grants(
    db: AsyncConnection, tenants: Sequence[str]
) -> tuple[dict[str, list[GrantLine]], frozenset[str]]:
    table = tables.credit_grants
    rows = (
        await db.execute(
            select(
                table.c.tenant_id,
                table.c.reference_id,
                table.c.payment_id,
                table.c.credits,
                table.c.expires_at,
                tables.payments.c.id.label("mirrored"),
            )
            .outerjoin_from(table, tables.payments, tables.payments.c.id == table.c.payment_id)
            .where(table.c.tenant_id.in_(tenants))
            .order_by(table.c.created_at, table.c.id)
        )
    ).all()
    mirrored = frozenset(row.mirrored for row in rows if row.mirrored is not None)
    lines = (
        (row.tenant_id, GrantLine(row.reference_id, row.payment_id, row.credits, row.expires_at))
        for row in rows
    )
    return _by_tenant(lines), mirrored


async def _tasks(
    db: AsyncConnection, tenants: Sequence[str], completed_since: datetime
) -> dict[str, list[Task]]:
    queue = tables.billing_reconciliation_queue
    rows = await db.execute(
        select(*_TASK)
        .where(
            queue.c.tenant_id.in_(tenants),
            or_(queue.c.completed_at.is_(None), queue.c.completed_at > completed_since),
        )
        .order_by(queue.c.position)
    )
    return _by_tenant((row.tenant_id, Task(**row._mapping)) for row in rows)


def _by_tenant(pairs: Iterable[tuple[str, Line]]) -> dict[str, list[Line]]:
    grouped: dict[str, list[Line]] = {}
    for tenant_id, value in pairs:
        grouped.setdefault(tenant_id, []).append(value)
    return grouped


async def list_open(
    db: AsyncConnection,
    *,
    checks: Iterable[str] | None = None,
    tenants: Sequence[str] | None = None,
    without: Iterable[str] = (),
    limit: int | None = None,
) -> list[OpenFinding]:
    """Open findings of this room, the most severe first, then the oldest.

    The limit is one of each severity: what is new never takes the place of what was named.
    """
    table = billing_integrity_reports
    query = select(*(table.c[field.name] for field in fields(OpenFinding))).where(*_open())
    if checks is not None:
        query = query.where(table.c.check_type.in_(sorted(checks)))
    if tenants is not None:
        query = query.where(table.c.tenant_id.in_(tenants))
    query = query.where(table.c.check_type.not_in(sorted(without)))
    by_age = (table.c.created_at, table.c.id)
    place = func.row_number().over(partition_by=table.c.severity, order_by=by_age).label("place")
    found = query.add_columns(place).subquery()
    severe = case((found.c.severity == literal_column("'critical'"), 0), else_=1)
    rows = await db.execute(
        select(*(found.c[field.name] for field in fields(OpenFinding)))
        .where(true() if limit is None else found.c.place <= limit)
        .order_by(severe, found.c.created_at, found.c.id)
    )
    return [OpenFinding(**row._mapping) for row in rows]


async def count_open(
    db: AsyncConnection, *, checks: Iterable[str] | None = None, without: Iterable[str] = ()
) -> int:
    """How many findings of this room are open."""
    table = billing_integrity_reports
    query = select(func.count()).where(*_open(), table.c.check_type.not_in(sorted(without)))
    if checks is not None:
        query = query.where(table.c.check_type.in_(sorted(checks)))
    return await db.scalar(query) or 0


def _open() -> tuple[ColumnElement[bool], ...]:
    table = billing_integrity_reports
    return table.c.room == ROOM, table.c.resolved_at.is_(None)


async def find_place(db: AsyncConnection, walk: str) -> str:
    """Where a walk goes on; empty: at the beginning."""
    return (await db.scalar(select(tables.walks.c.place).where(tables.walks.c.name == walk))) or ""


async def save_place(db: AsyncConnection, walk: str, place: str) -> None:
    """Where the next run of a walk goes on."""
    statement = insert(tables.walks).values(name=walk, place=place)
    await db.execute(
        statement.on_conflict_do_update(
            index_elements=["name"], set_={"place": place, "updated_at": func.now()}
        )
    )
