"""Where tenants stand, and what we know of their provider subscriptions."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, case, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.errors import UnknownTenant
from services.subscriptions.rules.entitlements import (
    ActiveAddon,
    Override,
    ServiceEntitlement,
    as_json,
    from_json,
)
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.lifecycle import Subscription

_ROW = [tables.subscriptions.c[field.name] for field in fields(Subscription)]
_KNOWN = [tables.provider_subscriptions.c[field.name] for field in fields(KnownSubscription)]
_NEVER_CHANGES = frozenset(
    {
        "id",
        "tenant_id",
        "intent_id",
        "plan_id",
        "billing_cycle",
        "provider_plan_id",
        "purchased_at",
        "trial_ends_at",
        "starts_at",
    }
)


async def insert_subscription(db: AsyncConnection, row: Subscription) -> bool:
    """Put a tenant on its first row; False if it has one."""
    inserted = await db.scalar(
        insert(tables.subscriptions)
        .values(**asdict(row))
        .on_conflict_do_nothing(index_elements=["tenant_id"])
        .returning(tables.subscriptions.c.tenant_id)
    )
    return inserted is not None


async def lock_subscription(db: AsyncConnection, tenant_id: str) -> Subscription:
    """The tenant's row, held until the end of the transaction: one change of a tenant at a time."""
    row = (await db.execute(_of_tenant(tenant_id).with_for_update())).one_or_none()
    if row is None:
        raise UnknownTenant(
            f"tenant {tenant_id} was never provisioned: call ProvisionTenant first", tenant_id=tenant_id
        )
    return Subscription(**row._mapping)


async def find_subscription(db: AsyncConnection, tenant_id: str) -> Subscription | None:
    """The tenant's row as it is."""
    row = (await db.execute(_of_tenant(tenant_id))).one_or_none()
    return Subscription(**row._mapping) if row else None


def _of_tenant(tenant_id: str) -> Select[Any]:
    return select(*_ROW).where(tables.subscriptions.c.tenant_id == tenant_id)


async def save_subscription(db: AsyncConnection, row: Subscription) -> None:
    """Write the tenant's row."""
    values = {name: value for name, value in asdict(row).items() if name not in ("id", "tenant_id")}
    await db.execute(
        update(tables.subscriptions)
        .where(tables.subscriptions.c.tenant_id == row.tenant_id)
        .values(**values, updated_at=func.now())
    )


async def list_due(db: AsyncConnection, now: datetime, *, lead: timedelta, limit: int) -> list[str]:
    """Tenants whose scheduled end is near or over, or whose pending change is to take effect."""
    table, known = tables.subscriptions, tables.provider_subscriptions
    ends_at = case((table.c.status == "trialing", table.c.trial_end), else_=table.c.current_period_end)
    untold = exists().where(
        known.c.id == table.c.razorpay_subscription_id,
        known.c.end_requested_at.is_(None),
        known.c.status.in_(("active", "authenticated")),
    )
    rows = await db.execute(
        select(table.c.tenant_id)
        .where(
            or_(
                and_(table.c.cancel_at_period_end, ends_at <= now),
                and_(table.c.cancel_at_period_end, ends_at <= now + lead, untold),
                and_(
                    table.c.pending_effective_at <= now, table.c.pending_razorpay_subscription_id.is_not(None)
                ),
            )
        )
        .order_by(table.c.tenant_id)
        .limit(limit)
    )
    return [row.tenant_id for row in rows]


async def list_expired(
    db: AsyncConnection, *, quoted_before: datetime, cause: str, limit: int
) -> list[KnownSubscription]:
    """Pending changes that nobody authorised in their time, as far as we know, and that were not asked after for a cause."""
    rows, known, intents = tables.subscriptions, tables.provider_subscriptions, tables.checkout_intents
    queue = tables.billing_reconciliation_queue
    asked = exists().where(
        queue.c.tenant_id == known.c.tenant_id,
        queue.c.idempotency_key == func.concat("fetch:", known.c.id, f":{cause}"),
    )
    found = await db.execute(
        select(*_KNOWN)
        .join(rows, rows.c.pending_razorpay_subscription_id == known.c.id)
        .join(intents, intents.c.id == known.c.intent_id)
        .where(
            rows.c.pending_razorpay_subscription_id.is_not(None),
            rows.c.pending_kind == "upgrade",
            known.c.status == "created",
            intents.c.quoted_at.is_not(None),
            known.c.purchased_at < quoted_before,
            ~asked,
        )
        .order_by(known.c.purchased_at.desc(), known.c.id)
        .limit(limit)
    )
    return [KnownSubscription(**row._mapping) for row in found]


