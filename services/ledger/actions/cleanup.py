"""Forgetting what no rule needs any longer; never a transaction or a line."""

import asyncio

from services.ledger.actions import Ledger
from services.ledger.store import cleanup as store
from shared import clock
from shared.database import transaction
from shared.ops.upkeep import forget_buckets

AT_ONCE = 10_000


async def cleanup(ledger: Ledger, *, dry_run: bool, time_left_seconds: float) -> tuple[int, int]:
    """Deletes grace periods that ended long ago and rate limits that limit nobody: (how many of each).

    In portions, so that no lock is kept for long; what the time is too short for is left to the next run.
    """
    now = clock.now()
    ends_at = asyncio.get_running_loop().time() + time_left_seconds / 2
    graces = limits = 0
    while True:
        async with transaction(ledger.engine) as db:
            some_graces = await store.grace_periods(
                db, ended_before=now - ledger.grace_retention, limit=AT_ONCE, dry_run=dry_run
            )
            some_limits = await forget_buckets(
                db,
                room="ledger",
                before=now - ledger.rate_limit_retention,
                limit=AT_ONCE,
                dry_run=dry_run,
            )
        graces, limits = graces + some_graces, limits + some_limits
        done = max(some_graces, some_limits) < AT_ONCE
        if dry_run or done or asyncio.get_running_loop().time() >= ends_at:
            return graces, limits
