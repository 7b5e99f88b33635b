"""The moment between COMMIT and 200: whoever dies there, and whatever is not heard, the event is there once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import psycopg
import pytest

from tests.conftest import Database, Secrets
from tests.faults.proxy import Cut, Proxy, is_commit, is_committed, is_idle, is_insert, proxied
from tests.webhooks.harness import Subscriptions, charged, eventually, neighbour, room_settings
from tests.webhooks.processes import Process, process, told

# Nothing but a delivery commits between two polls, and only the wake-up delivers.
NEVER = "600"
PATIENCE_SECONDS = 30.0  # on a machine with much else to do


@dataclass(frozen=True)
class House:
    """An ingress that reaches PostgreSQL over a proxy, its neighbour, and a sender."""

    ingress: Process
    proxy: Proxy
    subscriptions: Subscriptions
    http: httpx.AsyncClient
    db: psycopg.AsyncConnection

    async def send(self, body: bytes) -> tuple[int, str]:
        return await told(self.http, self.ingress.url, body)

    async def stored(self) -> int:
        cursor = await self.db.execute("SELECT count(*) FROM webhook_events")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async def delivered(self) -> bool:
        cursor = await self.db.execute("SELECT bool_and(processed) FROM webhook_events")
        row = await cursor.fetchone()
        return bool(row and row[0])


@pytest.fixture
async def house(database: Database, secrets: Secrets, db: psycopg.AsyncConnection) -> AsyncIterator[House]:
    subscriptions = Subscriptions()
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    async with (
        proxied(database.url("webhooks_rw")) as proxy,
        neighbour(settings, subscriptions) as address,
        process(database, secrets, address, url=proxy.url, WEBHOOKS_DELIVERY_POLL_SECONDS=NEVER) as ingress,
        httpx.AsyncClient(timeout=15) as http,
    ):
        # Deliveries are stored by a statement outside of a transaction, what becomes of them is written inside one.
        proxy.is_commit = lambda statement: is_commit(statement) or is_insert(statement)
        proxy.is_committed = lambda message: is_committed(message) or is_idle(message)
        await ingress.start()
        await until_quiet(proxy)
        yield House(ingress, proxy, subscriptions, http, db)


async def until_quiet(proxy: Proxy) -> None:
    """The ingress looks once for what is due when it starts; the next COMMIT is a delivery's."""
    before = -1
    while proxy.commits != before:
        before = proxy.commits
        await asyncio.sleep(0.2)


def once(cut: Cut, also: Callable[[], None] = lambda: None, times: int = 1) -> Callable[[], Cut | None]:
    """The next COMMIT is cut so, all later ones pass."""
    left = [cut] * times

    def plan() -> Cut | None:
        if not left:
            return None
        also()
        return left.pop()

    return plan


@asynccontextmanager
async def sending(house: House, body: bytes) -> AsyncIterator[asyncio.Task[tuple[int, str]]]:
    task = asyncio.create_task(house.send(body))
    yield task
    await task


async def test_killed_after_the_commit_and_before_the_200(house: House, tenant: str) -> None:
    body = charged(tenant)
    house.proxy.plan = once(Cut.HOLE_AFTER)

    async with sending(house, body) as first:
        await eventually(house.stored, seconds=PATIENCE_SECONDS)
        house.ingress.send(signal.SIGKILL)
    await house.ingress.start()
    again = await house.send(body)
    await eventually(house.delivered, seconds=PATIENCE_SECONDS)

    assert first.result() == (0, "")
    assert again == (200, "duplicate")
    assert await house.stored() == 1
    assert len(house.subscriptions.effects) == len(house.subscriptions.requests) == 1


