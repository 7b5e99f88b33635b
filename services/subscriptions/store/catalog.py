"""The catalogue's tables."""

from dataclasses import asdict
from typing import Any, get_args

from sqlalchemy import Table, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.catalog import (
    Addon,
    Cadence,
    Catalog,
    CreditCost,
    CreditPack,
    Cycle,
    LimitDefinition,
    Plan,
)
from shared.ids import new_id

# The newest applied state, by the id of its version: without and with what is no longer sold.
_read: dict[str, dict[bool, Catalog]] = {}
_CADENCES: tuple[Cadence, ...] = get_args(Cadence)


async def read_catalog(db: AsyncConnection, *, with_retired: bool = False) -> Catalog:
    """What is for sale; with what is no longer sold too, for tenants who still have it."""
    versions = tables.catalog_versions
    # Ids are drawn behind the lock of whoever applies, moments at the beginning of its transaction.
    newest = await db.scalar(select(versions.c.id).order_by(versions.c.id.desc()).limit(1))
    if newest is None:
        return await _read_catalog(db, with_retired=with_retired)
    if newest not in _read:  # an applied state never changes, and every event needs it
        read = {retired: await _read_catalog(db, with_retired=retired) for retired in (False, True)}
        _read.clear()
        _read[newest] = read
    return _read[newest][with_retired]


async def _read_catalog(db: AsyncConnection, *, with_retired: bool) -> Catalog:
    rows = {
        table: (
            await db.execute(select(table) if with_retired else select(table).where(table.c.is_active))
        ).all()
        for table in (
            tables.services,
            tables.service_limits,
            tables.plans,
            tables.credit_packs,
            tables.addon_catalog,
            tables.credit_costs,
        )
    }
    limits = {
        f"{row.service_id}.{row.limit_key}": LimitDefinition(
            row.service_id, row.limit_key, row.name, row.unit, row.kind, row.grace_seconds
        )
        for row in rows[tables.service_limits]
    }
    of_plans: dict[str, dict[str, int | None]] = {}
    for row in (await db.execute(select(tables.plan_service_limits))).all():
        path = f"{row.service_id}.{row.limit_key}"
        if path in limits:
            of_plans.setdefault(row.plan_id, {})[path] = row.value
    return Catalog(
        services={row.id: row.name for row in rows[tables.services]},
        limits=limits,
        plans={row.id: _plan(row, of_plans.get(row.id, {})) for row in rows[tables.plans]},
        credit_packs={
            row.id: CreditPack(row.id, row.name, row.position, row.credits, row.price_paise)
            for row in rows[tables.credit_packs]
        },
        addons={
            row.id: Addon(
                row.id,
                row.name,
                f"{row.service_id}.{row.limit_key}",
                row.quantity,
                row.credits,
                row.period_days,
            )
            for row in rows[tables.addon_catalog]
        },
        credit_costs={
            row.id: CreditCost(row.id, row.credits, row.description) for row in rows[tables.credit_costs]
        },
    )


def _plan(row: Any, limits: dict[str, int | None]) -> Plan:
    return Plan(
        code=row.id,
        name=row.name,
        position=row.position,
        price_monthly_paise=row.price_monthly_paise,
        price_yearly_paise=row.price_yearly_paise,
        base_credits=row.base_credits,
        credit_cadence=next(cadence for cadence in _CADENCES if cadence == row.credit_cadence),
        trial_days=row.trial_days,
        trial_credits=row.trial_credits,
        limits=limits,
    )


async def lock_catalog(db: AsyncConnection) -> None:
    """Keep other appliers out until the end of the transaction; readers go on."""
    await db.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("subscriptions.catalog", 0))))


