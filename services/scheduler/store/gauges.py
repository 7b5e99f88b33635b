"""What Prometheus is shown of the scheduler's tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.tables import SUCCEEDED, alerts, job_runs, jobs

EVER, NEVER = text("'-infinity'::timestamptz"), text("'infinity'::timestamptz")


@dataclass(frozen=True)
class JobGauge:
    """One job: whether it is paused, and when it last ended well."""

    name: str
    paused: bool
    succeeded_at: datetime | None


async def read_jobs(db: AsyncConnection, names: Sequence[str]) -> list[JobGauge]:
    """The jobs that run."""
    place = tuple_(job_runs.c.job, job_runs.c.finished_at)
    # As a range, not as one job's maximum: that is also looked for along all jobs' ends, to the last of them where a
    # job never succeeded.
    newest = (
        select(job_runs.c.finished_at)
        .where(SUCCEEDED, place > tuple_(jobs.c.name, EVER), place < tuple_(jobs.c.name, NEVER))
        .order_by(job_runs.c.job.desc(), job_runs.c.finished_at.desc())
        .limit(1)
        .scalar_subquery()
        .label("succeeded_at")
    )
    rows = await db.execute(select(jobs.c.name, jobs.c.paused, newest).where(jobs.c.name.in_(names)))
    return [JobGauge(**row._mapping) for row in rows]


async def count_open_alerts(db: AsyncConnection) -> dict[str, int]:
    """Conditions that hold, by severity. Events have no end, and do not count."""
    statement = (
        select(alerts.c.severity, func.count().label("open"))
        .where(alerts.c.recovered_at.is_(None), ~alerts.c.is_event)
        .group_by(alerts.c.severity)
    )
    return {row.severity: row.open for row in await db.execute(statement)}
