"""Jobs and their runs."""

import asyncio
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from billing.scheduler.v1 import scheduler_pb2 as pb
from billing.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from cronsim import CronSim, CronSimError

from billctl.desk import Desk
from billctl.diagnosis import NotDone, NotThere, Section, View
from billctl.looks import asking, signals
from billctl.looks.health import job_state
from billctl.screen import Screen

RUNS = """
SELECT id, job, trigger, scheduled_for, started_at, finished_at, COALESCE(outcome, 'running') AS outcome, dry_run,
       finished_at - started_at AS took, owner, fence, summary
FROM job_runs
WHERE (%(job)s::text IS NULL OR job = %(job)s)
  AND (%(outcome)s::text IS NULL OR COALESCE(outcome, 'running') = %(outcome)s)
ORDER BY id DESC
"""
RUN = """
SELECT id, job, trigger, scheduled_for, started_at, finished_at, COALESCE(outcome, 'running') AS outcome, dry_run,
       summary
FROM job_runs
WHERE id = %(run)s;
"""
DEADLINES = "SELECT name AS job, deadline_seconds, schedule, paused FROM jobs ORDER BY name;"
# The call answers by then, ended or not; what has not ended is watched in the table.
ANSWER_SECONDS = 30.0
WATCH_SECONDS = 1.0
WATCHED_SECONDS_MAX = 3600.0
TOLD_EVERY = 10


async def show_list(desk: Desk) -> View:
    """Every job: how it is, when it runs, what became of its newest run."""
    deadlines = {row["job"]: row["deadline_seconds"] for row in await desk.rows(DEADLINES)}
    rows = [
        {
            "job": row["job"],
            "state": job_state(row),
            "schedule": row["schedule"],
            "next_at": None if row["paused"] else next_tick(row["schedule"], row["now"]),
            "last_finished_at": row["last_finished_at"],
            "last_outcome": row["last_outcome"],
            "last_run": row["last_run"],
            "deadline_seconds": deadlines.get(row["job"]),
        }
        for row in await desk.rows(signals.JOBS)
    ]
    return View("jobs", [Section("jobs", "jobs", rows, signals.JOBS, aside=("last_run", "deadline_seconds"))])


async def show_runs(desk: Desk, *, job: str | None, outcome: str | None, limit: int) -> View:
    """What ran, newest first."""
    if job is not None:
        await known(desk, job)
    part = await asking.section(
        *(desk, "runs", f"runs of {job}" if job else "runs", RUNS),
        limit=limit,
        aside=("owner", "fence", "summary", "scheduled_for", *(("job",) if job else ())),
        job=job,
        outcome=outcome,
    )
    parts = [part]
    troubled = next((row for row in part.rows if row["outcome"] == "failed"), None)
    if troubled:
        parts.append(
            Section("failure", f"why {troubled['id']} failed", calls(troubled["summary"]), part.source)
        )
    return View("runs", parts)


async def known(desk: Desk, job: str) -> dict[str, Any]:
    """The row of a job, or NotThere with the names of all."""
    rows = await desk.rows(DEADLINES)
    for row in rows:
        if row["job"] == job:
            return row
    raise NotThere(f"there is no job {job!r}; there are: {', '.join(row['job'] for row in rows)}")


async def run(
    desk: Desk, screen: Screen, job: str, *, key: str, actor: str, reason: str, dry: bool
) -> dict[str, Any]:
    """Runs a job and waits until it ended, as long as that may take; the run goes on whoever waits."""
    scheduler = desk.stub("scheduler", SchedulerServiceStub)
    request = pb.RunJobRequest(idempotency_key=key, job=job, actor=actor, reason=reason, dry_run=dry)
    answer = await desk.ask(scheduler.RunJob, request, seconds=ANSWER_SECONDS)
    waited = 0.0
    while waited < WATCHED_SECONDS_MAX:
        row = await asking.one(desk, RUN, f"run {answer.run.id} is gone", run=answer.run.id)
        if row["finished_at"] is not None:
            return row
        if int(waited) % TOLD_EVERY == 0:
            screen.aside(f"{row['id']} is running; Ctrl-C leaves it running")
        await asyncio.sleep(WATCH_SECONDS)
        waited += WATCH_SECONDS
    raise NotDone(f"{answer.run.id} still runs after an hour: billctl jobs runs {job}")


def dry_key() -> str:
    """A look is nobody's ticket, and each is another."""
    return f"billctl-look:{uuid.uuid4()}"


def calls(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each room answered, a row for each call."""
    return [
        {
            "call": call,
            "outcome": answer.get("outcome"),
            "answer": ", ".join(
                f"{name} {value}" for name, value in answer.items() if name not in {"outcome"} and value != ""
            ),
        }
        for call, answer in summary.items()
        if isinstance(answer, Mapping)
    ]


def next_tick(schedule: str, now: datetime) -> datetime | None:
    """The first tick after now; None where there is none."""
    try:
        return next(CronSim(schedule, now.astimezone(UTC)))
    except (CronSimError, StopIteration):
        return None


def ticks(schedule: str) -> bool:
    """Whether a schedule ever has a tick."""
    return next_tick(schedule, datetime(2024, 1, 1, tzinfo=UTC)) is not None
