"""What Prometheus is told of jobs, ticks, alerts and the sink."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from billing.maintenance.v1 import alert_pb2
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import actions, metrics
from services.scheduler.clients import AlertSink, Maintenance
from services.scheduler.jobs import JOBS
from shared.errors import FailedPrecondition
from shared.metrics import Exposition
from tests.scheduler.conftest import Rooms
from tests.scheduler.test_actions import NOON, alert, due, execute, sink, tick

__all__ = ["sink"]
JOB = "settle_expired"


async def shown(engine: AsyncEngine) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels."""
    exposition = Exposition(lambda: metrics.refresh(engine), also=metrics.registry)
    families = text_string_to_metric_families((await exposition.text()).decode())
    return {
        (sample.name.removeprefix("billing_scheduler_"), *sample.labels.values()): sample.value
        for family in families
        if family.name.startswith("billing_scheduler_")
        for sample in family.samples
    }


@pytest.fixture
def alone(admin: psycopg.Connection, engine: AsyncEngine) -> None:
    """One job only."""
    admin.execute("UPDATE jobs SET paused = name <> %s", [JOB])


@pytest.mark.usefixtures("alone")
async def test_runs_ticks_alerts_and_posts_are_counted(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, sink: Any
) -> None:
    before = await shown(engine)
    rooms.alerts["ledger.SettleExpired"] = [
        alert("held", alert_pb2.ALERT_SEVERITY_WARNING),
        alert("happened:1", is_event=True),
    ]
    await tick(engine, maintenance, JOB, NOON)
    rooms.refuse["ledger.SettleExpired"] = [FailedPrecondition("no")]
    [run] = (await due(engine, NOON + timedelta(minutes=1))).values()
    assert await due(engine, NOON + timedelta(minutes=2, seconds=3)) == {}
    await execute(engine, maintenance, run)
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 2
    sink.status = 503
    rooms.alerts.clear()
    await tick(engine, maintenance, JOB, NOON + timedelta(minutes=4))
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 0

    after = await shown(engine)

    def rise(*key: str) -> float:
        return after[key] - before[key]

    assert [
        rise("job_runs_total", JOB, each) for each in ("succeeded", "failed", "skipped", "unimplemented")
    ] == [
        2,
        1,
        1,
        0,
    ]
    assert rise("job_run_seconds_count", JOB) == 3
    assert rise("tick_lag_seconds_count") == 3
    assert rise("tick_lag_seconds_sum") == 5 * 3
    assert (rise("sink_posts_total", "delivered"), rise("sink_posts_total", "failed")) == (2, 1)
    assert after["job_last_success_timestamp_seconds", JOB] == (NOON + timedelta(minutes=4)).timestamp()


@pytest.mark.usefixtures("alone")
async def test_gauges_are_what_the_database_says(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms
) -> None:
    rooms.alerts["ledger.SettleExpired"] = [alert("held"), alert("happened:1", is_event=True)]
    await tick(engine, maintenance, JOB, NOON)
    found = await shown(engine)
    assert {job.name: found["job_paused", job.name] for job in JOBS} == {
        job.name: float(job.name != JOB) for job in JOBS
    }
    assert (found["alerts_open", "critical"], found["alerts_open", "warning"]) == (1, 0)
    rooms.alerts.clear()
    await tick(engine, maintenance, JOB, NOON + timedelta(minutes=1))
    assert (await shown(engine))["alerts_open", "critical"] == 0
