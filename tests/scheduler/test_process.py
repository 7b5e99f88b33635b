"""The scheduler as processes: killed, doubled, stopped, started wrong."""

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from billing.scheduler.v1 import scheduler_pb2 as pb
from billing.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler.clients import Maintenance
from services.scheduler.jobs import JOBS
from services.scheduler.loop import Loop
from shared.config import RoomSettings
from shared.database import create_engine
from shared.errors import Unavailable
from shared.rpc.client import open_channel
from tests.scheduler.conftest import Rooms
from tests.scheduler.processes import Schedulers, schedulers, until

__all__ = ["schedulers"]


@pytest.fixture
async def second(engine: AsyncEngine, maintenance: Maintenance) -> AsyncIterator[Loop]:
    """Another scheduler, in this process."""
    loop = Loop(engine, maintenance, sink=None)
    yield loop
    await loop.drain()


async def test_kill_9_during_a_call_and_another_scheduler_finishes_the_tick_with_its_key(
    schedulers: Schedulers, second: Loop, rooms: Rooms, admin: psycopg.Connection
) -> None:
    admin.execute("UPDATE jobs SET paused = name <> 'settle_expired'")
    gate = rooms.wait_for["ledger.SettleExpired"] = asyncio.Event()
    first = schedulers.start()
    await until(rooms.waiting.is_set)
    first.kill()
    gate.set()
    await second.tick()
    await second.drain()
    assert len(rooms.asked) == 1, "the dead one's lease holds"
    admin.execute("UPDATE job_runs SET lease_until = clock_timestamp() WHERE finished_at IS NULL")
    await second.tick()
    await second.drain()
    keys = rooms.keys("ledger.SettleExpired")
    assert keys[0] == keys[1]
    row = admin.execute(
        "SELECT owner, fence, outcome FROM job_runs ORDER BY scheduled_for LIMIT 1"
    ).fetchone()
    assert row == (second.owner, 2, "succeeded")


async def test_a_process_answers_operators(
    schedulers: Schedulers, settings: RoomSettings, rooms: Rooms, admin: psycopg.Connection
) -> None:
    admin.execute("UPDATE jobs SET paused = true")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    schedulers.start(SCHEDULER_LISTEN=f"127.0.0.1:{port}")
    channel = open_channel(f"127.0.0.1:{port}", settings.operator_secret)
    stub = pb_grpc.SchedulerServiceStub(channel)
    ends_at = time.monotonic() + 15
    while True:
        try:
            jobs = await stub.ListJobs(pb.ListJobsRequest())
            break
        except Unavailable:
            assert time.monotonic() < ends_at
            await asyncio.sleep(0.1)
    assert len(jobs.jobs) == len(JOBS)
    answer = await stub.RunJob(pb.RunJobRequest(idempotency_key=uuid.uuid4().hex, job="sync_provider"))
    assert answer.run.outcome == pb.RUN_OUTCOME_UNIMPLEMENTED
    await channel.close()


def test_missing_settings_are_named_all_at_once(schedulers: Schedulers) -> None:
    process = schedulers.start(SCHEDULER_DATABASE_URL=None, ROOM_SECRET="too-short")
    assert process.wait(timeout=20) != 0
    said = schedulers.said(process)
    assert "SCHEDULER_DATABASE_URL" in said
    assert "ROOM_SECRET" in said
    assert "too-short" not in said


def test_a_schema_that_is_behind_is_refused_with_what_to_do(
    schedulers: Schedulers, database: Any, admin: psycopg.Connection
) -> None:
    name = f"empty_{uuid.uuid4().hex[:8]}"
    admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    try:
        url = database.url("scheduler_rw").rsplit("/", 1)[0] + f"/{name}"
        process = schedulers.start(SCHEDULER_DATABASE_URL=url)
        process.wait(timeout=20)
    finally:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    said = schedulers.said(process)
    assert "schema 'scheduler' is at nothing and lacks scheduler:0001" in said
    assert "Traceback" not in said


async def test_time_goes_on_after_the_clock_is_turned_back(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    admin.execute("UPDATE jobs SET paused = name <> 'settle_expired'")
    moment = datetime(2027, 6, 1, 12, 0, 1, tzinfo=UTC)
    loop = Loop(engine, maintenance, sink=None, now=lambda: moment)
    await loop.tick()
    await loop.drain()
    moment = datetime(2026, 12, 1, 12, 0, 1, tzinfo=UTC)
    for _ in range(3):
        await loop.tick()
        await loop.drain()
        moment += timedelta(minutes=1)
    assert rooms.keys("ledger.SettleExpired") == [
        "job:settle_expired:2027-06-01T12:00:00Z",
        "job:settle_expired:2026-12-01T12:00:00Z",
        "job:settle_expired:2026-12-01T12:01:00Z",
        "job:settle_expired:2026-12-01T12:02:00Z",
    ]


async def test_a_database_that_is_away_costs_no_tick_and_doubles_none(
    database: Any, engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    """A call is answered, and two ticks come, while nobody can connect."""
    admin.execute("UPDATE jobs SET paused = name <> 'settle_expired'")
    moment = datetime(2027, 6, 1, 12, 0, 1, tzinfo=UTC)
    own = create_engine(database.url("scheduler_rw"), application_name="test_away")
    loop = Loop(own, maintenance, sink=None, now=lambda: moment)
    gate = rooms.wait_for["ledger.SettleExpired"] = asyncio.Event()

    def runs() -> list[tuple[str, int, str | None]]:
        return admin.execute(
            "SELECT to_char(scheduled_for AT TIME ZONE 'UTC', 'HH24:MI'), fence, outcome FROM job_runs ORDER BY 1"
        ).fetchall()

    keeping_time = asyncio.create_task(loop.keep_time())
    try:
        await until(rooms.waiting.is_set)
        with psycopg.connect(_beside(database.admin_url), autocommit=True) as server:
            away = "ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}"
            name = sql.Identifier(admin.info.dbname)
            server.execute(sql.SQL(away).format(name, sql.SQL("false")))
            try:
                server.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE usename = 'scheduler_rw' AND datname = %s",
                    [admin.info.dbname],
                )
                gate.set()
                await asyncio.sleep(0.5)
                moment += timedelta(minutes=2)
                await asyncio.sleep(1.2)
                assert not keeping_time.done()
                assert len(rooms.asked) == 1
            finally:
                server.execute(sql.SQL(away).format(name, sql.SQL("true")))
        await until(lambda: [row[2] for row in runs()][1:] and None not in [row[2] for row in runs()])
        moment += timedelta(minutes=1)
        await until(lambda: len(runs()) == 3 and None not in [row[2] for row in runs()])
    finally:
        keeping_time.cancel()
        await asyncio.gather(keeping_time, return_exceptions=True)
        await own.dispose()
    first, missed, last = runs()
    assert first == ("12:00", 1, "succeeded"), "its owner waited, and nobody repeated it"
    assert missed[:2] == ("12:02", 1)
    assert last == ("12:03", 1, "succeeded")
    called = [tick for tick, _, outcome in (first, missed, last) if outcome == "succeeded"]
    assert [key[-9:-4] for key in rooms.keys("ledger.SettleExpired")] == called


def _beside(url: str) -> str:
    """The same server's other database."""
    return url.rsplit("/", 1)[0] + "/postgres"
