"""Cleanup: forgets what was done, answered or recorded long ago."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.rules.policy import Retention
from services.subscriptions.store import keys, tasks
from shared.database import transaction
from shared.ops import upkeep

ROOM = "subscriptions"
DELETED_AT_MOST = 10_000


@dataclass(frozen=True)
class Cleaned:
    """How many rows of each kind are gone, or would be."""

    tasks: int
    keys: int
    signature_failures: int
    buckets: int

    @property
    def rows(self) -> int:
        """All of them."""
        return self.tasks + self.keys + self.signature_failures + self.buckets


async def cleanup(engine: AsyncEngine, kept: Retention, *, now: datetime, dry_run: bool) -> Cleaned:
    """Deletes so many of each that are older than they are kept; a rehearsal counts these, the rest is the next run's."""
    most = DELETED_AT_MOST
    async with transaction(engine) as db:
        failures = await upkeep.forget_signature_failures(
            db, room=ROOM, before=now - kept.signature_failures, limit=most, dry_run=dry_run
        )
        buckets = await upkeep.forget_buckets(
            db, room=ROOM, before=now - upkeep.BUCKETS_KEPT, limit=most, dry_run=dry_run
        )
        return Cleaned(
            tasks=await tasks.delete_completed(db, now - kept.completed_tasks, dry_run=dry_run, limit=most),
            keys=await keys.delete_old(db, now - kept.idempotency_keys, dry_run=dry_run, limit=most),
            signature_failures=min(failures, most),
            buckets=min(buckets, most),
        )
