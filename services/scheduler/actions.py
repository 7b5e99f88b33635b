"""What the scheduler can do: claim what is due, execute a run, tell of alerts, and what operators ask for."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.scheduler import rules
from services.scheduler.clients import AlertSink, Maintenance, failure
from services.scheduler.config import LEASE, RUNS_KEPT
from services.scheduler.errors import IdempotencyKeyReused, JobRunning, UnknownJob
from services.scheduler.jobs import BY_NAME, JOBS
from services.scheduler.rules import Alert, JobState, Outcome, Report, Run, Target
from services.scheduler.store import alerts as alert_store
from services.scheduler.store import jobs as job_store
from services.scheduler.store import runs as run_store
from shared import logs
from shared.backoff import delay
from shared.clock import Clock
from shared.database import transaction
from shared.errors import Aborted, BillingError, ResourceExhausted
from shared.ops import upkeep
from shared.ops.store import record_audit

ROOM = "scheduler"
PRUNED_AT_MOST = 10_000
CALL_ATTEMPTS = 3
SINK_BATCH = 20
SINK_RETRY = timedelta(minutes=1)
POLL_SECONDS = 0.1

log = logs.get_logger()


async def prepare(engine: AsyncEngine) -> None:
    """Add to the database the jobs that it lacks."""
    for job in JOBS:
        rules.check_schedule(job.schedule)
    async with transaction(engine) as db:
        await job_store.ensure(db, JOBS)


async def claim_due(engine: AsyncEngine, *, owner: str, now: datetime) -> list[Run]:
    """Claim what is due and what dead owners left; the answer is the caller's alone to execute."""
    async with transaction(engine) as db:
        claimed = await run_store.take_over(db, list(BY_NAME), owner=owner, lease=LEASE, now=now)
        for run in claimed:
            log.warning("run_taken_over", job=run.job, run_id=run.id, fence=run.fence)
        for state in await job_store.states(db, list(BY_NAME), now):
            try:
                tick = rules.due_tick(state, now)
            except ValueError as error:
                log.error("bad_schedule", job=state.name, problem=str(error))
                continue
            if tick is None:
                continue
            fresh = await run_store.claim(db, state.name, tick, owner=owner, lease=LEASE, now=now)
            if fresh is not None and fresh.outcome is Outcome.SKIPPED:
                log.warning("run_skipped", job=fresh.job, run_id=fresh.id, scheduled_for=tick)
            elif fresh is not None:
                claimed.append(fresh)
    return claimed


