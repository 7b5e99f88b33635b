"""What operators ask for: runs by hand, pauses, schedules, and a look at all of it."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.scheduler import rules
from services.scheduler.errors import BadSchedule, IdempotencyKeyReused, JobRunning, UnknownJob
from services.scheduler.jobs import BY_NAME
from services.scheduler.rules import JobState, Kept, Policy, Run
from services.scheduler.store import alerts as alert_store
from services.scheduler.store import jobs as job_store
from services.scheduler.store import runs as run_store
from shared import logs
from shared.database import transaction
from shared.errors import Aborted
from shared.ops.store import record_audit

ROOM = "scheduler"
POLL_SECONDS = 0.1
DEFAULTS = Policy()


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
    lease: timedelta = DEFAULTS.lease,
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
                lease=lease,
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
        await job_store.lock(db, job)
        answer = await _answered(db, idempotency_key, request)
        if answer is not None:
            return bool(answer["changed"]), True
        changed = await job_store.set_paused(db, job, paused=paused)
        await _remember(db, idempotency_key, request, {"changed": changed})
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


async def set_schedule(
    engine: AsyncEngine,
    *,
    job: str,
    schedule: str | None,
    deadline_seconds: int | None,
    idempotency_key: str,
    actor: str,
    reason: str,
    now: datetime,
) -> tuple[JobState, Run | None, bool, bool]:
    """Change schedule, deadline or both from the next tick on; answers (job, newest run, changed, replayed)."""
    _known(job)
    request = {"job": job, "schedule": schedule, "deadline_seconds": deadline_seconds}
    if schedule is not None:
        try:
            rules.check_schedule(schedule)
        except ValueError as error:
            raise BadSchedule(str(error)) from error
    async with transaction(engine) as db:
        await job_store.lock(db, job)
        (state,) = await job_store.states(db, [job], now)
        last = (await run_store.newest_of_each(db, [job])).get(job)
        answer = await _answered(db, idempotency_key, request)
        if answer is not None:
            return _with(state, answer), last, bool(answer["changed"]), True
        before = _timing(state)
        after = before | {
            name: value
            for name, value in (("schedule", schedule), ("deadline_seconds", deadline_seconds))
            if value is not None
        }
        state = _with(state, after)
        if after["schedule"] != before["schedule"]:
            state = replace(state, ticks_from=now)
        await job_store.set_schedule(
            db, job, schedule=state.schedule, deadline=state.deadline, ticks_from=state.ticks_from
        )
        await _remember(db, idempotency_key, request, {**after, "changed": after != before})
        await _audit(db, "job.schedule", job, actor=actor, reason=reason, before=before, after=after)
    return state, last, after != before, False


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


async def list_alerts(
    engine: AsyncEngine, *, tenant_id: str | None, with_recovered: bool, before: str | None, limit: int
) -> list[Kept]:
    """Alerts, newest first."""
    async with transaction(engine) as db:
        return await alert_store.page(
            db, tenant_id=tenant_id, with_recovered=with_recovered, before=before, limit=limit
        )


def _timing(state: JobState) -> dict[str, Any]:
    return {"schedule": state.schedule, "deadline_seconds": int(state.deadline.total_seconds())}


def _with(state: JobState, timing: Mapping[str, Any]) -> JobState:
    return replace(state, schedule=timing["schedule"], deadline=timedelta(seconds=timing["deadline_seconds"]))


async def _answered(
    db: AsyncConnection, idempotency_key: str, request: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What was answered under this key, if it was asked for before."""
    earlier = await job_store.remembered(db, idempotency_key)
    if earlier is None:
        return None
    asked, answer = earlier
    for field in {**request, **asked}:
        if (field in asked) != (field in request) or asked[field] != request[field]:
            raise IdempotencyKeyReused(field)
    return answer


async def _remember(
    db: AsyncConnection, idempotency_key: str, request: dict[str, Any], answer: dict[str, Any]
) -> None:
    if not await job_store.remember(db, idempotency_key, request=request, answer=answer):
        raise Aborted("another call with this key was faster; ask again with the same key")


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
    before: dict[str, Any] | None,
    after: dict[str, Any],
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
