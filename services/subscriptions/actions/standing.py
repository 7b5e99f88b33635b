"""Steps that bring a tenant's row and entitlements in line with what is known."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions.actions import claims
from services.subscriptions.errors import UnknownPlan
from services.subscriptions.rules import entitlements, lifecycle, tasks
from services.subscriptions.rules.entitlements import ServiceEntitlement
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import subscriptions as store
from services.subscriptions.store import tasks as task_store
from shared import logs
from shared.ops import store as ops

ROOM = "subscriptions"


@dataclass(frozen=True)
class Rebuilt:
    """What entitlements became; without a task nothing changed."""

    version: int
    services: tuple[ServiceEntitlement, ...]
    task_id: str | None


async def settle(
    db: AsyncConnection,
    row: Subscription,
    now: datetime,
    policy: Policy,
    *,
    changed: Subscription | None = None,
    actor_type: str,
    actor_id: str,
    reason: str,
) -> Subscription:
    """Derive the row anew, owe the end of what must not charge any more and the return of what it was paid ahead.

    `row` is what is stored, `changed` what a request made of it; answers the row as it is stored now.
    """
    known = await store.list_known(db, row.tenant_id)
    standing = lifecycle.derive(changed or row, known, now)
    if standing.row != row:
        await store.save_subscription(db, standing.row)
        await record_change(
            db,
            row.tenant_id,
            "subscription.changed",
            asdict(row),
            asdict(standing.row),
            actor_type=actor_type,
            actor_id=actor_id,
            reason=reason,
        )
    for obsolete in standing.to_cancel:
        task = tasks.cancel_subscription(obsolete, "a newer purchase is live")
        await task_store.insert_task(db, task, now)
    await claims.give_back_unused(db, row.tenant_id, known, now, policy)
    await rebuild(db, standing.row, now)
    return standing.row


async def rebuild(db: AsyncConnection, row: Subscription, now: datetime, *, force: bool = False) -> Rebuilt:
    """Build the tenant's entitlements; when they differ, or on demand, under the next version with a task to push."""
    catalog = await catalog_store.read_catalog(db, with_retired=True)
    if row.entitling_plan_id not in catalog.plans:
        raise UnknownPlan(
            f"the catalogue has no plan {row.entitling_plan_id}: apply the catalogue, or correct the tenant's plan_id",
            plan_code=row.entitling_plan_id,
        )
    services = entitlements.build(
        catalog,
        row.entitling_plan_id,
        await store.list_active_addons(db, row.tenant_id),
        await store.list_overrides(db, row.tenant_id),
        now,
    )
    if not force and services == await store.read_entitlements(db, row.tenant_id):
        if row.catalog_version != catalog.version:
            await store.save_catalog_version(db, row.tenant_id, catalog.version)
        return Rebuilt(row.entitlements_version, services, None)
    version = row.entitlements_version + 1
    await store.save_entitlements(db, row.tenant_id, version, services, catalog_version=catalog.version)
    task = tasks.push_entitlements(row.tenant_id, version, row.entitling_plan_id, services)
    return Rebuilt(version, services, await task_store.insert_task(db, task, now))


async def record_change(
    db: AsyncConnection,
    tenant_id: str,
    action: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    actor_type: str,
    actor_id: str,
    reason: str,
) -> None:
    """One line of audit with the fields that changed."""
    changed = [name for name in after if before.get(name) != after[name]]
    await ops.record_audit(
        db,
        room=ROOM,
        action=action,
        actor_type=actor_type,
        actor_id=actor_id,
        tenant_id=tenant_id,
        resource_type="subscription",
        resource_id=tenant_id,
        before={name: plain(before.get(name)) for name in changed},
        after={name: plain(after[name]) for name in changed},
        reason=reason,
        request_id=logs.request_id.get(),
    )


def plain(value: Any) -> Any:
    """A value as the audit log keeps it."""
    return value.isoformat() if isinstance(value, datetime) else value
