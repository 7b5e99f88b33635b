"""What the scheduler forgets."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler.rules import Policy
from services.scheduler.store import alerts as alert_store
from services.scheduler.store import jobs as job_store
from services.scheduler.store import runs as run_store
from shared import logs
from shared.database import transaction
from shared.ops import upkeep

ROOM = "scheduler"
PRUNED_AT_MOST = 10_000
DEFAULTS = Policy()

log = logs.get_logger()


async def prune(
    engine: AsyncEngine, *, now: datetime, policy: Policy = DEFAULTS, limit: int = PRUNED_AT_MOST
) -> dict[str, int]:
    """Forget the oldest of what nobody will ask for, so many of each kind; again finds what is left, or nothing."""
    async with transaction(engine) as db:
        forgotten = {
            "runs": await run_store.prune(db, older_than=now - policy.runs_kept, limit=limit),
            "events": await alert_store.close_events(db, now=now),
            "alerts": await alert_store.prune(db, older_than=now - policy.alerts_kept, limit=limit),
            "requests": await job_store.prune(db, older_than=now - policy.requests_kept, limit=limit),
            "posts": await alert_store.prune_posts(db),
            "buckets": await upkeep.forget_buckets(
                db, room=ROOM, before=now - upkeep.BUCKETS_KEPT, limit=limit
            ),
        }
    if any(forgotten.values()):
        log.info("pruned", **forgotten)
    return forgotten
