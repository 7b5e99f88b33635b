"""What the scheduler tells Prometheus beside its RPCs."""

from datetime import timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler.jobs import BY_NAME
from services.scheduler.rules import Outcome, Severity
from services.scheduler.store import gauges
from shared.database import transaction

registry = CollectorRegistry()

_job_runs = Counter(
    "billing_scheduler_job_runs",
    "Runs that this process ended, and ticks that it found its job still running at",
    ["job", "outcome"],
    registry=registry,
)
_job_run_seconds = Histogram(
    "billing_scheduler_job_run_seconds",
    "From the first call of a run to its end",
    ["job"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 50, 120, 240, 600),
    registry=registry,
)
_tick_lag_seconds = Histogram(
    "billing_scheduler_tick_lag_seconds",
    "From a tick to its claim; after a downtime, or a pause, as long as that",
    buckets=(0.25, 0.5, 1, 2, 5, 15, 60, 300, 3600),
    registry=registry,
)
_last_success = Gauge(
    "billing_scheduler_job_last_success_timestamp_seconds",
    "When a run of the job last ended well; none while it never did",
    ["job"],
    registry=registry,
)
_paused = Gauge(
    "billing_scheduler_job_paused", "1 while an operator has paused it", ["job"], registry=registry
)
_alerts_open = Gauge(
    "billing_scheduler_alerts_open", "Alerts that hold; events have no end", ["severity"], registry=registry
)
_sink_posts = Counter(
    "billing_scheduler_sink_posts",
    "Messages to the alert webhook: delivered, or failed for whatever reason",
    ["outcome"],
    registry=registry,
)

# A series that appears with its first event has no rate at it.
for _job in BY_NAME:
    _job_run_seconds.labels(_job)
    for _outcome in Outcome:
        _job_runs.labels(_job, _outcome.value)
for _told in ("delivered", "failed"):
    _sink_posts.labels(_told)


def run_ended(job: str, outcome: Outcome, seconds: float) -> None:
    """A run ended here."""
    _job_runs.labels(job, outcome.value).inc()
    _job_run_seconds.labels(job).observe(seconds)


def tick_skipped(job: str) -> None:
    """A tick came while its job was running."""
    _job_runs.labels(job, Outcome.SKIPPED.value).inc()


def tick_claimed(lag: timedelta) -> None:
    """A tick was claimed, so long after it came."""
    _tick_lag_seconds.observe(lag.total_seconds())


def sink_posted(*, delivered: bool) -> None:
    """A message was posted to the sink."""
    _sink_posts.labels("delivered" if delivered else "failed").inc()


async def refresh(engine: AsyncEngine) -> None:
    """Read what lies in the database."""
    async with transaction(engine) as db:
        jobs = await gauges.read_jobs(db, list(BY_NAME))
        alerts = await gauges.count_open_alerts(db)
    for job in jobs:
        _paused.labels(job.name).set(job.paused)
        if job.succeeded_at is not None:
            _last_success.labels(job.name).set(job.succeeded_at.timestamp())
    for severity in Severity:
        _alerts_open.labels(severity.value).set(alerts.get(severity.value, 0))
