"""Watching the inbox and keeping it small."""

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.webhooks.metrics import Metrics
from services.webhooks.rules import health
from services.webhooks.rules.health import Alert, BusinessHours, Spike
from services.webhooks.store import inbox, operators, signatures, upkeep
from shared import database
from shared.clock import Clock
from shared.database import transaction
from shared.ops import upkeep as ops_upkeep

ROOM = "webhooks"
_BATCH = 1000
_BATCHES_MAX = 20
# More than a recorder takes down in two hours; of a flood over many of them the newest tell enough.
_FAILURES_READ = 20_000
_ANSWER_SECONDS = 2.0
_FRESH_SECONDS = 1.0


@dataclass(frozen=True)
class Watch:
    """What is normal."""

    hours: BusinessHours
    silence: timedelta
    signature_spike: Spike
    dead_letters: int


@dataclass(frozen=True)
class Retention:
    """How long things are kept."""

    bodies: timedelta
    events: timedelta
    requests: timedelta
    signature_failures: timedelta


@dataclass(frozen=True)
class Condition:
    """How the inbox is."""

    last_received_at: datetime | None
    signature_failures: int
    pending: int
    oldest_pending_at: datetime | None
    dead_letters: int
    alerts: list[Alert]


@dataclass(frozen=True)
class Removed:
    """What a cleaning removed, or would remove."""

    bodies: int = 0
    events: int = 0
    requests: int = 0
    signature_failures: int = 0
    buckets: int = 0
    more_remains: bool = False

    @property
    def counts(self) -> tuple[int, ...]:
        """How many of each."""
        return (self.bodies, self.events, self.requests, self.signature_failures, self.buckets)

    def plus(self, other: "Removed") -> "Removed":
        """Both together."""
        bodies, events, requests, failures, buckets = (
            ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)
        )
        return Removed(bodies, events, requests, failures, buckets)


async def check_health(engine: AsyncEngine, watch: Watch, now: datetime) -> Condition:
    """How the inbox is, and what of it deserves attention."""
    async with transaction(engine) as db:
        last = await upkeep.last_received_at(db)
        recent = await signatures.count_failures(db, health.HOUR)
        failures_now, failures = await signatures.newest_failures(db, 2 * health.HOUR, _FAILURES_READ)
        pending, _, oldest = await inbox.count_pending(db)
        letters = await operators.count_letters(db)
    alerts = [
        *health.silence(now, last, watch.hours, watch.silence),
        *health.signature_spikes(failures, failures_now, watch.signature_spike),
        *health.dead_letters(letters, watch.dead_letters),
    ]
    return Condition(last, recent, pending, oldest, letters, alerts)


async def count_pending(engine: AsyncEngine) -> int:
    """How many events wait, whether due or not."""
    async with transaction(engine) as db:
        pending, _, _ = await inbox.count_pending(db)
    return pending


async def clean_up(
    engine: AsyncEngine, retention: Retention, now: datetime, *, seconds: float, dry_run: bool
) -> Removed:
    """Removes what is older than its retention, in small transactions, for at most so many seconds."""
    if dry_run:
        async with transaction(engine) as db:
            return await _removable(db, retention, now)
    ends_at = time.monotonic() + seconds
    removed = Removed()
    for _ in range(_BATCHES_MAX):
        async with transaction(engine) as db:
            batch = await _remove_batch(db, retention, now)
        removed = removed.plus(batch)
        if not batch.more_remains:
            return replace(removed, more_remains=False)
        if time.monotonic() >= ends_at:
            break
    return replace(removed, more_remains=True)


async def _removable(db: AsyncConnection, retention: Retention, now: datetime) -> Removed:
    bodies, events, requests = await upkeep.count_removable(
        db,
        bodies=now - retention.bodies,
        events=now - retention.events,
        requests=now - retention.requests,
    )
    failures = await ops_upkeep.forget_signature_failures(
        db, room=ROOM, before=now - retention.signature_failures, limit=_BATCH, dry_run=True
    )
    buckets = await ops_upkeep.forget_buckets(
        db, room=ROOM, before=now - ops_upkeep.BUCKETS_KEPT, limit=_BATCH, dry_run=True
    )
    return Removed(bodies, events, requests, failures, buckets)


async def _remove_batch(db: AsyncConnection, retention: Retention, now: datetime) -> Removed:
    batch = Removed(
        await upkeep.remove_bodies(db, before=now - retention.bodies, now=now, limit=_BATCH),
        await upkeep.remove_events(db, before=now - retention.events, limit=_BATCH),
        await upkeep.remove_requests(db, before=now - retention.requests, limit=_BATCH),
        await ops_upkeep.forget_signature_failures(
            db, room=ROOM, before=now - retention.signature_failures, limit=_BATCH
        ),
        await ops_upkeep.forget_buckets(db, room=ROOM, before=now - ops_upkeep.BUCKETS_KEPT, limit=_BATCH),
    )
    return replace(batch, more_remains=max(batch.counts) >= _BATCH)


class Watchman:
    """Answers health checks and scrapes, however many, with few questions to the database."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._asked_at = float("-inf")
        self._answered = False
        self._lock = asyncio.Lock()

    async def database_answers(self) -> bool:
        """Whether the database answered within the last second or does now."""
        async with self._lock:
            if time.monotonic() - self._asked_at > _FRESH_SECONDS:
                self._answered = await self._ping()
                self._asked_at = time.monotonic()
            return self._answered

    async def refresh(self, metrics: Metrics) -> None:
        """Brings the gauges up to date; raises when the database does not answer."""
        async with transaction(self._engine) as db:
            pending, due, oldest = await inbox.count_pending(db)
            letters = await operators.count_letters(db)
        metrics.pending.set(pending)
        metrics.due.set(due)
        metrics.lag_seconds.set(max(0.0, (self._clock() - oldest).total_seconds()) if oldest else 0.0)
        metrics.dead_letters.set(letters)

    async def _ping(self) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await database.ping(self._engine)
        except Exception:
            return False
        return True
