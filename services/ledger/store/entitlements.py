"""What a tenant may use, as pushed, and what it has used, as counted."""

from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.rules.limits import ServiceEntitlement
from services.ledger.store.limits import from_json, to_json
from services.ledger.tables import tenant_services, tenant_usage
from shared import ids

OPEN_ACCOUNT = """
INSERT INTO tenant_credits (tenant_id, id, last_at, chain_head, created_at)
VALUES (:tenant_id, :id, 'epoch', :genesis, :now) ON CONFLICT (tenant_id) DO NOTHING"""

LOCK_VERSION = (
    "SELECT entitlements_version FROM tenant_credits WHERE tenant_id = :tenant_id FOR NO KEY UPDATE"
)

SET_VERSION = """
UPDATE tenant_credits SET entitlements_version = :version, plan_code = :plan_code WHERE tenant_id = :tenant_id"""

# Services that a newer version no longer names stay as rows, disabled and without limits.
DISABLE_OTHERS = """
UPDATE tenant_services SET enabled = false, limits = '{}', updated_at = :now
WHERE tenant_id = :tenant_id AND NOT service_code = ANY(:codes) AND (enabled OR limits <> '{}')"""


async def open_account(db: AsyncConnection, tenant_id: str, *, genesis: bytes, now: datetime) -> None:
    """Makes sure that there is a row to lock."""
    values = {"tenant_id": tenant_id, "id": ids.new_id("acc"), "genesis": genesis, "now": now}
    await db.execute(text(OPEN_ACCOUNT), values)


async def lock_version(db: AsyncConnection, tenant_id: str) -> int:
    """The version stored, with the tenant locked."""
    return int((await db.execute(text(LOCK_VERSION), {"tenant_id": tenant_id})).scalar_one())


async def replace(
    db: AsyncConnection,
    tenant_id: str,
    services: list[ServiceEntitlement],
    *,
    version: int,
    plan_code: str,
    now: datetime,
) -> None:
    """Stores exactly these services under this version."""
    rows = [
        {
            "tenant_id": tenant_id,
            "service_code": service.service_code,
            "id": ids.new_id("svc"),
            "enabled": service.enabled,
            "limits": {limit.key: to_json(limit) for limit in service.limits},
            "created_at": now,
            "updated_at": now,
        }
        for service in services
    ]
    if rows:
        statement = insert(tenant_services).values(rows)
        renewed = {name: statement.excluded[name] for name in ("enabled", "limits", "updated_at")}
        await db.execute(
            statement.on_conflict_do_update(index_elements=["tenant_id", "service_code"], set_=renewed)
        )
    codes = [service.service_code for service in services]
    await db.execute(text(DISABLE_OTHERS), {"tenant_id": tenant_id, "codes": codes, "now": now})
    await db.execute(text(SET_VERSION), {"tenant_id": tenant_id, "version": version, "plan_code": plan_code})


async def find_entitlements(
    db: AsyncConnection, tenant_id: str
) -> tuple[int, str, list[ServiceEntitlement]] | None:
    """(version, plan, services) as stored."""
    row = (
        await db.execute(
            text("SELECT entitlements_version, plan_code FROM tenant_credits WHERE tenant_id = :tenant_id"),
            {"tenant_id": tenant_id},
        )
    ).first()
    if row is None:
        return None
    columns = (tenant_services.c.service_code, tenant_services.c.enabled, tenant_services.c.limits)
    result = await db.execute(
        select(*columns)
        .where(tenant_services.c.tenant_id == tenant_id)
        .order_by(tenant_services.c.service_code)
    )
    services = [
        ServiceEntitlement(
            code, enabled, tuple(from_json(key, limit) for key, limit in sorted(limits.items()))
        )
        for code, enabled, limits in result
    ]
    return row[0], row[1], services


async def list_usage(
    db: AsyncConnection, tenant_id: str, *, after: str, page: int
) -> list[tuple[str, int, datetime]]:
    """(limit key, used, when it changed), by key."""
    columns = (tenant_usage.c.limit_key, tenant_usage.c.used, tenant_usage.c.updated_at)
    result = await db.execute(
        select(*columns)
        .where(tenant_usage.c.tenant_id == tenant_id, tenant_usage.c.limit_key > after)
        .order_by(tenant_usage.c.limit_key)
        .limit(page)
    )
    return [(row[0], row[1], row[2]) for row in result]
