"""Runs: claimed once, leased by the database's clock, ended only by their present owner."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Interval, Row, case, delete, exists, func, literal, null, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from services.scheduler.rules import Outcome, Run, Trigger
from services.scheduler.tables import MOMENT, job_runs, jobs
from shared.ids import new_id

RUN_COLUMNS = tuple(
    job_runs.c[name]
    for name in (
        "id",
        "job",
        "scheduled_for",
        "trigger",
        "idempotency_key",
        "dry_run",
        "owner",
        "fence",
        "started_at",
        "finished_at",
        "outcome",
        "summary",
    )
)


def lease_end(lease: timedelta) -> ColumnElement[datetime]:
    """From now by the database's clock: replicas need not agree on the time."""
    return func.clock_timestamp(type_=MOMENT) + literal(lease, Interval)


async def claim(
    db: AsyncConnection,
    job: str,
    scheduled_for: datetime,
    *,
    owner: str,
    lease: timedelta,
    now: datetime,
) -> Run | None:
    """Claim a tick for `owner`, or None if somebody did. While another run goes on it is claimed as skipped."""
    busy = exists().where(job_runs.c.job == job, job_runs.c.finished_at.is_(None))
    values = {
        "id": literal(new_id("run")),
        "job": jobs.c.name,
        "scheduled_for": literal(scheduled_for, MOMENT),
        "trigger": literal(Trigger.SCHEDULE.value),
        "dry_run": literal(False),
        "owner": literal(owner),
        "fence": literal(1),
        "lease_until": lease_end(lease),
        "started_at": literal(now, MOMENT),
        "finished_at": _when(busy, literal(now, MOMENT)),
        "outcome": _when(busy, literal(Outcome.SKIPPED.value)),
    }
    tick = select(*values.values()).where(jobs.c.name == job, jobs.c.paused.is_(False))
    # No conflict target: the loser of a race for two ticks of one job is told by `job_runs_never_overlap`,
    # and finds its tick skipped a moment later.
    statement = insert(job_runs).from_select(list(values), tick).on_conflict_do_nothing()
    return _run_or_none((await db.execute(statement.returning(*RUN_COLUMNS))).one_or_none())


async def claim_by_hand(
    db: AsyncConnection,
    job: str,
    *,
    idempotency_key: str,
    dry_run: bool,
    owner: str,
    lease: timedelta,
    now: datetime,
) -> Run | None:
    """Claim a manual run, or None if the job is running or the key is spent."""
    statement = (
        insert(job_runs)
        .values(
            id=new_id("run"),
            job=job,
            scheduled_for=now,
            trigger=Trigger.MANUAL.value,
            idempotency_key=idempotency_key,
            dry_run=dry_run,
            owner=owner,
            fence=1,
            lease_until=lease_end(lease),
            started_at=now,
        )
        .on_conflict_do_nothing()
    )
    return _run_or_none((await db.execute(statement.returning(*RUN_COLUMNS))).one_or_none())


async def take_over(
    db: AsyncConnection, names: Sequence[str], *, owner: str, lease: timedelta, now: datetime
) -> list[Run]:
    """Take the runs whose owner let the lease lapse; the fence rises, so the former owner can end them no more."""
    lapsed = (
        select(job_runs.c.id)
        .where(
            job_runs.c.job.in_(names),
            job_runs.c.finished_at.is_(None),
            job_runs.c.lease_until < func.clock_timestamp(),
        )
        .with_for_update(skip_locked=True)
    )
    statement = (
        update(job_runs)
        .where(job_runs.c.id.in_(lapsed))
        .values(owner=owner, fence=job_runs.c.fence + 1, lease_until=lease_end(lease), started_at=now)
    )
    return [_run(row) for row in await db.execute(statement.returning(*RUN_COLUMNS))]


async def renew(db: AsyncConnection, run: Run, *, lease: timedelta) -> bool:
    """Extend the lease; False if the run is no longer this owner's."""
    result = await db.execute(_mine(run).values(lease_until=lease_end(lease)))
    return result.rowcount == 1


async def finish(
    db: AsyncConnection, run: Run, *, outcome: Outcome, summary: Mapping[str, Any], now: datetime
) -> bool:
    """End the run; False if it is no longer this owner's, and then nothing was written."""
    result = await db.execute(
        _mine(run).values(outcome=outcome.value, summary=dict(summary), finished_at=now)
    )
    return result.rowcount == 1


