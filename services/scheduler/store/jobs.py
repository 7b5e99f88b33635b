"""Jobs as data: schedule, deadline, paused."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.rules import CLOCK_SKEW, Job, JobState, Trigger
from services.scheduler.tables import job_runs, jobs, operator_requests


async def ensure(db: AsyncConnection, wanted: Iterable[Job]) -> None:
    """Add the jobs that the table lacks; what it says of the others stays."""
    rows = [
        {
            "name": job.name,
            "schedule": job.schedule,
            "deadline_seconds": int(job.deadline.total_seconds()),
        }
        for job in wanted
    ]
    await db.execute(insert(jobs).on_conflict_do_nothing(), rows)


async def states(db: AsyncConnection, names: Sequence[str], now: datetime) -> list[JobState]:
    """The jobs by name, each with the newest tick that was claimed and is not in the far future."""
    last_tick = (
        select(func.max(job_runs.c.scheduled_for))
        .where(
            job_runs.c.job == jobs.c.name,
            job_runs.c.trigger == Trigger.SCHEDULE.value,
            job_runs.c.scheduled_for <= now + CLOCK_SKEW,
        )
        .scalar_subquery()
        .label("last_tick")
    )
    rows = await db.execute(select(jobs, last_tick).where(jobs.c.name.in_(names)).order_by(jobs.c.name))
    return [
        JobState(
            name=row.name,
            schedule=row.schedule,
            deadline=timedelta(seconds=row.deadline_seconds),
            paused=row.paused,
            created_at=row.created_at,
            last_tick=row.last_tick,
            ticks_from=row.ticks_from,
        )
        for row in rows
    ]


async def lock(db: AsyncConnection, name: str) -> None:
    """Until the transaction ends no other operator changes this job."""
    await db.execute(select(jobs.c.name).where(jobs.c.name == name).with_for_update())


async def set_schedule(
    db: AsyncConnection, name: str, *, schedule: str, deadline: timedelta, ticks_from: datetime | None
) -> None:
    """Change when a job runs and how long its calls may take; no tick before `ticks_from` is due."""
    await db.execute(
        update(jobs)
        .where(jobs.c.name == name)
        .values(
            schedule=schedule,
            deadline_seconds=int(deadline.total_seconds()),
            ticks_from=ticks_from,
            updated_at=func.now(),
        )
    )


async def set_paused(db: AsyncConnection, name: str, *, paused: bool) -> bool:
    """Pause or resume; False if the job was so already."""
    result = await db.execute(
        update(jobs)
        .where(jobs.c.name == name, jobs.c.paused.is_not(paused))
        .values(paused=paused, updated_at=func.now())
    )
    return result.rowcount == 1


async def remembered(
    db: AsyncConnection, idempotency_key: str
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What an operator asked under this key, and what was answered."""
    row = (
        await db.execute(
            select(operator_requests.c.request, operator_requests.c.answer).where(
                operator_requests.c.idempotency_key == idempotency_key
            )
        )
    ).one_or_none()
    return None if row is None else (row.request, row.answer)


async def remember(
    db: AsyncConnection, idempotency_key: str, *, request: dict[str, Any], answer: dict[str, Any]
) -> bool:
    """Keep question and answer under the key; False if somebody else was asked first."""
    kept = await db.scalar(
        insert(operator_requests)
        .values(idempotency_key=idempotency_key, request=request, answer=answer)
        .on_conflict_do_nothing()
        .returning(operator_requests.c.idempotency_key)
    )
    return kept is not None


async def prune(db: AsyncConnection, *, older_than: datetime, limit: int) -> int:
    """Forget what operators asked longest ago."""
    oldest = (
        select(operator_requests.c.idempotency_key)
        .where(operator_requests.c.created_at < older_than)
        .order_by(operator_requests.c.created_at)
        .limit(limit)
    )
    return (
        await db.execute(delete(operator_requests).where(operator_requests.c.idempotency_key.in_(oldest)))
    ).rowcount
