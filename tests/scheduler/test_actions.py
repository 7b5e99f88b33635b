"""A tick from its claim to its outcome, with real rooms at the other end of the wire."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from billing.maintenance.v1 import alert_pb2
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from services.scheduler import actions
from services.scheduler.clients import AlertSink, Maintenance
from services.scheduler.jobs import JOBS
from services.scheduler.rules import Outcome, Policy, Run
from services.scheduler.store import runs as run_store
from shared.database import transaction
from shared.errors import FailedPrecondition, Internal, Unavailable
from tests.scheduler.conftest import Rooms

NOON = datetime(2026, 11, 20, 12, 0, 5, tzinfo=UTC)
LEASE = Policy().lease


async def due(engine: AsyncEngine, now: datetime, *, owner: str = "a") -> dict[str, Run]:
    """Claim what is due, by job."""
    return {run.job: run for run in await actions.claim_due(engine, owner=owner, now=now)}


async def execute(
    engine: AsyncEngine,
    maintenance: Maintenance,
    run: Run,
    now: datetime = NOON,
    *,
    lease: timedelta = LEASE,
) -> bool:
    """Execute a run at one moment."""
    return await actions.execute(engine, maintenance, run, clock=lambda: now, lease=lease)


async def read(engine: AsyncEngine, run: Run) -> Run:
    """The run as it is now."""
    async with transaction(engine) as db:
        found = await run_store.find(db, run.id)
    assert found is not None
    return found


async def tick(engine: AsyncEngine, maintenance: Maintenance, job: str, now: datetime) -> Run:
    """Claim the job's tick, execute it, and end the other jobs' runs so that they do not matter."""
    runs = await due(engine, now)
    run = runs.pop(job)
    async with transaction(engine) as db:
        for other in runs.values():
            await run_store.finish(db, other, outcome=Outcome.SUCCEEDED, summary={}, now=now)
    assert await execute(engine, maintenance, run, now) is True
    return await read(engine, run)


def alert(key: str, severity: int = alert_pb2.ALERT_SEVERITY_CRITICAL, **values: Any) -> alert_pb2.Alert:
    """A condition that a room reports."""
    return alert_pb2.Alert(key=key, severity=severity, title=f"Title of {key}", **values)


async def test_a_tick_calls_the_room_once_with_the_ticks_key_and_keeps_what_it_answered(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms
) -> None:
    runs = await due(engine, NOON)
    assert await due(engine, NOON + timedelta(seconds=20)) == {}
    await execute(engine, maintenance, runs["settle_expired"])
    assert rooms.asked == [("ledger.SettleExpired", "job:settle_expired:2026-11-20T12:00:00Z", False)]
    ended = await read(engine, runs["settle_expired"])
    assert (ended.outcome, ended.finished_at) == (Outcome.SUCCEEDED, NOON)
    assert ended.summary == {
        "ledger.SettleExpired": {
            "outcome": "succeeded",
            "lots": 3,
            "credits": 2**53 - 1,
            "holds": 0,
            "gracePeriods": 0,
            "alerts": 0,
        }
    }


async def test_after_a_weekend_each_job_runs_once(engine: AsyncEngine, admin: psycopg.Connection) -> None:
    for run in (await due(engine, NOON)).values():
        async with transaction(engine) as db:
            await run_store.finish(db, run, outcome=Outcome.SUCCEEDED, summary={}, now=NOON)
    monday = NOON + timedelta(days=3)
    assert len(await due(engine, monday)) == len(JOBS)
    assert admin.execute("SELECT count(*), max(count) FROM (SELECT count(*) FROM job_runs GROUP BY job) AS x"
                         ).fetchone() == (len(JOBS), 2)  # fmt: skip


async def test_a_call_without_an_answer_is_asked_again_with_the_same_key(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms
) -> None:
    rooms.refuse["ledger.SettleExpired"] = [Unavailable("restarting"), Internal("crashed")]
    run = await tick(engine, maintenance, "settle_expired", NOON)
    assert run.outcome is Outcome.SUCCEEDED
    assert rooms.keys("ledger.SettleExpired") == ["job:settle_expired:2026-11-20T12:00:00Z"] * 3


async def test_a_definite_refusal_fails_the_run_at_once_and_is_kept(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms
) -> None:
    rooms.refuse["ledger.SettleExpired"] = [FailedPrecondition("not today", reason="CLOSED")]
    run = await tick(engine, maintenance, "settle_expired", NOON)
    assert run.outcome is Outcome.FAILED
    answer = run.summary["ledger.SettleExpired"]
    assert (answer["outcome"], answer["reason"], answer["message"]) == ("failed", "CLOSED", "not today")
    assert len(rooms.asked) == 1


async def test_what_no_room_serves_is_unimplemented_not_failed(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    for minute in range(4):
        run = await tick(engine, maintenance, "deliver_webhooks", NOON + timedelta(minutes=minute))
        assert run.outcome is Outcome.UNIMPLEMENTED
    assert run.summary["webhooks.DeliverPending"]["outcome"] == "unimplemented"
    assert admin.execute("SELECT count(*) FROM alerts").fetchone() == (0,)
    cleanup = await tick(engine, maintenance, "cleanup", NOON + timedelta(hours=1))
    assert cleanup.outcome is Outcome.SUCCEEDED, "the ledger serves its part"
    assert [
        cleanup.summary[f"{room}.Cleanup"]["outcome"] for room in ("ledger", "subscriptions", "webhooks")
    ] == [
        "succeeded",
        "unimplemented",
        "unimplemented",
    ]


async def test_a_dead_owners_run_is_executed_again_with_its_key_and_the_dead_one_is_refused(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    run = (await due(engine, NOON, owner="first"))["settle_expired"]
    gate = rooms.wait_for["ledger.SettleExpired"] = asyncio.Event()
    stopped = asyncio.create_task(execute(engine, maintenance, run))
    await rooms.waiting.wait()
    assert await due(engine, NOON, owner="second") == {}, "its lease holds"
    admin.execute("UPDATE job_runs SET lease_until = clock_timestamp() WHERE job = 'settle_expired'")
    taken = (await due(engine, NOON, owner="second"))["settle_expired"]
    assert (taken.id, taken.fence, taken.owner) == (run.id, 2, "second")
    gate.set()
    assert await stopped is False
    assert (await read(engine, run)).outcome is None
    assert await execute(engine, maintenance, taken) is True
    assert rooms.keys("ledger.SettleExpired") == ["job:settle_expired:2026-11-20T12:00:00Z"] * 2
    assert (await read(engine, run)).outcome is Outcome.SUCCEEDED


async def test_an_owner_that_learns_of_its_successor_stops_calling(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    run = (await due(engine, NOON))["settle_expired"]
    rooms.wait_for["ledger.SettleExpired"] = asyncio.Event()
    owner = asyncio.create_task(execute(engine, maintenance, run, lease=timedelta(seconds=0.3)))
    await rooms.waiting.wait()
    await asyncio.sleep(0.5)
    assert "settle_expired" not in await due(engine, NOON, owner="second"), "it was renewed meanwhile"
    admin.execute("UPDATE job_runs SET fence = fence + 1, owner = 'second' WHERE id = %s", [run.id])
    assert await asyncio.wait_for(owner, timeout=5) is False


async def test_who_was_frozen_since_its_claim_asks_nothing_of_a_room(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    run = (await due(engine, NOON))["settle_expired"]
    admin.execute("UPDATE job_runs SET fence = fence + 1, owner = 'second' WHERE id = %s", [run.id])
    with capture_logs() as lines:
        assert await execute(engine, maintenance, run) is False
    assert rooms.asked == []
    assert [(line["event"], line["fence"]) for line in lines] == [("run_lost", 1)]


async def test_three_failures_in_a_row_alert_once_and_a_success_recovers(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    query = "SELECT key, severity, reports, recovered_at IS NOT NULL FROM alerts"
    for minute in range(4):
        assert admin.execute(query).fetchall() == (
            [] if minute < 3 else [("scheduler.job_failing:settle_expired", "critical", 1, False)]
        )
        rooms.refuse["ledger.SettleExpired"] = [FailedPrecondition("no")]
        await tick(engine, maintenance, "settle_expired", NOON + timedelta(minutes=minute))
    await tick(engine, maintenance, "settle_expired", NOON + timedelta(minutes=9))
    assert admin.execute(query).fetchall() == [("scheduler.job_failing:settle_expired", "critical", 2, True)]


async def test_a_rooms_alert_opens_once_and_recovers_when_it_is_no_longer_reported(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    held = alert("integrity.balance_mismatch:t1", tenant_id="t1", evidence={"balance": "10"})
    query = "SELECT source, tenant_id, evidence, reports, recovered_at FROM alerts"
    with capture_logs() as lines:
        for minute, reported in enumerate([[held], [held]]):
            rooms.alerts["ledger.SettleExpired"] = reported
            await tick(engine, maintenance, "settle_expired", NOON + timedelta(minutes=minute))
    assert [
        (line["key"], line["log_level"], line["tenant_id"]) for line in lines if line["event"] == "alert"
    ] == [("integrity.balance_mismatch:t1", "error", "t1")]
    assert admin.execute(query).fetchall() == [("ledger.SettleExpired", "t1", {"balance": "10"}, 2, None)]
    rooms.refuse["ledger.SettleExpired"] = [FailedPrecondition("no")]
    await tick(engine, maintenance, "settle_expired", NOON + timedelta(minutes=2))
    assert admin.execute(query).fetchall()[0][-1] is None, "a failed call says nothing of what holds"
    rooms.alerts.clear()
    later = NOON + timedelta(minutes=3)
    await tick(engine, maintenance, "settle_expired", later)
    assert admin.execute(query).fetchall()[0][-1] == later


@pytest.fixture
async def sink() -> Any:
    """A chat's webhook: what it was told, and what it shall answer."""
    import uvicorn

    class Chat:
        lines: list[str] = []  # noqa: RUF012 - one chat per test
        status = 200
        url = ""

    chat = Chat()
    chat.lines = []

    async def post(request: Request) -> Response:
        if chat.status == 200:
            chat.lines.append((await request.json())["text"])
        return Response(status_code=chat.status)

    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=[Route("/hook", post, methods=["POST"])]), port=0, log_config=None)
    )
    server.config.lifespan = "off"
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    chat.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/hook"
    yield chat
    server.should_exit = True
    await serving


