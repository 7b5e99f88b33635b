"""Workers that die or freeze in the middle of a delivery: their claim passes on, and nothing they did is done twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from tests.conftest import Database, Secrets
from tests.webhooks.harness import Subscriptions, charged, eventually, neighbour, room_settings
from tests.webhooks.processes import Process, post, process

PATIENCE_SECONDS = 30.0  # on a machine with much else to do
CALL_SECONDS = 6


@dataclass
class House:
    """Two ingress processes on one inbox; the neighbour holds its answer to the first call for an event."""

    first: Process
    second: Process
    subscriptions: Subscriptions
    http: httpx.AsyncClient
    db: psycopg.AsyncConnection
    applied: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def apply_and_hold(self, request: Any) -> None:
        """The effect is there; who asked is not told before somebody else has asked as well."""
        if not self.applied.is_set():
            self.subscriptions.effects.append(request.idempotency_key)
            self.applied.set()
            await self.release.wait()

    async def row(self) -> dict[str, Any]:
        cursor = self.db.cursor(row_factory=dict_row)
        await cursor.execute("SELECT * FROM webhook_events")
        row = await cursor.fetchone()
        assert row is not None
        return row

    async def done(self) -> bool:
        return bool((await self.row())["processed"])

    async def lease_is_over(self) -> None:
        """As if the claim were half a minute old."""
        await self.db.execute(
            "UPDATE webhook_events SET locked_until = clock_timestamp() WHERE NOT processed"
        )

    async def taken_by_the_first(self, body: bytes) -> None:
        """Sent, claimed, applied, and the answer is under way."""
        await self.first.start()
        assert await post(self.http, self.first.url, body) == 200
        await asyncio.wait_for(self.applied.wait(), PATIENCE_SECONDS)


@pytest.fixture
async def house(database: Database, secrets: Secrets, db: psycopg.AsyncConnection) -> AsyncIterator[House]:
    subscriptions = Subscriptions()
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    async with (
        neighbour(settings, subscriptions) as address,
        process(
            database,
            secrets,
            address,
            WEBHOOKS_DELIVERY_POLL_SECONDS="0.1",
            WEBHOOKS_DELIVERY_LEASE_SECONDS="30",
            WEBHOOKS_DELIVERY_CALL_SECONDS=str(CALL_SECONDS),
        ) as first,
        process(
            database,
            secrets,
            address,
            WEBHOOKS_DELIVERY_POLL_SECONDS="0.1",
        ) as second,
        httpx.AsyncClient(timeout=5) as http,
    ):
        house = House(first, second, subscriptions, http, db)
        subscriptions.before = house.apply_and_hold
        yield house
        house.release.set()


async def test_killed_after_the_effect_and_before_the_mark(house: House, tenant: str) -> None:
    await house.taken_by_the_first(charged(tenant))

    await house.first.end(signal.SIGKILL)
    await house.lease_is_over()
    await house.first.start()
    await eventually(house.done, seconds=PATIENCE_SECONDS)

    row = await house.row()
    assert (row["outcome"], row["attempt"], row["retry_count"]) == ("duplicate", 2, 1)
    assert len(house.subscriptions.requests) == 2
    assert len(house.subscriptions.effects) == 1


async def test_a_worker_that_thaws_after_its_lease_overwrites_nothing(house: House, tenant: str) -> None:
    await house.taken_by_the_first(charged(tenant))
    house.first.send(signal.SIGSTOP)
    await house.second.start()
    await house.lease_is_over()
    await eventually(house.done, seconds=PATIENCE_SECONDS)
    decided = await house.row()

    house.release.set()
    house.first.send(signal.SIGCONT)
    await eventually(lambda: told(house.first), seconds=PATIENCE_SECONDS)

    assert (decided["outcome"], decided["attempt"]) == ("duplicate", 2)
    assert await house.row() == decided
    assert b'"result": "lost"' in house.first.log
    assert len(house.subscriptions.effects) == 1


async def test_a_failure_that_thaws_after_its_lease_puts_nothing_back(house: House, tenant: str) -> None:
    """The call of the frozen worker failed meanwhile: it must neither delay nor set aside what is done."""
    await house.taken_by_the_first(charged(tenant))
    house.first.send(signal.SIGSTOP)
    await house.second.start()
    await house.lease_is_over()
    await eventually(house.done, seconds=PATIENCE_SECONDS)
    decided = await house.row()

    # Its deadline has passed by the time it looks: to it the call has failed.
    await asyncio.sleep(CALL_SECONDS)
    house.first.send(signal.SIGCONT)
    await eventually(lambda: told(house.first), seconds=PATIENCE_SECONDS)

    assert await house.row() == decided
    assert b'"result": "lost"' in house.first.log
    cursor = await house.db.execute("SELECT count(*) FROM webhook_dead_letter_queue")
    assert await cursor.fetchone() == (0,)
    assert len(house.subscriptions.effects) == 1


async def test_a_body_that_kills_its_worker_takes_nobody_along(
    database: Database, secrets: Secrets, db: psycopg.AsyncConnection, tenant: str
) -> None:
    subscriptions, together, deaths = Subscriptions(), asyncio.Event(), 0
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    told_to = {
        "WEBHOOKS_DELIVERY_POLL_SECONDS": "0.1",
        "WEBHOOKS_DELIVERY_LEASE_SECONDS": "1",
        "WEBHOOKS_DELIVERY_CALL_SECONDS": "0.9",
        "WEBHOOKS_DELIVERY_ATTEMPTS": "2",
        "WEBHOOKS_DELIVERY_CONCURRENCY": "8",
    }
    async with (
        neighbour(settings, subscriptions) as address,
        process(database, secrets, address, **told_to) as room,
        httpx.AsyncClient(timeout=5) as http,
    ):

        async def die_of_the_first(request: Any) -> None:
            nonlocal deaths
            if request.event.payment.id == f"pay_{tenant}_0":
                if deaths == 0:
                    await together.wait()
                deaths += 1
                room.send(signal.SIGKILL)
            elif deaths == 0:
                if len(subscriptions.requests) >= 7:
                    together.set()
                await asyncio.sleep(1)

        subscriptions.before = die_of_the_first
        await room.start()
        for number in range(7):
            assert await post(http, room.url, charged(f"{tenant}_{number}")) == 200
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await all_decided(db):
                if room.running is not None and room.running.returncode is not None:
                    await room.start(wait=False)
                await asyncio.sleep(0.05)

    cursor = await db.execute("SELECT tenant_id, last_error FROM webhook_dead_letter_queue")
    assert await cursor.fetchall() == [(f"{tenant}_0", "worker_died")]
    assert deaths == 2
    cursor = await db.execute("SELECT count(*) FROM webhook_events WHERE outcome IN ('applied', 'duplicate')")
    assert await cursor.fetchone() == (6,)


async def all_decided(db: psycopg.AsyncConnection) -> bool:
    cursor = await db.execute("SELECT bool_and(processed) FROM webhook_events")
    return await cursor.fetchone() == (True,)


async def told(room: Process) -> bool:
    return room.logged("event_delivered") + room.logged("event_not_delivered") > 0