async def newest_outcomes(db: AsyncConnection, job: str, count: int) -> list[Outcome]:
    """How the newest runs that called anything ended, newest first."""
    rows = await db.execute(
        select(job_runs.c.outcome)
        .where(
            job_runs.c.job == job,
            job_runs.c.finished_at.is_not(None),
            job_runs.c.outcome != Outcome.SKIPPED.value,
            job_runs.c.dry_run.is_(False),
        )
        .order_by(job_runs.c.id.desc())
        .limit(count)
    )
    return [Outcome(row.outcome) for row in rows]


async def find(db: AsyncConnection, run_id: str) -> Run | None:
    """One run by its id."""
    return _run_or_none((await db.execute(select(*RUN_COLUMNS).where(job_runs.c.id == run_id))).one_or_none())


async def find_by_key(db: AsyncConnection, idempotency_key: str) -> Run | None:
    """The manual run that was asked for under this key."""
    statement = select(*RUN_COLUMNS).where(job_runs.c.idempotency_key == idempotency_key)
    return _run_or_none((await db.execute(statement)).one_or_none())


async def find_running(db: AsyncConnection, job: str) -> Run | None:
    """The run of a job that has not ended."""
    statement = select(*RUN_COLUMNS).where(job_runs.c.job == job, job_runs.c.finished_at.is_(None))
    return _run_or_none((await db.execute(statement)).one_or_none())


async def newest_of_each(db: AsyncConnection, names: Sequence[str]) -> dict[str, Run]:
    """The newest run of each job."""
    older = job_runs.alias()
    # One look into the index for each job; DISTINCT ON would read a month of runs.
    newest = select(func.max(older.c.id)).where(older.c.job == jobs.c.name).scalar_subquery()
    ids = select(newest).where(jobs.c.name.in_(names))
    rows = await db.execute(select(*RUN_COLUMNS).where(job_runs.c.id.in_(ids)))
    return {row.job: _run(row) for row in rows}


async def page(
    db: AsyncConnection, *, job: str | None, outcome: str | None, before: str | None, limit: int
) -> list[Run]:
    """Runs, newest first, older than the run `before`; outcome `running` is that of runs without one."""
    statement = select(*RUN_COLUMNS).order_by(job_runs.c.id.desc()).limit(limit)
    if job is not None:
        statement = statement.where(job_runs.c.job == job)
    if outcome == "running":
        statement = statement.where(job_runs.c.finished_at.is_(None))
    elif outcome is not None:
        statement = statement.where(job_runs.c.outcome == outcome)
    if before is not None:
        statement = statement.where(job_runs.c.id < before)
    return [_run(row) for row in await db.execute(statement)]


async def prune(db: AsyncConnection, *, older_than: datetime, limit: int) -> int:
    """Delete the runs that ended longest ago, but of each job not its newest tick: it would be claimed once more."""
    newest = (
        select(job_runs.c.id)
        .where(job_runs.c.job == jobs.c.name, job_runs.c.trigger == Trigger.SCHEDULE.value)
        .order_by(job_runs.c.scheduled_for.desc())
        .limit(1)
        .scalar_subquery()
    )
    # Read first: as a condition of the deletion it would be looked up for every run.
    kept = [
        row.id for row in await db.execute(select(newest.label("id")).select_from(jobs)) if row.id is not None
    ]
    oldest = (
        select(job_runs.c.id)
        .where(
            job_runs.c.finished_at < older_than,
            job_runs.c.id.not_in(kept),
        )
        .order_by(job_runs.c.finished_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return (await db.execute(delete(job_runs).where(job_runs.c.id.in_(oldest)))).rowcount


def _mine(run: Run) -> Any:
    return update(job_runs).where(
        job_runs.c.id == run.id, job_runs.c.fence == run.fence, job_runs.c.finished_at.is_(None)
    )


def _when(condition: ColumnElement[bool], value: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((condition, value), else_=null())


def _run(row: Row[Any]) -> Run:
    values = dict(row._mapping)
    values["trigger"] = Trigger(values["trigger"])
    values["outcome"] = Outcome(values["outcome"]) if values["outcome"] else None
    return Run(**values)


def _run_or_none(row: Row[Any] | None) -> Run | None:
    return None if row is None else _run(row)
