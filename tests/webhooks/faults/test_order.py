"""Two ingress processes on one inbox: within a subscription events are tried in their order of arrival, once at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import psycopg
import pytest

from shared.errors import BillingError, DeadlineExceeded, FailedPrecondition, Internal, Unavailable
from tests.conftest import Database, Secrets
from tests.faults import soaking
from tests.webhooks.harness import Subscriptions, charged, eventually, neighbour, room_settings
from tests.webhooks.processes import post, process

SUBSCRIPTIONS = 5
EVENTS = 50
FAILURES: tuple[type[BillingError], ...] = (Unavailable, FailedPrecondition, Internal, DeadlineExceeded)


@dataclass
class Attempts:
    """What the neighbour saw of each event: when each attempt began and ended."""

    rng: random.Random
    failing: float
    seen: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))

    async def record(self, request: Any) -> None:
        attempt = [time.monotonic(), float("inf")]
        self.seen[request.event.payment.id].append(attempt)
        try:
            await asyncio.sleep(self.rng.choice([0, 0, 0.005, 0.02]))
            if self.rng.random() < self.failing and len(self.seen[request.event.payment.id]) < 6:
                raise self.rng.choice(FAILURES)("no")
        finally:
            attempt[1] = time.monotonic()

    def assert_in_order(self, arrived: list[str]) -> None:
        """The first attempt of each began when the first attempts of all before it were over."""
        for earlier, later in pairwise(arrived):
            assert self.seen[earlier][0][1] <= self.seen[later][0][0], (earlier, later)


@dataclass(frozen=True)
class House:
    urls: list[str]
    subscriptions: Subscriptions
    http: httpx.AsyncClient
    db: psycopg.AsyncConnection

    async def all_done(self) -> bool:
        cursor = await self.db.execute("SELECT bool_and(processed) FROM webhook_events")
        row = await cursor.fetchone()
        return bool(row and row[0])


@asynccontextmanager
async def two_ingresses(
    database: Database, secrets: Secrets, db: psycopg.AsyncConnection, *, poll_seconds: float
) -> AsyncIterator[House]:
    subscriptions = Subscriptions()
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    told = {
        "WEBHOOKS_DELIVERY_POLL_SECONDS": str(poll_seconds),
        "WEBHOOKS_DELIVERY_LEASE_SECONDS": "20",
        "WEBHOOKS_DELIVERY_CONCURRENCY": "8",
        "WEBHOOKS_DELIVERY_BACKOFF_SECONDS": "0.02",
    }
    async with (
        neighbour(settings, subscriptions) as address,
        process(database, secrets, address, **told) as one,
        process(database, secrets, address, **told) as other,
        httpx.AsyncClient(timeout=5) as http,
    ):
        await asyncio.gather(one.start(), other.start())
        yield House([one.url, other.url], subscriptions, http, db)


async def told_in_turn(house: House, tenant: str, rng: random.Random) -> dict[str, list[str]]:
    """Every delivery at either door, each after the last was answered; the order of arrival, by subscription."""
    arrived: dict[str, list[str]] = defaultdict(list)
    for number in range(EVENTS):
        subscription = f"sub_{tenant}_{rng.randrange(SUBSCRIPTIONS)}"
        payment = f"pay_{tenant}_{number}"
        body = charged(tenant, subscription=subscription, payment=payment)
        assert await post(house.http, rng.choice(house.urls), body) == 200
        arrived[subscription].append(payment)
    return arrived


async def one_round(house: House, tenant: str, rng: random.Random, failing: float) -> Attempts:
    attempts = Attempts(rng, failing)
    house.subscriptions.before = attempts.record
    house.subscriptions.effects.clear()
    arrived = await told_in_turn(house, tenant, rng)
    await eventually(house.all_done, seconds=40)
    for payments in arrived.values():
        attempts.assert_in_order(payments)
    assert len(house.subscriptions.effects) == len(set(house.subscriptions.effects)) == EVENTS
    return attempts


async def test_what_arrives_in_turn_is_tried_in_turn_and_at_once(
    database: Database, secrets: Secrets, db: psycopg.AsyncConnection, tenant: str
) -> None:
    # Nobody looks by himself: one process's end of a delivery and the other's arrival must wake whoever may go on.
    rng = random.Random(soaking.seed(501))
    async with two_ingresses(database, secrets, db, poll_seconds=600) as house:
        started = time.monotonic()
        attempts = await one_round(house, tenant, rng, failing=0)

    assert time.monotonic() - started < 60
    assert {len(seen) for seen in attempts.seen.values()} == {1}


async def test_what_fails_lets_the_next_one_go_first_and_nothing_else_overtakes(
    database: Database, secrets: Secrets, db: psycopg.AsyncConnection, tenant: str
) -> None:
    rng = random.Random(soaking.seed(502))
    async with two_ingresses(database, secrets, db, poll_seconds=0.05) as house:
        for failing in (0.15, 0.6):
            attempts = await one_round(house, f"{tenant}_{failing:.0%}"[:-1], rng, failing)
            assert max(len(seen) for seen in attempts.seen.values()) > 1


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
async def test_orders_for_minutes(
    database: Database, secrets: Secrets, db: psycopg.AsyncConnection, tenant: str
) -> None:
    rng = random.Random(soaking.any_seed())
    ends_at, rounds = time.monotonic() + soaking.SECONDS, 0
    async with two_ingresses(database, secrets, db, poll_seconds=0.05) as house:
        while time.monotonic() < ends_at:
            rounds += 1
            await one_round(house, f"{tenant}_{rounds}", rng, rng.choice([0, 0.05, 0.3, 0.7]))
    print(f"{rounds} rounds of {EVENTS} events")
