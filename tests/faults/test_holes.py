"""A database link that swallows everything and stays open: no error ever comes, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from services.ledger import lanes
from tests.conftest import Database
from tests.faults import soaking
from tests.faults.checks import verify
from tests.faults.journal import Told
from tests.faults.ledgers import serving
from tests.faults.operations import World
from tests.faults.proxy import Cut, proxied
from tests.faults.writers import Writers

HOLES = 3
PATIENCE_SECONDS = 60


@pytest.mark.parametrize("cut", [Cut.HOLE_BEFORE, Cut.HOLE_AFTER], ids=lambda cut: cut.name)
async def test_a_half_open_link_is_given_up_and_everybody_is_told_the_truth(
    database: Database, tenant: str, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's side of a hole keeps its locks until PostgreSQL ends the transaction."""
    monkeypatch.setattr(lanes, "ROUND_TRIP_SECONDS", 0.4)
    await fall_into_holes(database, tenant, cut, HOLES, soaking.seed(20265))


async def fall_into_holes(database: Database, tenant: str, cut: Cut, times: int, seed: int) -> None:
    rng = random.Random(seed)
    async with (
        proxied(database.url("ledger_rw")) as proxy,
        serving(lanes_url=proxy.url, reads_url=database.url("ledger_rw"), lanes=3) as client,
    ):
        writers = Writers(World([f"{tenant}_{number}" for number in range(6)]), [client], seed)
        await writers.open_accounts()
        async with writers.working():
            proxy.plan = lambda: cut if rng.random() < 0.2 else None
            async with asyncio.timeout(PATIENCE_SECONDS):
                while proxy.cuts.total() < times:
                    await asyncio.sleep(0.01)
            proxy.plan = lambda: None
        print(writers.journal.summary(), f"{proxy.cuts.total()} holes")
        await verify(writers, database.url("billing_operator"))
    assert writers.journal.count(Told.OK) > 20


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
async def test_half_open_links_for_minutes(database: Database, tenant: str) -> None:
    rng = random.Random(soaking.any_seed())
    ends_at, rounds = time.monotonic() + soaking.SECONDS, 0
    while time.monotonic() < ends_at:
        rounds += 1
        cut = rng.choice((Cut.HOLE_BEFORE, Cut.HOLE_AFTER))
        await fall_into_holes(database, f"{tenant}_{rounds}", cut, 1, rng.randrange(10**9))
    print(f"{rounds} holes")
