"""RebuildEntitlements: on demand, as runbook 4 asks."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.rules.entitlements import ServiceEntitlement, as_json, from_json
from services.subscriptions.store import keys
from services.subscriptions.store import subscriptions as store
from shared.database import transaction

METHOD = "RebuildEntitlements"


@dataclass(frozen=True)
class RebuiltOnDemand:
    """The entitlements under their new version, and the task that pushes them."""

    version: int
    services: tuple[ServiceEntitlement, ...]
    task_id: str
    replayed: bool


async def rebuild_entitlements(
    engine: AsyncEngine, *, tenant_id: str, idempotency_key: str, actor: str, reason: str, now: datetime
) -> RebuiltOnDemand:
    """Build a tenant's entitlements under the next version even when nothing seems to differ."""
    request = {"actor": actor, "reason": reason}
    async with transaction(engine) as db:
        row = await store.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(
            db, tenant_id=tenant_id, method=METHOD, key=idempotency_key, request=request
        )
        if answer is not None:
            return RebuiltOnDemand(
                answer["version"], from_json(answer["services"]), answer["task_id"], replayed=True
            )
        rebuilt = await standing.rebuild(db, row, now, force=True)
        task_id = rebuilt.task_id or ""
        await standing.record_change(
            db,
            tenant_id,
            "entitlements.rebuilt",
            {"entitlements_version": row.entitlements_version},
            {"entitlements_version": rebuilt.version},
            actor_type="operator",
            actor_id=actor,
            reason=reason,
        )
        await keys.insert_answer(
            db,
            tenant_id=tenant_id,
            method=METHOD,
            key=idempotency_key,
            request=request,
            answer={"version": rebuilt.version, "services": as_json(rebuilt.services), "task_id": task_id},
        )
    return RebuiltOnDemand(rebuilt.version, rebuilt.services, task_id, replayed=False)
