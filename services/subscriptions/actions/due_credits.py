"""GrantDueCredits: free months in batches, months of paid years one year at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions.claims import settle_claims
from services.subscriptions.rules import due, tasks
from services.subscriptions.rules.catalog import FREE, Plan
from services.subscriptions.rules.due import DrippingYear, Month
from services.subscriptions.rules.funding import Grant
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import due as store
from services.subscriptions.store import events as event_store
from services.subscriptions.store import money as money_store
from services.subscriptions.store import subscriptions as subscription_store
from services.subscriptions.store import tasks as task_store
from shared import logs
from shared.database import transaction

BATCH = 500
# Less than half the job's deadline: paying what was granted comes after it.
RUN_SECONDS = 240.0
# Tenants that a batch left out, because somebody held them or the batch failed, are tried one at a time.
STRAGGLERS_MAX = 500

_log = logs.get_logger()


@dataclass
class Due:
    """What one run granted, or would grant."""

    free_months: int = 0
    drip_months: int = 0
    credits: int = 0
    still_due: int = 0
    failed: list[str] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)

    def add(self, grants: Sequence[Grant]) -> None:
        """Count what was granted."""
        months = sum(grant.kind == "free_month" for grant in grants)
        self.free_months += months
        self.drip_months += len(grants) - months
        self.credits += sum(grant.credits for grant in grants)
        self.tenants += [grant.tenant_id for grant in grants]


async def grant_due_credits(engine: AsyncEngine, policy: Policy, *, now: datetime, dry_run: bool) -> Due:
    """Grant what came due, each month once however often and late this runs; a failing tenant stops no other."""
    run, ends_at = Due(), time.monotonic() + RUN_SECONDS
    month = due.current_month(now)
    async with transaction(engine) as db:
        plan = (await catalog_store.read_catalog(db, with_retired=True)).plans.get(FREE)
        owed = await store.count_without_free_month(db, month) if plan and plan.base_credits else 0
    if plan is not None and owed:
        if dry_run:
            run.free_months, run.credits = owed, owed * plan.base_credits
        else:
            await _grant_free_months(engine, run, month, plan, now, ends_at)
            async with transaction(engine) as db:
                run.still_due += await store.count_without_free_month(db, month)
    await _grant_years(engine, policy, run, now, ends_at, dry_run=dry_run)
    return run


async def _grant_free_months(
    engine: AsyncEngine, run: Due, month: Month, plan: Plan, now: datetime, ends_at: float
) -> None:
    after = ""
    while time.monotonic() < ends_at and (page := await _page(engine, month, after, BATCH)):
        after = page[-1]
        try:
            run.add(await _grant_free(engine, page, month, plan, now, wait=False))
        except Exception:
            _log.exception("free_months_failed", first=page[0], last=page[-1])
    for tenant_id in await _page(engine, month, "", STRAGGLERS_MAX):
        if time.monotonic() >= ends_at:
            return
        try:
            run.add(await _grant_free(engine, [tenant_id], month, plan, now, wait=True))
        except Exception:
            run.failed.append(tenant_id)
            _log.exception("free_month_failed", tenant_id=tenant_id)


async def _page(engine: AsyncEngine, month: Month, after: str, limit: int) -> list[str]:
    async with transaction(engine) as db:
        return await store.list_without_free_month(db, month, after=after, limit=limit)


async def _grant_free(
    engine: AsyncEngine, tenants: Sequence[str], month: Month, plan: Plan, now: datetime, *, wait: bool
) -> list[Grant]:
    async with transaction(engine) as db:
        locked = await store.lock_on_free(db, month, tenants, wait=wait)
        grants = [due.free_month(tenant, month, plan.base_credits, plan.name) for tenant in locked]
        return await store.insert_free_months(db, grants, now)


async def _grant_years(
    engine: AsyncEngine, policy: Policy, run: Due, now: datetime, ends_at: float, *, dry_run: bool
) -> None:
    after = ""
    while page := await _years(engine, now, after):
        after = page[-1].payment_id
        for year in page:
            if time.monotonic() >= ends_at:
                run.still_due += 1
                continue
            try:
                run.add(await _grant_year(engine, policy, year, now, dry_run=dry_run))
            except Exception:
                run.still_due += 1
                run.failed.append(year.tenant_id)
                _log.exception("drip_month_failed", tenant_id=year.tenant_id, payment_id=year.payment_id)


async def _years(engine: AsyncEngine, now: datetime, after: str) -> list[DrippingYear]:
    async with transaction(engine) as db:
        return await store.list_dripping(db, now, after=after, limit=BATCH)


async def _grant_year(
    engine: AsyncEngine, policy: Policy, year: DrippingYear, now: datetime, *, dry_run: bool
) -> list[Grant]:
    async with transaction(engine) as db:
        if dry_run:
            return await _owed(db, policy, year, now)
        await subscription_store.lock_subscription(db, year.tenant_id)
        await money_store.lock_payment(db, year.payment_id)
        # A refund may have come in since the page was read.
        granted = await grant_months(db, year.payment_id, now, policy)
        if granted:  # a part of the payment may have gone back before this month's credits came
            await settle_claims(db, year.payment_id, now, policy)
        return granted


async def grant_months(db: AsyncConnection, payment_id: str, now: datetime, policy: Policy) -> list[Grant]:
    """Step: grant the months of a dripping year that have begun; the first one comes with its payment."""
    year = await store.find_dripping(db, payment_id)
    grants = await _owed(db, policy, year, now) if year else []
    granted = [grant for grant in grants if await event_store.insert_grant(db, grant)]
    for grant in granted:
        await task_store.insert_task(db, tasks.grant_credits(grant), now)
    return granted


async def _owed(db: AsyncConnection, policy: Policy, year: DrippingYear, now: datetime) -> list[Grant]:
    known = await subscription_store.list_known(db, year.tenant_id)
    granted = await store.list_granted(db, [year.payment_id])
    return due.due_months(year, known, granted, now, prorated=_prorates(policy))


def _prorates(policy: Policy) -> bool:
    return policy.upgrade_refund == "prorated" and policy.upgrade_credits == "delta_prorated"
