"""Ticks: claimed once, executed by whoever holds their lease."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import metrics, rules
from services.scheduler.clients import Maintenance, failure
from services.scheduler.jobs import BY_NAME, JOBS
from services.scheduler.rules import Alert, Outcome, Policy, Report, Run, Target
from services.scheduler.store import alerts as alert_store
from services.scheduler.store import jobs as job_store
from services.scheduler.store import runs as run_store
from shared import logs
from shared.backoff import delay
from shared.clock import Clock
from shared.database import transaction
from shared.errors import Aborted, BillingError, ResourceExhausted

ROOM = "scheduler"
CALL_ATTEMPTS = 3
# The next second asks again; longer than anybody waits for a row.
CLAIM_SECONDS = 6.0
# How long a run that is over waits for a database that is away; by then somebody else has long taken it.
END_SECONDS = 60.0
DEFAULTS = Policy()

log = logs.get_logger()


async def prepare(engine: AsyncEngine) -> None:
    """Add to the database the jobs that it lacks."""
    for job in JOBS:
        rules.check_schedule(job.schedule)
    async with transaction(engine) as db:
        await job_store.ensure(db, JOBS)


async def claim_due(
    engine: AsyncEngine, *, owner: str, now: datetime, lease: timedelta = DEFAULTS.lease
) -> list[Run]:
    """Claim what is due and what dead owners left; the answer is the caller's alone to execute."""
    skipped: list[Run] = []
    async with transaction(engine, cut_after_seconds=CLAIM_SECONDS) as db:
        taken = await run_store.take_over(db, list(BY_NAME), owner=owner, lease=lease, now=now)
        claimed: list[Run] = []
        for state in await job_store.states(db, list(BY_NAME), now):
            try:
                tick = rules.due_tick(state, now)
            except ValueError as error:
                log.error("bad_schedule", job=state.name, problem=str(error))
                continue
            if tick is None:
                continue
            fresh = await run_store.claim(db, state.name, tick, owner=owner, lease=lease, now=now)
            if fresh is not None:
                (skipped if fresh.outcome is Outcome.SKIPPED else claimed).append(fresh)
    for run in taken:
        log.warning("run_taken_over", job=run.job, run_id=run.id, fence=run.fence)
    for run in skipped:
        metrics.tick_skipped(run.job)
        log.warning("run_skipped", job=run.job, run_id=run.id, scheduled_for=run.scheduled_for)
    for run in claimed:
        metrics.tick_claimed(now - run.scheduled_for)
    return taken + claimed


