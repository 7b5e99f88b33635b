"""The database connection cut at COMMIT, a hundred times each way, under two dozen writers: everybody is told the truth."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

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
    [(Cut.BEFORE, 100), (Cut.AFTER, 100), (Cut.AROUND, 20)],
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


def one_of(kinds: Sequence[Cut], share: float, rng: random.Random) -> Cut | None:
    return rng.choice(kinds) if rng.random() < share else None


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
async def test_cuts_of_every_kind_for_minutes(database: Database, tenant: str) -> None:
    rng = random.Random(soaking.any_seed())
    ends_at, rounds = time.monotonic() + soaking.SECONDS, 0
    kinds = (Cut.BEFORE, Cut.AFTER, Cut.AROUND)
    while time.monotonic() < ends_at:
        rounds += 1
        seed, share = rng.randrange(10**9), rng.uniform(0.05, 0.8)
        async with writers_over_a_proxy(database, f"{tenant}_{rounds}", seed) as (writers, proxy):
            async with writers.working():
                proxy.plan = partial(one_of, kinds, share, rng)
                await until_cut(proxy, 100)
            print(writers.journal.summary(), f"{proxy.commits} commits, {dict(proxy.cuts)}")
            await verify(writers, database.url("billing_operator"))
    print(f"{rounds} rounds of 100 cuts")