async def execute(engine: AsyncEngine, maintenance: Maintenance, run: Run, *, clock: Clock) -> bool:
    """Call what the job calls and end the run; False if a new owner took it, and then nothing was recorded."""
    async with transaction(engine) as db:
        (state,) = await job_store.states(db, [run.job], clock())
    calls = asyncio.create_task(_call_all(maintenance, run, state.deadline))
    keeper = asyncio.create_task(_keep_lease(engine, run))
    try:
        await asyncio.wait({calls, keeper}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        keeper.cancel()
        calls.cancel()  # does nothing to what is done
        await asyncio.gather(keeper, calls, return_exceptions=True)
    if calls.cancelled():
        log.warning("run_lost", job=run.job, run_id=run.id, fence=run.fence)
        return False
    return await _end(engine, run, calls.result(), now=clock())


async def tell_sink(engine: AsyncEngine, sink: AlertSink, *, now: datetime) -> int:
    """Tell the sink what it does not know yet; what it does not take comes again later."""
    async with transaction(engine) as db:
        unsent = await alert_store.claim_unsent(db, now=now, limit=SINK_BATCH, retry_after=SINK_RETRY)
    told = 0
    for alert in unsent:
        if not await sink.post(_line(alert)):
            log.warning("alert_sink_failed", alert_id=alert.id)
            continue
        told += 1
        async with transaction(engine) as db:
            await alert_store.mark_sent(db, alert.id, news=alert.news)
    return told


async def prune(engine: AsyncEngine, *, now: datetime) -> int:
    """Forget runs, alerts and requests that nobody will ask for, and limits that limit nobody."""
    older_than = now - RUNS_KEPT
    async with transaction(engine) as db:
        return (
            await run_store.prune(db, older_than=older_than)
            + await alert_store.prune(db, older_than=older_than)
            + await job_store.prune(db, older_than=older_than)
            + await upkeep.forget_buckets(
                db, room=ROOM, before=now - upkeep.BUCKETS_KEPT, limit=PRUNED_AT_MOST
            )
        )


async def claim_by_hand(
    engine: AsyncEngine,
    *,
    job: str,
    idempotency_key: str,
    dry_run: bool,
    owner: str,
    actor: str,
    reason: str,
    now: datetime,
) -> tuple[Run, bool]:
    """A run by hand, and whether an earlier call with this key began it. A new one is the caller's to execute."""
    _known(job)
    async with transaction(engine) as db:
        earlier = await run_store.find_by_key(db, idempotency_key)
        if earlier is None:
            run = await run_store.claim_by_hand(
                db,
                job,
                idempotency_key=idempotency_key,
                dry_run=dry_run,
                owner=owner,
                lease=LEASE,
                now=now,
            )
            if run is not None:
                after = {"run_id": run.id, "dry_run": dry_run}
                await _audit(db, "job.run", job, actor=actor, reason=reason, before=None, after=after)
                return run, False
            earlier = await run_store.find_by_key(db, idempotency_key)
        if earlier is None:
            running = await run_store.find_running(db, job)
            if running is None:
                raise Aborted(f"another run of {job} ended just now; ask again")
            raise JobRunning(job, running.id)
    for field, differs in (("job", earlier.job != job), ("dry_run", earlier.dry_run != dry_run)):
        if differs:
            raise IdempotencyKeyReused(field)
    return earlier, True


async def wait_for(engine: AsyncEngine, run: Run, *, seconds: float) -> Run:
    """The run when it ended, or as it stands when the time is over, whichever process executes it."""
    ends_at = time.monotonic() + seconds
    while True:
        async with transaction(engine) as db:
            run = await run_store.find(db, run.id) or run
        if run.finished_at is not None or time.monotonic() >= ends_at:
            return run
        await asyncio.sleep(POLL_SECONDS)


async def set_paused(
    engine: AsyncEngine, *, job: str, paused: bool, idempotency_key: str, actor: str, reason: str
) -> tuple[bool, bool]:
    """Pause or resume; answers (whether that changed anything, whether an earlier call with this key did it)."""
    _known(job)
    request = {"job": job, "paused": paused}
    async with transaction(engine) as db:
        earlier = await job_store.remembered(db, idempotency_key)
        if earlier is not None:
            asked, answer = earlier
            for field in request:
                if asked[field] != request[field]:
                    raise IdempotencyKeyReused(field)
            return bool(answer["changed"]), True
        changed = await job_store.set_paused(db, job, paused=paused)
        if not await job_store.remember(db, idempotency_key, request=request, answer={"changed": changed}):
            raise Aborted("another call with this key was faster; ask again with the same key")
        await _audit(
            db,
            "job.pause" if paused else "job.resume",
            job,
            actor=actor,
            reason=reason,
            before={"paused": paused ^ changed},
            after={"paused": paused},
        )
    return changed, False


async def list_jobs(engine: AsyncEngine, *, now: datetime) -> list[tuple[JobState, Run | None]]:
    """Every job by name, with its newest run."""
    async with transaction(engine) as db:
        states = await job_store.states(db, list(BY_NAME), now)
        newest = await run_store.newest_of_each(db, list(BY_NAME))
    return [(state, newest.get(state.name)) for state in states]


async def list_runs(
    engine: AsyncEngine, *, job: str | None, outcome: str | None, before: str | None, limit: int
) -> list[Run]:
    """Runs, newest first."""
    if job is not None:
        _known(job)
    async with transaction(engine) as db:
        return await run_store.page(db, job=job, outcome=outcome, before=before, limit=limit)


async def _call_all(maintenance: Maintenance, run: Run, deadline: timedelta) -> list[Report]:
    return [await _call(maintenance, target, run, deadline) for target in BY_NAME[run.job].targets]


async def _call(maintenance: Maintenance, target: Target, run: Run, deadline: timedelta) -> Report:
    """Ask until there is a definite answer, always with the same key, a few times and within the deadline."""
    ends_at = time.monotonic() + deadline.total_seconds()
    for attempt in itertools.count(1):
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


async def _keep_lease(engine: AsyncEngine, run: Run) -> None:
    """Renew the lease for as long as it is ours; ends when it is not."""
    while True:
        await asyncio.sleep(LEASE.total_seconds() / 3)
        try:
            async with transaction(engine) as db:
                if not await run_store.renew(db, run, lease=LEASE):
                    return
        except Exception as error:
            # The database is away: the calls go on, and the fence decides when it is back.
            log.warning("lease_not_renewed", run_id=run.id, error=logs.brief(error))


async def _end(engine: AsyncEngine, run: Run, reports: Sequence[Report], *, now: datetime) -> bool:
    outcome, summary = rules.outcome_of(reports), rules.summary_of(reports)
    opened: list[Alert] = []
    recovered: list[tuple[str, str]] = []
    async with transaction(engine) as db:
        if not await run_store.finish(db, run, outcome=outcome, summary=summary, now=now):
            log.warning("stale_owner_refused", job=run.job, run_id=run.id, fence=run.fence)
            return False
        if not run.dry_run:
            newest = await run_store.newest_outcomes(db, run.job, rules.FAILURES_BEFORE_ALERT)
            sources = [(f"{ROOM}.{run.job}", rules.alerts_of_job(run.job, newest))]
            sources += [(r.target.name, r.alerts) for r in reports if r.outcome is Outcome.SUCCEEDED]
            for source, holding in sources:
                opened += [a for a in holding if await alert_store.report(db, source, a, now=now)]
                recovered += await alert_store.recover(db, source, still=[a.key for a in holding], now=now)
    _log_end(run, outcome, opened, recovered)
    return True


def _log_end(
    run: Run, outcome: Outcome, opened: Sequence[Alert], recovered: Sequence[tuple[str, str]]
) -> None:
    write = log.warning if outcome is Outcome.FAILED else log.info
    write("run_ended", job=run.job, run_id=run.id, outcome=outcome.value, dry_run=run.dry_run)
    for alert in opened:
        write = log.error if alert.severity is rules.Severity.CRITICAL else log.warning
        write(
            "alert",
            key=alert.key,
            severity=alert.severity.value,
            title=alert.title,
            tenant_id=alert.tenant_id,
            evidence=dict(alert.evidence),
        )
    for key, title in recovered:
        log.info("alert_recovered", key=key, title=title)


def _line(alert: alert_store.Unsent) -> str:
    subject = alert.title + (f" (tenant {alert.tenant_id})" if alert.tenant_id else "")
    evidence = ", ".join(f"{name}={value}" for name, value in sorted(alert.evidence.items()))
    return f"[{alert.news}] {subject}" + (f": {evidence}" if evidence else "")


def _known(job: str) -> None:
    if job not in BY_NAME:
        raise UnknownJob(job)


async def _audit(
    db: AsyncConnection,
    action: str,
    job: str,
    *,
    actor: str,
    reason: str,
    before: dict[str, object] | None,
    after: dict[str, object],
) -> None:
    await record_audit(
        db,
        room=ROOM,
        action=action,
        actor_type="operator",
        actor_id=actor or "operator",
        tenant_id=None,
        resource_type="job",
        resource_id=job,
        before=before,
        after=after,
        reason=reason,
        request_id=logs.request_id.get(),
    )
