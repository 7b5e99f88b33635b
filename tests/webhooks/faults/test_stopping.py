"""SIGTERM in the middle of everything: what was answered 200 is there, nothing is asked twice, no claim is kept."""

from __future__ import annotations

import asyncio
import random
import signal
from functools import partial
from typing import Any

import httpx
import psycopg

from tests.conftest import Database, Secrets
from tests.faults import soaking
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Subscriptions, charged, eventually, neighbour, room_settings
from tests.webhooks.processes import post, process

EVENTS = 150
STOPS = 2
PATIENCE_SECONDS = 40.0
CLAIMS = "SELECT count(*) FROM webhook_events WHERE NOT processed AND (locked_until IS NOT NULL OR retry_count > 0)"


async def count(db: psycopg.AsyncConnection, query: str) -> int:
    row = await (await db.execute(query)).fetchone()
    assert row is not None
    return int(row[0])


async def test_stops_under_load_lose_and_repeat_nothing(
    database: Database, secrets: Secrets, db: psycopg.AsyncConnection, tenant: str
) -> None:
    subscriptions, rng = Subscriptions(), random.Random(soaking.seed(503))

    async def dawdle(_request: Any) -> None:
        await asyncio.sleep(rng.uniform(0, 0.1))

    subscriptions.before = dawdle
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    bodies = [charged(tenant, subscription=f"sub_{n % 40}", payment=f"pay_{n}") for n in range(EVENTS)]
    told_200: list[int] = []
    async with (
        neighbour(settings, subscriptions) as address,
        # Long, so that a claim that was not given back is seen as an event that is not delivered.
        process(database, secrets, address, WEBHOOKS_DELIVERY_LEASE_SECONDS="600") as room,
        httpx.AsyncClient(timeout=5) as http,
    ):
        await room.start()
        busy = asyncio.Semaphore(4)

        async def send(number: int) -> None:
            async with busy:
                while await post(http, room.url, bodies[number]) != 200:
                    await asyncio.sleep(0.05)
                told_200.append(number)

        senders = [asyncio.create_task(send(number)) for number in range(EVENTS)]
        for stop in range(1, STOPS + 1):
            await eventually(partial(reached, told_200, stop * EVENTS // 4), seconds=PATIENCE_SECONDS)
            assert await room.end(signal.SIGTERM) == 0
            assert await count(db, CLAIMS) == 0
            assert await count(db, "SELECT count(*) FROM webhook_events") >= len(told_200)
            await room.start()
        await asyncio.gather(*senders)
        await eventually(lambda: reached(subscriptions.effects, EVENTS), seconds=PATIENCE_SECONDS)
        assert await room.end(signal.SIGTERM) == 0

    assert len(subscriptions.requests) == len(set(subscriptions.effects)) == EVENTS
    assert await count(db, "SELECT count(*) FROM webhook_events WHERE outcome = 'applied'") == EVENTS


async def reached(seen: list[Any], wanted: int) -> bool:
    return len(seen) >= wanted


async def test_a_claim_that_is_cancelled_at_any_moment_is_given_back(start: Start, tenant: str) -> None:
    room = await start(deliver=False, webhooks_delivery_lease_seconds=600)
    for number in range(4):
        await room.post(charged(f"{tenant}_{number}"))
    rng, cancelled = random.Random(soaking.seed(504)), 0

    for _ in range(60):
        claiming = asyncio.create_task(room.room.courier.claim(2))
        await asyncio.sleep(rng.uniform(0, 0.006))
        claiming.cancel()
        try:
            for event in await claiming:
                await room.room.courier._release(event)
        except asyncio.CancelledError:
            cancelled += 1
        assert await count(room.db, CLAIMS) == 0

    assert cancelled > 5
    assert len(await room.room.courier.claim(10)) == 4
