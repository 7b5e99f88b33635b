"""The database connection cut at COMMIT, a hundred times each way, under two dozen writers: everybody is told the truth."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import Database
from tests.faults import soaking
from tests.faults.checks import verify
from tests.faults.journal import Told
from tests.faults.ledgers import serving
from tests.faults.operations import World
from tests.faults.proxy import Cut, Proxy, proxied
from tests.faults.writers import Writers

LANES = 6
TENANTS = 12
WRITERS = 24
PATIENCE_SECONDS = 60


@asynccontextmanager
async def writers_over_a_proxy(
    database: Database, tenant: str, seed: int
) -> AsyncIterator[tuple[Writers, Proxy]]:
    """More tenants than lanes, so that neighbours share batches, and a proxy that lets everything pass at first."""
    world = World([f"{tenant}_{number}" for number in range(TENANTS)])
    async with (
        proxied(database.url("ledger_rw")) as proxy,
        serving(lanes_url=proxy.url, reads_url=database.url("ledger_rw"), lanes=LANES) as client,
    ):
        writers = Writers(world, [client], seed, count=WRITERS)
        await writers.open_accounts()
        yield writers, proxy


async def until_cut(proxy: Proxy, times: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while proxy.cuts.total() < times:
            await asyncio.sleep(0.01)
    proxy.plan = lambda: None


@pytest.mark.parametrize(
    ("cut", "times"),
    [(Cut.BEFORE, 100), (Cut.AFTER, 100), (Cut.AROUND, 40)],
    ids=lambda each: getattr(each, "name", None),
)
async def test_connections_cut_at_commit_and_everybody_is_told_the_truth(
    database: Database, tenant: str, cut: Cut, times: int
) -> None:
    seed = soaking.seed(20261)
    rng = random.Random(seed)
    async with writers_over_a_proxy(database, tenant, seed) as (writers, proxy):
        async with writers.working():
            proxy.plan = lambda: cut if rng.random() < 0.4 else None
            await until_cut(proxy, times)
        print(writers.journal.summary(), f"{proxy.commits} commits, {proxy.cuts.total()} cut")
        await verify(writers, database.url("billing_operator"))
    assert proxy.cuts[cut] >= times
    assert writers.journal.count(Told.OK) > 100
    assert writers.journal.count(Told.REFUSED) > 10
    assert writers.journal.count(Told.UNKNOWN) > 0
