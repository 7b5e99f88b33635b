"""The scheduler as processes: killed, doubled, stopped, started wrong."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
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
from shared.errors import Unavailable
from shared.rpc.client import open_channel
from tests.scheduler.conftest import Rooms

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Schedulers:
    """Processes that a test starts, and their environment."""

    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, **changes: str | None) -> subprocess.Popen[bytes]:
        """Start one; None takes a variable away."""
        environment = {
            name: value for name, value in (self.environment | changes).items() if value is not None
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "services.scheduler"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process


@pytest.fixture
def schedulers(
    database: Any, settings: RoomSettings, rooms: Rooms, engine: AsyncEngine
) -> Iterator[Schedulers]:
    """A way to start schedulers that call the test's rooms."""
    schedulers = Schedulers(
        {
            "PATH": os.environ["PATH"],
            "SCHEDULER_DATABASE_URL": database.url("scheduler_rw"),
            "SCHEDULER_LISTEN": "127.0.0.1:0",
            "LEDGER_ADDRESS": rooms.address,
            "SUBSCRIPTIONS_ADDRESS": rooms.address,
            "WEBHOOKS_ADDRESS": rooms.address,
            "GATEWAY_SECRET": settings.gateway_secret.get_secret_value(),
            "OPERATOR_SECRET": settings.operator_secret.get_secret_value(),
            "ROOM_SECRET": settings.room_secret.get_secret_value(),
        }
    )
    yield schedulers
    for process in schedulers.started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
async def second(engine: AsyncEngine, maintenance: Maintenance) -> AsyncIterator[Loop]:
    """Another scheduler, in this process."""
    loop = Loop(engine, maintenance, sink=None)
    yield loop
    await loop.drain()


async def until(condition: Any, *, seconds: float = 15) -> None:
    """Wait until something holds."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "it did not happen in time"
        await asyncio.sleep(0.05)


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


async def test_two_processes_run_each_tick_once_and_stop_when_asked(
    schedulers: Schedulers, rooms: Rooms, admin: psycopg.Connection
) -> None:
    processes = [schedulers.start(), schedulers.start()]
    await until(lambda: len(rooms.asked) >= 3)
    await asyncio.sleep(2)
    assert all(rooms.keys(name).count(key) == 1 for name, key, _ in rooms.asked)
    owners = admin.execute("SELECT count(DISTINCT (job, scheduled_for)), count(*) FROM job_runs").fetchone()
    assert owners is not None
    assert owners[0] == owners[1]
    began = time.monotonic()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        assert await asyncio.to_thread(process.wait, 20) == 0
    assert time.monotonic() - began < 15
    assert admin.execute("SELECT count(*) FROM job_runs WHERE finished_at IS NULL").fetchone() == (0,)


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
    _, said = process.communicate(timeout=20)
    assert process.returncode != 0
    assert b"SCHEDULER_DATABASE_URL" in said
    assert b"ROOM_SECRET" in said
    assert b"too-short" not in said


def test_a_schema_that_is_behind_is_refused_with_what_to_do(
    schedulers: Schedulers, database: Any, admin: psycopg.Connection
) -> None:
    name = f"empty_{uuid.uuid4().hex[:8]}"
    admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    try:
        url = database.url("scheduler_rw").rsplit("/", 1)[0] + f"/{name}"
        _, said = schedulers.start(SCHEDULER_DATABASE_URL=url).communicate(timeout=20)
    finally:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    assert b"schema 'scheduler' is at nothing and lacks scheduler:0001" in said
    assert b"Traceback" not in said


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


async def test_the_loop_survives_a_database_that_goes_away(
    second: Loop, rooms: Rooms, admin: psycopg.Connection
) -> None:
    admin.execute("UPDATE jobs SET paused = name <> 'settle_expired'")
    keeping_time = asyncio.create_task(second.keep_time())
    try:
        await until(lambda: len(rooms.asked) == 1)
        admin.execute("ALTER TABLE jobs RENAME TO jobs_away")
        await asyncio.sleep(1.5)
        assert not keeping_time.done()
        admin.execute("ALTER TABLE jobs_away RENAME TO jobs")
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'scheduler_rw' AND datname = current_database()"
        )
        admin.execute("TRUNCATE job_runs")
        await until(lambda: len(rooms.asked) == 2)
    finally:
        keeping_time.cancel()
        await asyncio.gather(keeping_time, return_exceptions=True)
