"""Kills of everything that a delivery passes, at random moments: what was answered 2xx has one effect, once."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import random
import signal
import time

import pytest

from shared.errors import BillingError
from tests.faults import soaking
from tests.journeys.ingresses import PATIENCE_SECONDS, Doors, two_doors
from tests.journeys.test_kill import Clients, a_paid_purchase, check_purchases, clients_of, until_funded
from tests.suite.running import RunningSuite
from tests.webhooks.harness import eventually

pytestmark = pytest.mark.xdist_group("suite")

SENDERS = 6
BUYERS = 8
SECOND = "the second ingress"
VICTIMS = ("webhooks", SECOND, "subscriptions", "ledger", "postgres")


async def kill(doors: Doors, victim: str) -> None:
    """kill -9, and back when it runs again."""
    if victim == SECOND:
        await doors.second.kill()
        await start_second(doors)
        return
    async with asyncio.timeout(PATIENCE_SECONDS):
        # The kill before may have taken it along, as a database does its rooms.
        while (before := doors.suite.pid(victim)) is None:
            await asyncio.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.kill(before, signal.SIGKILL)
        while doors.suite.pid(victim) in (None, before):
            await asyncio.sleep(0.05)


async def start_second(doors: Doors) -> None:
    """As a supervisor does it: again while its database is away."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await doors.second.start()
            except AssertionError:
                await doors.second.kill()
                await asyncio.sleep(0.2)
            else:
                return


async def one_round(
    doors: Doors, clients: Clients, tenant: str, rng: random.Random, kills: list[str]
) -> None:
    buyers = [f"{tenant}_{number}" for number in range(BUYERS)]
    bodies = []
    for buyer in buyers:
        bodies += await bought_by(clients, buyer)
    owed = [body for body in bodies for _ in range(rng.randint(1, 3))]
    rng.shuffle(owed)

    async def harm() -> None:
        for victim in kills:
            await asyncio.sleep(rng.uniform(0, 1.0))
            print(f"{time.monotonic():.2f} kill -9 {victim}")
            await kill(doors, victim)

    chaos = asyncio.create_task(harm())

    async def send() -> None:
        while owed or not chaos.done():
            await doors.deliver(owed.pop() if owed else rng.choice(bodies), rng)
            await asyncio.sleep(rng.uniform(0, 0.3))

    await asyncio.gather(*(send() for _ in range(SENDERS)))
    await chaos
    await eventually(lambda: doors.decided(bodies), seconds=PATIENCE_SECONDS)
    await until_funded(clients, buyers)
    await check(doors, bodies)
    check_purchases(doors.suite, buyers)


async def bought_by(clients: Clients, buyer: str) -> list[bytes]:
    """The bodies about one paid credit pack; the rooms may be coming back from the kills before."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                deliveries = await a_paid_purchase(clients, buyer)
            except BillingError as error:
                assert not error.definite
                await asyncio.sleep(0.2)
            else:
                return [base64.b64decode(delivery["body_base64"]) for delivery in deliveries]


async def check(doors: Doors, bodies: list[bytes]) -> None:
    """Each accepted delivery has one row that was decided, and only its first answer may call it new."""
    rows = {row["body_sha256"]: row for row in await doors.rows(bodies)}
    for body in bodies:
        sha256 = hashlib.sha256(body).hexdigest()
        assert doors.accepted[sha256], "a delivery that was never accepted proves nothing"
        assert doors.accepted[sha256].count("stored") <= 1
        assert rows[sha256]["outcome"] in {"applied", "duplicate", "superseded", "ignored"}
    letters = await doors.read(
        "SELECT * FROM webhook_dead_letter_queue WHERE webhook_event_id = ANY(%s)",
        [row["id"] for row in rows.values()],
    )
    assert letters == []


async def test_kills_at_random_moments_lose_and_repeat_nothing(
    running_suite: RunningSuite, tenant: str
) -> None:
    rng = random.Random(soaking.seed(514))
    async with two_doors(running_suite) as doors, clients_of(running_suite) as clients:
        await one_round(doors, clients, tenant, rng, rng.sample(VICTIMS, 3))
        assert doors.told["nothing"] + doors.told["503"] > 0, "nobody was interrupted: this proves nothing"
        print(dict(doors.told))


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
async def test_kills_for_minutes(running_suite: RunningSuite, tenant: str) -> None:
    rng, ends_at, rounds = random.Random(soaking.any_seed()), time.monotonic() + soaking.SECONDS, 0
    async with two_doors(running_suite) as doors, clients_of(running_suite) as clients:
        while time.monotonic() < ends_at:
            rounds += 1
            await one_round(doors, clients, f"{tenant}_{rounds}", rng, rng.choices(VICTIMS, k=6))
        print(f"{rounds} rounds of 6 kills: {dict(doors.told)}")
