"""What Prometheus is shown of the scheduler's tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.tables import SUCCEEDED, alerts, job_runs, jobs


@dataclass(frozen=True)
class JobGauge:
    """One job: whether it is paused, and when it last ended well."""

    name: str
    paused: bool
    succeeded_at: datetime | None


async def read_jobs(db: AsyncConnection, names: Sequence[str]) -> list[JobGauge]:
    """The jobs that run."""
    newest = (
        select(func.max(job_runs.c.finished_at))
        .where(job_runs.c.job == jobs.c.name, SUCCEEDED)
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
