"""SyncWithProvider: what the provider holds and we do not, whatever became of its webhooks.

A run has a bounded time and says when it was too short. First come purchases of credits and money that went back, then
the provider's own lists, then subscription by subscription, then the provider's payments of the last days. The last
three go on in the next run where this one stopped.
What differs is owed as tasks or applied as events, so that it takes the same way as a webhook, once.
"""

import hashlib

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions.sync import known, money, payments, strangers
from services.subscriptions.actions.sync.run import Run, Synced
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rules.policy import Policy
from shared import logs
from shared.clock import Clock

_log = logs.get_logger()


async def sync_with_provider(
    engine: AsyncEngine,
    razorpay: Razorpay,
    *,
    tenant_id: str | None,
    idempotency_key: str,
    mode: str,
    clock: Clock,
    policy: Policy,
    dry_run: bool,
    time_left_seconds: float,
) -> Synced:
    """Compare with the provider and owe what differs; a provider that falls silent ends the run, and is told of."""
    run = Run(
        engine,
        razorpay,
        mode=mode,
        clock=clock,
        policy=policy,
        tenant_id=tenant_id,
        # The tasks of one run are owed once, those of the next run once more.
        cause=f"sync-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:16]}",
        dry_run=dry_run,
        time_left_seconds=time_left_seconds,
    )
    if razorpay.configured:
        await money.compare_purchases(run)
        await money.compare_unsettled(run)
        await strangers.compare_lists(run)
        await known.compare_known(run)
        await payments.compare_payments(run)
    synced = run.conclude()
    _log.info(
        "synced",
        compared=synced.compared,
        differences=synced.differences,
        tasks=synced.tasks_queued,
        orphans=synced.orphans,
        silences=run.silences,
        finished=run.finished,
    )
    return synced