async def read_entitlements(db: AsyncConnection, tenant_id: str) -> tuple[ServiceEntitlement, ...]:
    """What was built last for the tenant."""
    stored = await db.scalar(
        select(tables.subscriptions.c.entitlements).where(tables.subscriptions.c.tenant_id == tenant_id)
    )
    return from_json(stored or [])


async def list_outdated(db: AsyncConnection, catalog_version: str, *, limit: int) -> list[str]:
    """Tenants whose entitlements were built from another catalogue."""
    table = tables.subscriptions
    rows = await db.execute(
        select(table.c.tenant_id)
        .where(or_(table.c.catalog_version < catalog_version, table.c.catalog_version > catalog_version))
        .limit(limit)
    )
    return [row.tenant_id for row in rows]


async def save_catalog_version(db: AsyncConnection, tenant_id: str, catalog_version: str) -> None:
    """Say that what was built before is what this catalogue makes, too."""
    await db.execute(
        update(tables.subscriptions)
        .where(tables.subscriptions.c.tenant_id == tenant_id)
        .values(catalog_version=catalog_version)
    )


async def save_entitlements(
    db: AsyncConnection,
    tenant_id: str,
    version: int,
    services: Sequence[ServiceEntitlement],
    *,
    catalog_version: str,
) -> None:
    """Write what was built under its version."""
    await db.execute(
        update(tables.subscriptions)
        .where(tables.subscriptions.c.tenant_id == tenant_id)
        .values(
            entitlements_version=version,
            entitlements=as_json(services),
            catalog_version=catalog_version,
            updated_at=func.now(),
        )
    )


async def list_active_addons(db: AsyncConnection, tenant_id: str) -> list[ActiveAddon]:
    """Add-ons that count towards limits."""
    table = tables.tenant_addons
    rows = await db.execute(
        select(table.c.addon_id, table.c.units)
        .where(table.c.tenant_id == tenant_id, table.c.status.in_(("active", "canceling")))
        .order_by(table.c.id)
    )
    return [ActiveAddon(row.addon_id, row.units) for row in rows]


async def list_paused_addons(db: AsyncConnection, tenant_id: str) -> list[tuple[str, datetime]]:
    """Add-ons that credits no longer cover, and since when."""
    table = tables.tenant_addons
    rows = await db.execute(
        select(table.c.addon_id, func.coalesce(table.c.paused_at, table.c.updated_at).label("since")).where(
            table.c.tenant_id == tenant_id, table.c.status == "paused"
        )
    )
    return [(row.addon_id, row.since) for row in rows]


async def list_overrides(db: AsyncConnection, tenant_id: str) -> list[Override]:
    """Limits set for this tenant."""
    table = tables.tenant_overrides
    rows = await db.execute(
        select(table.c.service_id, table.c.limit_key, table.c.value, table.c.expires_at)
        .where(table.c.tenant_id == tenant_id, table.c.removed_at.is_(None))
        .order_by(table.c.id)
    )
    return [Override(row.service_id, row.limit_key, row.value, row.expires_at) for row in rows]


async def list_known(db: AsyncConnection, tenant_id: str) -> list[KnownSubscription]:
    """Every provider subscription that the tenant ever began."""
    table = tables.provider_subscriptions
    rows = await db.execute(
        select(*_KNOWN).where(table.c.tenant_id == tenant_id).order_by(table.c.purchased_at, table.c.id)
    )
    return [KnownSubscription(**row._mapping) for row in rows]


async def find_known(db: AsyncConnection, subscription_id: str) -> KnownSubscription | None:
    """What we know of a provider subscription, if we began it."""
    table = tables.provider_subscriptions
    row = (await db.execute(select(*_KNOWN).where(table.c.id == subscription_id))).one_or_none()
    return KnownSubscription(**row._mapping) if row else None


async def save_known(db: AsyncConnection, known: KnownSubscription) -> None:
    """Write what we know of a provider subscription, the first time or again."""
    values = asdict(known)
    statement = insert(tables.provider_subscriptions).values(**values)
    changes: dict[str, Any] = {name: value for name, value in values.items() if name not in _NEVER_CHANGES}
    await db.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_=changes | {"updated_at": func.now()})
    )
