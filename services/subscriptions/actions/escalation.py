"""EscalatePastDue: reminders, then free; and the end of trials announced."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.rules import notices, tasks
from services.subscriptions.rules.alerts import Over, over_limits
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.ladder import DOWNGRADE, DueStep, cycle_ref, due_steps
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.notices import Notice
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import notices as store
from services.subscriptions.store import subscriptions as subscription_store
from services.subscriptions.store import tasks as task_store
from services.subscriptions.store.notices import PastDue
from shared import logs
from shared.database import transaction
from shared.errors import BillingError

BATCH = 500
# Less than half the job's deadline: paying what a downgrade owes, and notices, come after it.
RUN_SECONDS = 240.0
# A downgrade is told by every run of a day: the scheduler may die before it has noted the first one's answer.
TOLD_FOR = timedelta(days=1)
TOLD_MAX = 500

_log = logs.get_logger()


@dataclass(frozen=True)
class Taken:
    """A step that was taken, or would be."""

    tenant_id: str
    kind: str
    past_due_since: datetime
    cycle_ref: str
    skipped: bool
    # Only after a downgrade: what is used beyond the new limits; None: the ledger did not say.
    over_limit: tuple[Over, ...] | None = None


@dataclass
class Escalated:
    """What one run did, or would do."""

    past_due: int = 0
    trials_ending: int = 0
    still_due: int = 0
    steps: list[Taken] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def downgraded(self) -> list[Taken]:
        """Tenants put on free."""
        return [step for step in self.steps if step.kind == DOWNGRADE]


@dataclass(frozen=True)
class Downgrades:
    """Notices of tenants who were put on free, and how many more there are."""

    shown: Sequence[Notice]
    more: int


async def escalate_past_due(
    engine: AsyncEngine, ledger: Ledger, policy: Policy, *, now: datetime, dry_run: bool
) -> Escalated:
    """Take every step that is due, each once per tenant and cycle; a failing tenant stops no other."""
    run = Escalated()
    async with transaction(engine) as db:
        run.past_due = await store.count_past_due(db)
    usage, ends_at = _Usage(ledger), time.monotonic() + RUN_SECONDS
    first = timedelta(days=min((step.day for step in policy.ladder), default=0))
    after = ""
    while page := await _past_due(engine, now - first, after):
        after = page[-1].tenant_id
        for tenant in page:
            steps = due_steps(policy.ladder, tenant.past_due_since, tenant.taken, now)
            if dry_run:
                run.steps += [_taken(tenant, step) for step in steps]
            elif steps and time.monotonic() >= ends_at:
                run.still_due += 1
            elif steps:
                await _escalate(engine, usage, policy, run, tenant.tenant_id, steps, now)
    run.trials_ending = await _announce_trials(engine, now, dry_run=dry_run)
    return run


async def list_downgrades(engine: AsyncEngine, *, now: datetime) -> Downgrades:
    """Whoever was put on free lately, by this run or one whose answer was lost."""
    async with transaction(engine) as db:
        found = await store.list_downgrades(db, now - TOLD_FOR, limit=TOLD_MAX)
        count = len(found)
        if count == TOLD_MAX:
            count = await store.count_downgrades(db, now - TOLD_FOR)
    return Downgrades(found, count - len(found))


async def _past_due(engine: AsyncEngine, since_before: datetime, after: str) -> list[PastDue]:
    async with transaction(engine) as db:
        return await store.list_past_due(db, since_before=since_before, after=after, limit=BATCH)


def _taken(tenant: PastDue, step: DueStep) -> Taken:
    return Taken(tenant.tenant_id, step.kind, tenant.past_due_since, tenant.cycle_ref, step.skipped)


async def _escalate(
    engine: AsyncEngine,
    usage: "_Usage",
    policy: Policy,
    run: Escalated,
    tenant_id: str,
    steps: Sequence[DueStep],
    now: datetime,
) -> None:
    try:
        # Asked before the transaction, and only for a downgrade.
        used = await usage.of(tenant_id) if any(step.kind == DOWNGRADE for step in steps) else None
        async with transaction(engine) as db:
            run.steps += await _take(db, policy, tenant_id, used, now)
    except Exception:
        run.still_due += 1
        run.failed.append(tenant_id)
        _log.exception("escalation_failed", tenant_id=tenant_id)


async def _take(
    db: AsyncConnection, policy: Policy, tenant_id: str, used: Mapping[str, int] | None, now: datetime
) -> list[Taken]:
    """Take the steps that are due under the tenant's lock: somebody may have paid, or another run been here."""
    row = await subscription_store.lock_subscription(db, tenant_id)
    since = row.past_due_since
    known = await subscription_store.find_known(db, row.razorpay_subscription_id or "")
    if row.status != "past_due" or since is None or known is None:
        return []
    cycle = cycle_ref(known)
    steps = due_steps(policy.ladder, since, await store.list_kinds(db, tenant_id, cycle), now)
    catalog = await catalog_store.read_catalog(db, with_retired=True)
    taken = []
    for step in steps:
        over = None
        if step.kind == DOWNGRADE:
            over = await _downgrade(db, row, known, policy, used, now)
        await store.insert_notice(
            db,
            tenant_id=tenant_id,
            kind=step.kind,
            cycle_ref=cycle,
            payload=notices.past_due_payload(row, catalog, policy.ladder, step, steps[-1].kind, over),
            now=now,
            skipped=step.skipped,
        )
        taken.append(Taken(tenant_id, step.kind, since, cycle, step.skipped, over))
    return taken


async def _downgrade(
    db: AsyncConnection,
    row: Subscription,
    known: KnownSubscription,
    policy: Policy,
    used: Mapping[str, int] | None,
    now: datetime,
) -> tuple[Over, ...] | None:
    """Put a tenant on free: its subscription is let go here and ended at the provider; a late charge revives it."""
    why = f"past due since {row.past_due_since:%Y-%m-%d}"
    released = replace(known, released_at=now, released_paid_count=known.paid_count, released_by="ladder")
    await subscription_store.save_known(db, released)
    await task_store.insert_task(db, tasks.cancel_subscription(known, why), now)
    await standing.settle(
        db, row, now, policy, actor_type="system", actor_id="EscalatePastDue", reason=f"{DOWNGRADE}: {why}"
    )
    if used is None:
        return None
    return tuple(over_limits(await subscription_store.read_entitlements(db, row.tenant_id), used))


async def _announce_trials(engine: AsyncEngine, now: datetime, *, dry_run: bool) -> int:
    announced, after = 0, ""
    while True:
        async with transaction(engine) as db:
            page = await store.list_ending_trials(db, now, after=after, limit=BATCH)
            for row in page:
                announced += dry_run or await store.insert_notice(
                    db,
                    tenant_id=row.tenant_id,
                    kind=notices.TRIAL_ENDING_KIND,
                    cycle_ref=row.razorpay_subscription_id or "",
                    payload=notices.trial_payload(row),
                    now=now,
                )
        if not page:
            return announced
        after = page[-1].tenant_id


class _Usage:
    """What tenants use, as the ledger counts it; a ledger that failed once is not asked again in this run."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger: Ledger | None = ledger

    async def of(self, tenant_id: str) -> Mapping[str, int] | None:
        if self._ledger is None:
            return None
        try:
            return await self._ledger.list_usage(tenant_id)
        except BillingError as error:
            _log.warning("usage_unavailable", tenant_id=tenant_id, reason=error.reason)
            if not error.definite:
                self._ledger = None
            return None
