"""When a job is due, what its run amounts to, and when it deserves an alert. Pure: no I/O, no clock."""

from collections import Counter
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
# A condition that comes back within this time has not ended but flaps.
FLAPS_WITHIN = timedelta(minutes=10)
# Chats cut longer messages; a digest that counts more would hold its rows for long.
MESSAGE_LENGTH_MAX = 3000
DIGEST_MAX = 10_000


@dataclass(frozen=True)
class Policy:
    """What a deployment decides for itself."""

    lease: timedelta = timedelta(seconds=15)
    runs_kept: timedelta = timedelta(days=30)
    alerts_kept: timedelta = timedelta(days=90)
    requests_kept: timedelta = timedelta(days=30)
    messages_per_minute: int = 20


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
    """What the database says of a job.

    `last_tick` is the newest tick that was claimed; `ticks_from`, if not None, is when its schedule was changed.
    """

    name: str
    schedule: str
    deadline: timedelta
    paused: bool
    created_at: datetime
    last_tick: datetime | None
    ticks_from: datetime | None = None


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
    """Something that deserves a person; `key` identifies it, `evidence` supports it.

    It holds until it is no longer reported, unless it is an event: that happened once, and has no end.
    """

    key: str
    severity: Severity
    title: str
    tenant_id: str | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)
    is_event: bool = False


@dataclass(frozen=True)
class Kept:
    """An alert as it is kept."""

    id: str
    source: str
    key: str
    severity: str
    title: str
    tenant_id: str | None
    evidence: Mapping[str, str]
    reports: int
    created_at: datetime
    last_reported_at: datetime
    recovered_at: datetime | None
    is_event: bool
    sent: str


@dataclass(frozen=True)
class News:
    """What the sink has not been told of an alert: its severity, or `recovery`."""

    id: str
    what: str
    title: str
    tenant_id: str | None
    evidence: Mapping[str, str]
    flaps: bool


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
    # Another schedule owes nothing from before it was set, unless the clock was turned back since.
    if state.ticks_from is not None and tick < state.ticks_from <= now + CLOCK_SKEW:
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


def alerts_in_next_message(untold: int, *, posted: int, per_minute: int) -> int:
    """How many alerts the next message to the sink tells of, when so many were posted within the last minute.

    One by one while there is room; the minute's last message tells of all that are left.
    """
    left = per_minute - posted
    if untold == 0 or left <= 0:
        return 0
    return 1 if left > 1 else min(untold, DIGEST_MAX)


def message_of(news: Sequence[News]) -> str:
    """What the sink is told of one alert, or of many at once."""
    if len(news) == 1:
        return _line(news[0])
    counts = Counter(each.what for each in news)
    kinds = ", ".join(
        f"{counts[what]} {what}" for what in ("critical", "warning", "recovery") if counts[what]
    )
    return f"… and {len(news)} more ({kinds}); billctl alerts"


def _line(news: News) -> str:
    subject = news.title + (f" (tenant {news.tenant_id})" if news.tenant_id else "")
    evidence = ", ".join(f"{name}={value}" for name, value in sorted(news.evidence.items()))
    line = f"[{news.what}] {subject}" + (f": {evidence}" if evidence else "")
    # One line, whatever a room puts into its evidence.
    line = " ".join(line.split())
    if len(line) > MESSAGE_LENGTH_MAX:
        line = f"{line[: MESSAGE_LENGTH_MAX - 1]}…"
    if news.flaps and news.what != "recovery":
        minutes = int(FLAPS_WITHIN.total_seconds() // 60)
        line += f" (it comes and goes; its end is told when it has stayed away for {minutes} minutes)"
    return line
