"""When a job is due, what its run amounts to, and when it deserves an alert. Pure: no I/O, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from cronsim import CronSim, CronSimError

# Replicas' clocks may differ by this much; a tick claimed further in the future was claimed before the clock
# was turned back, and says nothing about what is due.
CLOCK_SKEW = timedelta(minutes=2)
FAILURES_BEFORE_ALERT = 3


class Trigger(StrEnum):
    """Why a run began."""

    SCHEDULE = "schedule"
    MANUAL = "manual"


class Outcome(StrEnum):
    """What became of a run, or of one call of it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNIMPLEMENTED = "unimplemented"


class Severity(StrEnum):
    """How urgent an alert is."""

    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True)
class Target:
    """One maintenance RPC of a room."""

    room: str
    service: str
    method: str

    @property
    def name(self) -> str:
        """How summaries and alerts call it."""
        return f"{self.room}.{self.method}"

    @property
    def path(self) -> str:
        """How gRPC calls it."""
        return f"{self.service}/{self.method}"


@dataclass(frozen=True)
class Job:
    """What the code says of a job; its schedule and deadline are only the values a new database starts with."""

    name: str
    schedule: str
    targets: tuple[Target, ...]
    deadline: timedelta


@dataclass(frozen=True)
class JobState:
    """What the database says of a job. `last_tick` is the newest tick that was claimed."""

    name: str
    schedule: str
    deadline: timedelta
    paused: bool
    created_at: datetime
    last_tick: datetime | None


@dataclass(frozen=True)
class Run:
    """One run of a job. Its `fence` tells the present owner from a former one."""

    id: str
    job: str
    scheduled_for: datetime
    trigger: Trigger
    idempotency_key: str | None
    dry_run: bool
    owner: str
    fence: int
    started_at: datetime
    finished_at: datetime | None
    outcome: Outcome | None
    summary: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What every room is told: the same tick is the same key, whoever runs it and however often."""
        moment = self.scheduled_for.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return f"job:{self.job}:{moment}"


@dataclass(frozen=True)
class Alert:
    """A condition that deserves a person; `key` identifies it, `evidence` supports it."""

    key: str
    severity: Severity
    title: str
    tenant_id: str | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What one call of a run came to. Alerts are those that still hold, so only a success says anything of them."""

    target: Target
    outcome: Outcome
    answer: Mapping[str, Any]
    alerts: tuple[Alert, ...] = ()


def check_schedule(schedule: str) -> None:
    """Raise ValueError unless this is a cron expression of five fields that has a tick."""
    if len(schedule.split()) != 5:
        # The parser would read six as seconds first.
        raise ValueError(f"{schedule!r} must have five fields: minute hour day month weekday")
    try:
        next(CronSim(schedule, datetime(2024, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"{schedule!r} is not a schedule: {error}") from error


def latest_tick(schedule: str, now: datetime) -> datetime:
    """The newest tick that is not after `now`."""
    check_schedule(schedule)
    second = now.astimezone(UTC).replace(microsecond=0)
    return next(CronSim(schedule, second + timedelta(seconds=1), reverse=True))


def next_tick(schedule: str, now: datetime) -> datetime:
    """The first tick after `now`."""
    check_schedule(schedule)
    return next(CronSim(schedule, now.astimezone(UTC)))


def due_tick(state: JobState, now: datetime) -> datetime | None:
    """The tick to claim now. Of several that were missed only the newest is due: they run once, not one by one."""
    if state.paused:
        return None
    tick = latest_tick(state.schedule, now)
    if tick < state.created_at:
        return None
    if state.last_tick is not None and tick <= state.last_tick <= now + CLOCK_SKEW:
        return None
    return tick


def outcome_of(reports: Sequence[Report]) -> Outcome:
    """One failed call fails the run; a run in which no room serves anything is unimplemented."""
    outcomes = {report.outcome for report in reports}
    for outcome in (Outcome.FAILED, Outcome.SUCCEEDED):
        if outcome in outcomes:
            return outcome
    return Outcome.UNIMPLEMENTED


def summary_of(reports: Sequence[Report]) -> dict[str, Any]:
    """What each call answered, under its name."""
    return {
        report.target.name: {"outcome": report.outcome.value, **report.answer, "alerts": len(report.alerts)}
        for report in reports
    }


def alerts_of_job(job: str, newest_outcomes: Sequence[Outcome]) -> tuple[Alert, ...]:
    """The alert that a job keeps failing, if its newest real runs say so."""
    newest = list(newest_outcomes[:FAILURES_BEFORE_ALERT])
    if newest != [Outcome.FAILED] * FAILURES_BEFORE_ALERT:
        return ()
    return (
        Alert(
            key=f"scheduler.job_failing:{job}",
            severity=Severity.CRITICAL,
            title=f"Job {job} failed {FAILURES_BEFORE_ALERT} times in a row",
            evidence={"job": job},
        ),
    )
