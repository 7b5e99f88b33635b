"""What time alone makes due: scheduled ends, successors that start, and what the provider must know before."""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.errors import UnknownPlan
from services.subscriptions.rules import scheduled, tasks
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import subscriptions as store
from services.subscriptions.store import tasks as task_store
from shared import logs
from shared.database import transaction

# Its time began when the provider made it, a little after we wrote it down.
AFTER_EXPIRY = timedelta(minutes=15)

_log = logs.get_logger()


async def settle_due(engine: AsyncEngine, *, now: datetime, policy: Policy, limit: int) -> None:
    """Settle tenants whose time has come; what they are owed then are tasks."""
    async with transaction(engine) as db:
        tenants = await store.list_due(db, now, lead=policy.cancel_lead, limit=limit)
    for tenant_id in tenants:
        try:
            await _settle(engine, tenant_id, now, policy)
        except Exception:
            _log.exception("due_failed", tenant_id=tenant_id)  # one tenant's trouble is not the others'


async def _settle(engine: AsyncEngine, tenant_id: str, now: datetime, policy: Policy) -> None:
    async with transaction(engine) as db:
        row = await store.lock_subscription(db, tenant_id)
        live = await store.find_known(db, row.razorpay_subscription_id or "")
        step = scheduled.end(row, live, now, policy.cancel_lead)
        if step is not None:
            await store.save_known(db, step.known)
            task = tasks.end_subscription(step.known, at_cycle_end=step.at_cycle_end, since=now)
            await task_store.insert_task(db, task, now)
        await standing.settle(
            db, row, now, policy, actor_type="system", actor_id="time", reason="its time has come"
        )


async def ask_of_expired(engine: AsyncEngine, *, now: datetime, policy: Policy, limit: int) -> None:
    """Owe the provider's word, hourly, on changes that nobody paid in time: it tells of no expiry, and they bar others."""
    cause = f"expiry-{now:%Y%m%dT%H}"
    async with transaction(engine) as db:
        expired = await store.list_expired(
            db, quoted_before=now - policy.change_valid - AFTER_EXPIRY, cause=cause, limit=limit
        )
        for known in expired:
            await task_store.insert_task(db, tasks.fetch_and_apply(known, cause), now)


async def follow_catalog(engine: AsyncEngine, *, now: datetime, limit: int) -> None:
    """Build the entitlements of tenants that still have those of an earlier catalogue; a few of many at a time."""
    async with transaction(engine) as db:
        catalog = await catalog_store.read_catalog(db, with_retired=True)
        tenants = await store.list_outdated(db, catalog.version, limit=limit)
    for tenant_id in tenants:
        try:
            async with transaction(engine) as db:
                await standing.rebuild(db, await store.lock_subscription(db, tenant_id), now)
        except UnknownPlan:
            # Its plan_id was written by hand; the audit tells, and the next catalogue may know the plan.
            async with transaction(engine) as db:
                await store.save_catalog_version(db, tenant_id, catalog.version)
        except Exception:
            _log.exception("catalog_not_followed", tenant_id=tenant_id)  # the next run tries again