async def execute(
    engine: AsyncEngine,
    maintenance: Maintenance,
    run: Run,
    *,
    clock: Clock,
    lease: timedelta = DEFAULTS.lease,
) -> bool:
    """Call what the job calls and end the run; False if a new owner took it, and then nothing was recorded."""
    began = time.monotonic()
    async with transaction(engine) as db:
        (state,) = await job_store.states(db, [run.job], clock())
    held = _Lease(engine, run, lease)
    calls = asyncio.create_task(_call_all(maintenance, run, state.deadline, held))
    keeper = asyncio.create_task(held.keep())
    try:
        await asyncio.wait({calls, keeper}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        keeper.cancel()
        calls.cancel()  # does nothing to what is done
        await asyncio.gather(keeper, calls, return_exceptions=True)
    if calls.cancelled() or isinstance(calls.exception(), _LeaseLost):
        log.warning("run_lost", job=run.job, run_id=run.id, fence=run.fence)
        return False
    reports = calls.result()
    if not await _end_when_possible(engine, run, reports, clock=clock):
        return False
    metrics.run_ended(run.job, rules.outcome_of(reports), time.monotonic() - began)
    return True


class _LeaseLost(Exception):
    """Somebody else has the run now."""


class _Lease:
    """One run's lease, and until when, by this process's own clock, it is surely held."""

    def __init__(self, engine: AsyncEngine, run: Run, length: timedelta) -> None:
        self._engine, self._run, self._length = engine, run, length
        # Unknown yet: the process may have been frozen between its claim and this moment.
        self._held_until = float("-inf")

    async def renew(self) -> bool:
        """Extend it; False if the run is no longer ours."""
        asked_at = time.monotonic()
        async with transaction(self._engine) as db:
            ours = await run_store.renew(db, self._run, lease=self._length)
        if ours:
            self._held_until = asked_at + self._length.total_seconds()
        return ours

    async def assert_held(self) -> None:
        """Asked before each call: who was frozen must not act on a lease that has lapsed meanwhile."""
        if time.monotonic() >= self._held_until and not await self.renew():
            raise _LeaseLost

    async def keep(self) -> None:
        """Renew it for as long as it is ours; ends when it is not."""
        while True:
            await asyncio.sleep(self._length.total_seconds() / 3)
            try:
                if not await self.renew():
                    return
            except Exception as error:
                # The database is away: the call goes on, and the fence decides when it is back.
                log.warning("lease_not_renewed", run_id=self._run.id, error=logs.brief(error))


async def _call_all(maintenance: Maintenance, run: Run, deadline: timedelta, held: _Lease) -> list[Report]:
    return [await _call(maintenance, target, run, deadline, held) for target in BY_NAME[run.job].targets]


async def _call(
    maintenance: Maintenance, target: Target, run: Run, deadline: timedelta, held: _Lease
) -> Report:
    """Ask until there is a definite answer, always with the same key, a few times and within the deadline."""
    ends_at = time.monotonic() + deadline.total_seconds()
    for attempt in itertools.count(1):
        await held.assert_held()
        left = timedelta(seconds=max(ends_at - time.monotonic(), 0.1))
        try:
            return await maintenance.call(target, idempotency_key=run.key, dry_run=run.dry_run, deadline=left)
        except BillingError as error:
            again = not error.definite or isinstance(error, ResourceExhausted | Aborted)
            wait = delay(attempt, base_seconds=0.5, max_seconds=5).total_seconds()
            if not again or attempt == CALL_ATTEMPTS or time.monotonic() + wait >= ends_at:
                log.warning("call_failed", job=run.job, call=target.path, reason=error.reason)
                return failure(target, error)
            await asyncio.sleep(wait)
    raise AssertionError("unreachable")


async def _end_when_possible(
    engine: AsyncEngine, run: Run, reports: Sequence[Report], *, clock: Clock
) -> bool:
    """End the run, and wait for a database that is away: else another would repeat what was done."""
    give_up_at = time.monotonic() + END_SECONDS
    for attempt in itertools.count(1):
        try:
            return await _end(engine, run, reports, now=clock())
        except (DBAPIError, PoolTimeout, OSError) as error:
            if time.monotonic() >= give_up_at:
                raise
            log.warning("run_not_ended", job=run.job, run_id=run.id, error=logs.brief(error))
            await asyncio.sleep(delay(attempt, base_seconds=0.2, max_seconds=1).total_seconds())
    raise AssertionError("unreachable")


async def _end(engine: AsyncEngine, run: Run, reports: Sequence[Report], *, now: datetime) -> bool:
    outcome, summary = rules.outcome_of(reports), rules.summary_of(reports)
    news: list[Alert] = []
    recovered: list[tuple[str, str]] = []
    async with transaction(engine) as db:
        if not await run_store.finish(db, run, outcome=outcome, summary=summary, now=now):
            log.warning("stale_owner_refused", job=run.job, run_id=run.id, fence=run.fence)
            return False
        if not run.dry_run:
            newest = await run_store.newest_outcomes(db, run.job, rules.FAILURES_BEFORE_ALERT)
            sources = [(f"{ROOM}.{run.job}", rules.alerts_of_job(run.job, newest))]
            sources += [(r.target.name, r.alerts) for r in reports if r.outcome is Outcome.SUCCEEDED]
            for source, reported in sources:
                news += [a for a in reported if await alert_store.report(db, source, a, now=now)]
                still = [a.key for a in reported if not a.is_event]
                recovered += await alert_store.recover(db, source, still=still, now=now)
    _log_end(run, outcome, news, recovered)
    return True


def _log_end(run: Run, outcome: Outcome, news: Sequence[Alert], recovered: Sequence[tuple[str, str]]) -> None:
    write = log.warning if outcome is Outcome.FAILED else log.info
    write("run_ended", job=run.job, run_id=run.id, outcome=outcome.value, dry_run=run.dry_run)
    for alert in news:
        write = log.error if alert.severity is rules.Severity.CRITICAL else log.warning
        write(
            "alert",
            key=alert.key,
            severity=alert.severity.value,
            title=alert.title,
            tenant_id=alert.tenant_id,
            evidence=dict(alert.evidence),
            is_event=alert.is_event,
        )
    for key, title in recovered:
        log.info("alert_recovered", key=key, title=title)