async def write_catalog(db: AsyncConnection, catalog: Catalog, *, actor: str) -> None:
    """Make the tables equal to the catalogue. What is gone from it is retired, never deleted."""
    await _upsert(
        db, tables.services, [{"id": code, "name": name} for code, name in catalog.services.items()]
    )
    await _upsert(
        db,
        tables.service_limits,
        [
            {
                "service_id": limit.service,
                "limit_key": limit.key,
                "name": limit.name,
                "unit": limit.unit,
                "kind": limit.kind,
                "grace_seconds": limit.grace_seconds,
            }
            for limit in catalog.limits.values()
        ],
    )
    await _upsert(db, tables.plans, [_plan_row(plan) for plan in catalog.plans.values()])
    await _write_plan_limits(db, catalog)
    await _upsert(
        db,
        tables.credit_packs,
        [
            {
                "id": pack.code,
                "name": pack.name,
                "position": pack.position,
                "credits": pack.credits,
                "price_paise": pack.total_paise,
            }
            for pack in catalog.credit_packs.values()
        ],
    )
    await _upsert(db, tables.addon_catalog, [_addon_row(addon) for addon in catalog.addons.values()])
    await _upsert(
        db,
        tables.credit_costs,
        [
            {"id": cost.action, "credits": cost.credits, "description": cost.description}
            for cost in catalog.credit_costs.values()
        ],
    )
    await db.execute(
        insert(tables.catalog_versions).values(
            id=new_id("cat"), version=catalog.version, content=catalog.as_json(), actor=actor
        )
    )


def _plan_row(plan: Plan) -> dict[str, Any]:
    row = asdict(plan)
    row["id"] = row.pop("code")
    del row["limits"]
    return row | {
        "yearly_discount_pct": plan.yearly_discount_pct,
        "seats": plan.limits.get("platform.seats"),
    }


def _addon_row(addon: Addon) -> dict[str, Any]:
    service, key = addon.limit.split(".", 1)
    return {
        "id": addon.code,
        "name": addon.name,
        "service_id": service,
        "limit_key": key,
        "quantity": addon.quantity,
        "credits": addon.credits,
        "period_days": addon.period_days,
    }


async def _upsert(db: AsyncConnection, table: Table, rows: list[dict[str, Any]]) -> None:
    keys = [column.name for column in table.primary_key.columns]
    if rows:
        statement = insert(table).values([row | {"is_active": True} for row in rows])
        changes: dict[str, Any] = {
            name: statement.excluded[name] for name in (*rows[0], "is_active") if name not in keys
        }
        if "updated_at" in table.c:
            changes["updated_at"] = func.now()
        await db.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes))
    present = [tuple(row[key] for key in keys) for row in rows]
    await db.execute(
        update(table).where(tuple_(*(table.c[key] for key in keys)).not_in(present)).values(is_active=False)
    )


async def _write_plan_limits(db: AsyncConnection, catalog: Catalog) -> None:
    table = tables.plan_service_limits
    rows = [
        {"plan_id": plan.code, "service_id": service, "limit_key": key, "value": value}
        for plan in catalog.plans.values()
        for path, value in plan.limits.items()
        for service, key in [path.split(".", 1)]
    ]
    statement = insert(table).values(rows)
    await db.execute(
        statement.on_conflict_do_update(
            index_elements=["plan_id", "service_id", "limit_key"], set_={"value": statement.excluded.value}
        )
    )
    await db.execute(
        delete(table).where(
            table.c.plan_id.in_(catalog.plans),
            tuple_(table.c.plan_id, table.c.service_id, table.c.limit_key).not_in(
                [(row["plan_id"], row["service_id"], row["limit_key"]) for row in rows]
            ),
        )
    )


async def find_provider_plan(
    db: AsyncConnection, *, plan_id: str, cycle: Cycle, amount_paise: int
) -> str | None:
    """The newest plan that we made at the provider for this price."""
    table = tables.provider_plans
    return await db.scalar(
        select(table.c.provider_plan_id)
        .where(
            table.c.plan_id == plan_id, table.c.billing_cycle == cycle, table.c.amount_paise == amount_paise
        )
        .order_by(table.c.created_at.desc())
        .limit(1)
    )


async def insert_provider_plan(
    db: AsyncConnection,
    provider_plan_id: str,
    *,
    provider: str,
    plan_id: str,
    cycle: Cycle,
    amount_paise: int,
    currency: str,
) -> None:
    """Remember a plan at the provider; the catalogue shows the newest."""
    await db.execute(
        insert(tables.provider_plans)
        .values(
            provider_plan_id=provider_plan_id,
            provider=provider,
            plan_id=plan_id,
            billing_cycle=cycle,
            amount_paise=amount_paise,
            currency=currency,
        )
        .on_conflict_do_nothing()
    )
    await db.execute(
        update(tables.plans)
        .where(tables.plans.c.id == plan_id)
        .values({f"razorpay_plan_id_{cycle}": provider_plan_id, "updated_at": func.now()})
    )