async def test_the_sink_is_told_once_of_each_beginning_and_end_and_harms_nothing_when_it_fails(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection, sink: Any
) -> None:
    warning = alert("silence", alert_pb2.ALERT_SEVERITY_WARNING, evidence={"minutes": "45"})
    rooms.alerts["ledger.SettleExpired"] = [warning]
    sink.status = 500
    run = await tick(engine, maintenance, "settle_expired", NOON)
    assert run.outcome is Outcome.SUCCEEDED
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 0
    assert await actions.tell_sink(engine, AlertSink("http://127.0.0.1:1/"), now=NOON) == 0
    assert await actions.tell_sink(engine, AlertSink("no url at all"), now=NOON) == 0
    sink.status = 200
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 0, "it waits before the next try"
    admin.execute("UPDATE alerts SET next_attempt_at = now()")
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 1
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 0
    rooms.alerts["ledger.SettleExpired"] = [alert("silence", tenant_id="t1")]
    await tick(engine, maintenance, "settle_expired", NOON + timedelta(minutes=1))
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 1, "it worsened"
    rooms.alerts.clear()
    await tick(engine, maintenance, "settle_expired", NOON + timedelta(minutes=2))
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 1
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 0
    assert sink.lines == [
        "[warning] Title of silence: minutes=45",
        "[critical] Title of silence (tenant t1)",
        "[recovery] Title of silence (tenant t1)",
    ]


