"""ProvisionTenant: a new tenant on the free plan."""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.store import keys
from services.subscriptions.store import subscriptions as store
from shared.database import transaction
from shared.ids import new_id

METHOD = "ProvisionTenant"


@dataclass(frozen=True)
class Provisioned:
    """The tenant as it was when it was provisioned."""

    plan_id: str
    status: str
    entitlements_version: int
    created: bool


async def provision_tenant(
    engine: AsyncEngine, *, tenant_id: str, idempotency_key: str, now: datetime
) -> Provisioned:
    """Give a tenant its row and the free entitlements; a known tenant is answered as it stands."""
    async with transaction(engine) as db:
        created = await store.insert_subscription(db, Subscription(id=new_id("sub"), tenant_id=tenant_id))
        row = await store.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(
            db, tenant_id=tenant_id, method=METHOD, key=idempotency_key, request={}
        )
        if answer is not None:
            return Provisioned(**answer)
        version = row.entitlements_version
        if created:
            version = (await standing.rebuild(db, row, now)).version
            await standing.record_change(
                db,
                tenant_id,
                "tenant.provisioned",
                {},
                {"plan_id": row.plan_id, "status": row.status},
                actor_type="service",
                actor_id="product",
                reason="provisioned",
            )
        provisioned = Provisioned(row.plan_id, row.status, version, created)
        await keys.insert_answer(
            db,
            tenant_id=tenant_id,
            method=METHOD,
            key=idempotency_key,
            request={},
            answer=asdict(provisioned),
        )
    return provisioned
