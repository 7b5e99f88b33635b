"""Three schedulers as processes on one database: one is frozen and thawed, all die, jobs are paused and rescheduled."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from billing.scheduler.v1 import scheduler_pb2 as pb

from shared import clock
from tests.scheduler.conftest import Rooms
from tests.scheduler.processes import Schedulers, schedulers, until
from tests.scheduler.sinks import Sink, hangs
from tests.scheduler.test_actions import alert

__all__ = ["schedulers"]
JOB, CALL = "settle_expired", "ledger.SettleExpired"
MINUTE = timedelta(minutes=1)
LEASE_SECONDS = 1.0


@dataclass
class Replicas:
    """The processes, their clock, and what the rooms and the database know of them."""

    schedulers: Schedulers
    rooms: Rooms
    admin: psycopg.Connection
    clock: Path
    sink: Sink
    now: datetime
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    async def start(self, count: int) -> None:
        """So many more; returns when all of them serve."""
        fresh = [
            self.schedulers.start(
                SCHEDULER_LEASE_SECONDS=str(LEASE_SECONDS),
                BILLING_TEST_CLOCK=str(self.clock),
                BILLING_ALERT_WEBHOOK_URL=self.sink.url,
            )
            for _ in range(count)
        ]
        self.processes += fresh
        await until(lambda: all(self.schedulers.logged(each, "serving") for each in fresh))

    def move(self, by: timedelta) -> str:
        """Move everybody's clock; answers the key of the newest tick then."""
        self.now += by
        clock.move_to(self.clock, self.now - datetime.now(self.now.tzinfo))
        return f"job:{JOB}:{self.now.replace(second=0, microsecond=0):%Y-%m-%dT%H:%M:%SZ}"

    async def tick(self, by: timedelta = MINUTE) -> str:
        """Move the clock and wait until the newest tick has ended."""
        key = self.move(by)
        await until(lambda: self.run(key) is not None and self.run(key)["outcome"] is not None)  # type: ignore[index]
        return key

    def run(self, key: str) -> dict[str, Any] | None:
        """The row of a tick."""
        row = self.admin.execute(
            "SELECT id, owner, fence, outcome FROM job_runs WHERE job = %s AND scheduled_for = %s",
            [JOB, key.removeprefix(f"job:{JOB}:")],
        ).fetchone()
        return None if row is None else dict(zip(("id", "owner", "fence", "outcome"), row, strict=True))

    def process_of(self, owner: str) -> subprocess.Popen[bytes]:
        """Owners are named `<host>:<pid>:<noise>`."""
        return next(each for each in self.processes if each.pid == int(owner.split(":")[1]))


@pytest.fixture
async def replicas(
    schedulers: Schedulers, rooms: Rooms, admin: psycopg.Connection, tmp_path: Path
) -> AsyncIterator[Replicas]:
    admin.execute("UPDATE jobs SET paused = name <> %s", [JOB])
    async with Sink(hangs) as sink:
        # Just past a tick, so that none comes by itself.
        now = clock.now().replace(second=5, microsecond=0)
        replicas = Replicas(schedulers, rooms, admin, tmp_path / "clock", sink, now)
        replicas.move(timedelta())
        await replicas.start(3)
        yield replicas


async def freeze_the_owner(replicas: Replicas) -> tuple[str, subprocess.Popen[bytes]]:
    """Freeze the process whose call a room is answering, until another has ended its run."""
    rooms = replicas.rooms
    gate = rooms.wait_for[CALL] = asyncio.Event()
    rooms.waiting.clear()
    key = replicas.move(MINUTE)
    await until(rooms.waiting.is_set)
    owned = replicas.run(key)
    assert owned is not None
    frozen = replicas.process_of(owned["owner"])
    frozen.send_signal(signal.SIGSTOP)
    await until(lambda: rooms.keys(CALL).count(key) == 2, seconds=LEASE_SECONDS * 8)
    gate.set()
    del rooms.wait_for[CALL]
    await until(lambda: replicas.run(key)["outcome"] == "succeeded")  # type: ignore[index]
    freed = replicas.run(key)
    assert freed is not None
    assert (freed["id"], freed["fence"]) == (owned["id"], 2)
    assert freed["owner"] != owned["owner"]
    return key, frozen