async def test_a_sink_set_up_late_is_not_flooded(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, sink: Any
) -> None:
    rooms.alerts["ledger.SettleExpired"] = [alert("old")]
    await tick(engine, maintenance, "settle_expired", NOON)
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON + timedelta(days=2)) == 0
    assert sink.lines == []


async def test_a_dry_run_passes_through_and_raises_no_alert(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    rooms.alerts["subscriptions.EscalatePastDue"] = [alert("would.downgrade")]
    run, _ = await actions.claim_by_hand(
        engine,
        job="escalation",
        idempotency_key="ticket-1",
        dry_run=True,
        owner="a",
        actor="asha",
        reason="",
        now=NOON,
    )
    await execute(engine, maintenance, run)
    assert [(name, dry) for name, _, dry in rooms.asked] == [("subscriptions.EscalatePastDue", True)]
    assert (await read(engine, run)).summary["subscriptions.EscalatePastDue"]["autoDowngraded"] == 1
    assert admin.execute("SELECT count(*) FROM alerts").fetchone() == (0,)


async def test_a_schedule_that_somebody_broke_stops_no_other_job(
    engine: AsyncEngine, admin: psycopg.Connection
) -> None:
    admin.execute("UPDATE jobs SET schedule = '* * * * * *' WHERE name = 'reconcile'")
    runs = await due(engine, NOON)
    assert "reconcile" not in runs
    assert len(runs) == len(JOBS) - 1


async def test_what_is_old_is_forgotten(
    engine: AsyncEngine, maintenance: Maintenance, admin: psycopg.Connection, rooms: Rooms
) -> None:
    old = await tick(engine, maintenance, "settle_expired", NOON)
    new = await tick(engine, maintenance, "settle_expired", NOON + timedelta(days=40))
    admin.execute("DELETE FROM ops.rate_limit_buckets")
    admin.execute(
        "INSERT INTO ops.rate_limit_buckets (room, key, tat)"
        " VALUES ('scheduler', 'old', %(now)s::timestamptz - interval '25 hours'), ('scheduler', 'new', %(now)s),"
        " ('ledger', 'old', '2020-01-01')",
        {"now": NOON + timedelta(days=40)},
    )
    await actions.prune(engine, now=NOON + timedelta(days=40))
    buckets = admin.execute("SELECT room, key FROM ops.rate_limit_buckets ORDER BY room").fetchall()
    assert buckets == [("ledger", "old"), ("scheduler", "new")]
    kept = {row[0] for row in admin.execute("SELECT id FROM job_runs").fetchall()}
    assert new.id in kept
    assert old.id not in kept
