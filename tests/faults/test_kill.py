"""kill -9 of the ledger and of PostgreSQL under eight writers, then the log of what they were told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.faults import soaking
from tests.faults.checks import verify
from tests.faults.cluster import OwnCluster, own_cluster
from tests.faults.journal import Told
from tests.faults.ledgers import Client, LedgerProcess, client_of
from tests.faults.operations import World
from tests.faults.writers import Writers

ACKNOWLEDGED_BETWEEN_KILLS = 40
KILLS_A_ROUND = 8
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class House:
    """A ledger process, its PostgreSQL, and a client: all of it this test's own."""

    cluster: OwnCluster
    ledger: LedgerProcess
    client: Client


@pytest.fixture(scope="module")
async def house() -> AsyncIterator[House]:
    with own_cluster() as cluster:
        ledger = LedgerProcess(cluster.url("ledger_rw"), cluster.folder / "ledger.log")
        try:
            await ledger.start()
            async with client_of(ledger.address) as client:
                yield House(cluster, ledger, client)
        finally:
            ledger.kill()


async def kill_the_ledger(house: House) -> None:
    house.ledger.kill()
    await house.ledger.start()


async def kill_postgres(house: House) -> None:
    house.cluster.kill()
    await house.cluster.start_again()


async def kill_both(house: House) -> None:
    house.ledger.kill()
    house.cluster.kill()
    await house.cluster.start_again()
    await house.ledger.start()


async def kill_a_backend(house: House) -> None:
    house.cluster.kill_backend_of_a_lane()


KILLS: tuple[Callable[[House], Awaitable[None]], ...] = (
    kill_the_ledger,
    kill_postgres,
    kill_both,
    kill_a_backend,
)


@asynccontextmanager
async def round_of_kills(house: House, tenant: str, seed: int) -> AsyncIterator[Writers]:
    """Writers at work while the block kills; afterwards all is healed and everybody's answers are checked."""
    writers = Writers(World([f"{tenant}_{number}" for number in range(4)]), [house.client], seed)
    await writers.open_accounts()
    async with writers.working():
        yield writers
        await until_acknowledged(writers, ACKNOWLEDGED_BETWEEN_KILLS)
    print(writers.journal.summary())
    await verify(writers, house.cluster.url("billing_operator"))


async def until_acknowledged(writers: Writers, more: int) -> None:
    """They work again: a kill that nobody felt, or that nobody recovered from, proves nothing."""
    wanted = writers.journal.count(Told.OK) + more
    async with asyncio.timeout(PATIENCE_SECONDS):
        while writers.journal.count(Told.OK) < wanted:
            await asyncio.sleep(0.05)


async def test_kill_9_of_the_ledger_and_of_postgres_loses_nothing_and_repeats_nothing(
    house: House, tenant: str
) -> None:
    seed = soaking.seed(20262)
    rng = random.Random(seed)
    async with round_of_kills(house, tenant, seed) as writers:
        for kill in rng.sample([*KILLS, *[kill_a_backend] * 4], 8):
            await until_acknowledged(writers, ACKNOWLEDGED_BETWEEN_KILLS)
            await asyncio.sleep(rng.uniform(0, 0.1))
            await kill(house)
    assert writers.journal.count(Told.UNKNOWN) > 0, "nobody was interrupted, so this run proves nothing"


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
async def test_kills_for_minutes(house: House, tenant: str) -> None:
    seed = soaking.any_seed()
    rng = random.Random(seed)
    ends_at, rounds = time.monotonic() + soaking.SECONDS, 0
    while time.monotonic() < ends_at:
        rounds += 1
        async with round_of_kills(house, f"{tenant}_{rounds}", rng.randrange(10**9)) as writers:
            for _ in range(KILLS_A_ROUND):
                await until_acknowledged(writers, rng.randint(1, 200))
                await asyncio.sleep(rng.uniform(0, 0.3))
                await rng.choice(KILLS)(house)
    print(f"{rounds} rounds of {KILLS_A_ROUND} kills")