async def test_killed_before_the_commit(house: House, tenant: str) -> None:
    body = charged(tenant)
    house.proxy.plan = once(Cut.BEFORE, lambda: house.ingress.send(signal.SIGKILL))

    first = await house.send(body)
    stored_by_the_first = await house.stored()
    await house.ingress.start()
    again = await house.send(body)
    await eventually(house.delivered, seconds=PATIENCE_SECONDS)

    assert (first, stored_by_the_first) == ((0, ""), 0)
    assert again == (200, "stored")
    assert await house.stored() == 1
    assert len(house.subscriptions.effects) == len(house.subscriptions.requests) == 1


@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.AFTER, Cut.AROUND])
async def test_a_lost_connection_at_the_commit(house: House, tenant: str, cut: Cut) -> None:
    bodies = [charged(f"{tenant}_{number}") for number in range(5)]
    house.proxy.plan = once(cut)

    first = await asyncio.gather(*(house.send(body) for body in bodies))
    again = [await house.send(body) for body in bodies]
    await eventually(house.delivered, seconds=PATIENCE_SECONDS)

    lost = [position for position, answer in enumerate(first) if answer == (503, "")]
    assert lost, "the cut hit nobody"
    assert all(answer == (200, "stored") for position, answer in enumerate(first) if position not in lost)
    surely = {Cut.BEFORE: {"stored"}, Cut.AFTER: {"duplicate"}, Cut.AROUND: {"stored", "duplicate"}}[cut]
    assert all(again[position][1] in surely for position in lost)
    assert {status for status, _ in again} == {200}
    assert await house.stored() == 5
    assert len(house.subscriptions.effects) == len(house.subscriptions.requests) == 5


async def test_silence_at_the_commit_is_a_503_and_nobody_waits_for_it_for_ever(
    house: House, tenant: str
) -> None:
    silent = [charged(f"{tenant}_{number}") for number in range(2)]  # as many as write at a time
    house.proxy.plan = once(Cut.HOLE_AFTER, times=2)

    async with sending(house, silent[0]) as first:
        await eventually(house.stored, seconds=PATIENCE_SECONDS)
        async with sending(house, silent[1]) as second:
            pass
    fresh = await resent(house, charged(f"{tenant}_fresh"))
    again = [await house.send(body) for body in silent]
    await eventually(house.delivered, seconds=PATIENCE_SECONDS)

    assert first.result() == second.result() == (503, "")
    assert fresh == (200, "stored")
    assert again == [(200, "duplicate")] * 2
    assert await house.stored() == 3
    assert len(house.subscriptions.effects) == len(house.subscriptions.requests) == 3


async def resent(house: House, body: bytes) -> tuple[int, str]:
    """As a provider does it: until it is answered 2xx."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (answer := await house.send(body))[0] != 200:
            await asyncio.sleep(0.2)
    return answer


@pytest.mark.parametrize("step", ["claim", "mark"])
async def test_silence_at_a_step_of_a_delivery_delays_it_and_no_more(
    house: House, tenant: str, step: str
) -> None:
    passing = {"claim": 1, "mark": 2}[step]  # the insert, the claim
    hole = once(Cut.HOLE_AFTER)
    seen = 0

    def plan() -> Cut | None:
        nonlocal seen
        seen += 1
        return hole() if seen > passing else None

    house.proxy.plan = plan
    assert await house.send(charged(tenant)) == (200, "stored")
    await eventually(lambda: heard(house), seconds=PATIENCE_SECONDS)

    assert await house.send(charged(f"{tenant}_later")) == (200, "stored")
    await eventually(house.delivered, seconds=PATIENCE_SECONDS)

    assert house.proxy.cuts[Cut.HOLE_AFTER] == 1
    assert len(house.subscriptions.effects) == 2


async def heard(house: House) -> bool:
    return house.proxy.cuts[Cut.HOLE_AFTER] == 1


async def test_what_was_stored_unheard_is_delivered_without_a_redelivery(house: House, tenant: str) -> None:
    house.proxy.plan = once(Cut.AFTER)

    assert await house.send(charged(tenant)) == (503, "")
    await eventually(house.delivered, seconds=PATIENCE_SECONDS)

    assert len(house.subscriptions.effects) == 1