async def overlap(replicas: Replicas) -> tuple[str, str]:
    """A tick comes while the one before it runs."""
    gate = replicas.rooms.wait_for[CALL] = asyncio.Event()
    running = replicas.move(MINUTE)
    await until(lambda: running in replicas.rooms.keys(CALL))
    skipped = await replicas.tick()
    gate.set()
    del replicas.rooms.wait_for[CALL]
    await until(lambda: replicas.run(running)["outcome"] == "succeeded")  # type: ignore[index]
    return running, skipped


async def test_of_three_replicas_each_tick_runs_once_whoever_is_frozen_thawed_or_dead(
    replicas: Replicas, operator: Any
) -> None:
    rooms, said = replicas.rooms, replicas.schedulers
    rooms.alerts[CALL] = [alert("held"), alert("happened:1", is_event=True)]
    await until(lambda: len(rooms.keys(CALL)) == 1)  # of a job that exists since 2020 one tick was missed
    ticks = [*rooms.keys(CALL), await replicas.tick()]

    repeated, frozen = await freeze_the_owner(replicas)
    ticks += [repeated, await replicas.tick()]
    before = replicas.run(repeated)
    frozen.send_signal(signal.SIGCONT)

    def refused() -> list[dict[str, Any]]:
        return said.logged(frozen, "stale_owner_refused") + said.logged(frozen, "run_lost")

    await until(refused)
    assert [(line["run_id"], line["fence"]) for line in refused()] == [(before and before["id"], 1)]
    assert replicas.run(repeated) == before, "what the thawed one wanted to write is not there"
    ticks.append(await replicas.tick())

    running, skipped = await overlap(replicas)
    assert replicas.run(skipped) == {**(replicas.run(skipped) or {}), "outcome": "skipped", "fence": 1}
    ticks.append(running)

    await operator.PauseJob(pb.PauseJobRequest(idempotency_key="p", job=JOB))
    for _ in range(2):
        replicas.move(MINUTE)
        await asyncio.sleep(1.1)
    await operator.ResumeJob(pb.ResumeJobRequest(idempotency_key="r", job=JOB))
    ticks.append(await replicas.tick(timedelta()))

    every_hour = pb.SetJobScheduleRequest(idempotency_key="s", job=JOB, schedule="7 * * * *")
    assert (await operator.SetJobSchedule(every_hour)).changed
    replicas.move(to_minute(replicas.now, 6))
    await asyncio.sleep(1.1)
    ticks.append(await replicas.tick(MINUTE))

    for process in replicas.processes:
        process.send_signal(signal.SIGTERM)
    assert [await asyncio.to_thread(each.wait, 20) for each in replicas.processes] == [0, 0, 0]
    missed = replicas.move(timedelta(hours=49))
    await replicas.start(1)
    await until(lambda: missed in rooms.keys(CALL))
    await asyncio.sleep(1.1)
    ticks.append(missed)

    asked = rooms.keys(CALL)
    assert asked == sorted(asked)
    assert sorted({*asked}) == ticks
    assert {key: asked.count(key) for key in ticks if asked.count(key) != 1} == {repeated: 2}
    assert_told_once(replicas)


def to_minute(now: datetime, minute: int) -> timedelta:
    """How long until the next hour's minute."""
    return now.replace(minute=minute) + timedelta(hours=1) - now


def assert_told_once(replicas: Replicas) -> None:
    """Alerts are in one log once, though their sink hung all the time; and no log has its address."""
    said = replicas.schedulers
    told = [line for each in replicas.processes for line in said.logged(each, "alert")]
    assert sorted(line["key"] for line in told) == ["happened:1", "held"]
    assert replicas.sink.requests >= 1
    assert any(said.logged(each, "alert_sink_failed") for each in replicas.processes)
    for process in replicas.processes:
        assert replicas.sink.secret not in said.said(process)
