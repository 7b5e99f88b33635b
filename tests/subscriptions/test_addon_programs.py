"""Random programs over add-ons of one tenant: calls lost, repeated and raced, while days pass and credits come and go."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from shared.errors import BillingError, Unavailable
from tests.conftest import Database
from tests.faults import soaking
from tests.ledger.conftest import Travel
from tests.subscriptions.addon_books import Books, books
from tests.subscriptions.conftest import Room
from tests.subscriptions.flaky_ledger import Cut, FlakyLedger, another_room

CODES = ("seat", "storage", "blog_posts")
PROGRAMS, STEPS = 6, 40

Call = Callable[[], Awaitable[Any]]


@dataclass
class Program:
    """What one tenant and the scheduler do, in an order that a seed decides."""

    of: Books
    rng: random.Random
    travel: Travel
    line: FlakyLedger
    doors: list[Any]
    jobs: list[Any]
    count: int = 0
    # Calls by their keys, with the first definite answer each was given.
    said: dict[str, tuple[Call, str | None]] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)

    async def run(self, steps: int) -> None:
        self.line.decide = self._cut
        for _ in range(steps):
            await self._step()
            self.of.assert_charged_once(settled=False)
        self.line.decide = lambda: None
        await self.of.renew()
        for key in list(self.said):
            await self._ask(key)
        await self.of.renew()
        self.of.assert_charged_once(settled=True)
        await self.of.room.reconcile()
        await self.of.assert_entitled()

    def _cut(self) -> Cut | None:
        return self.rng.choice((Cut.BEFORE, Cut.AFTER)) if self.rng.random() < 0.3 else None

    async def _step(self) -> None:
        kind = self.rng.choice(("one", "one", "race", "job", "days", "fund", "spend", "repeat"))
        self.steps.append(kind)
        match kind:
            case "one":
                await self._ask(self._new_call())
            case "race":
                keys = [self._new_call() for _ in range(self.rng.randint(2, 4))]
                keys += [self.rng.choice(keys)]
                jobs = [self._renew() for _ in range(self.rng.randint(0, 2))]
                await asyncio.gather(*(self._ask(key) for key in keys), *jobs)
            case "job":
                await self._renew()
            case "days":
                self.travel.forward(days=self.rng.choice((1, 10, 31, 70)))
            case "fund":
                await self.of.fund(self.rng.choice((100, 500, 1500)))
            case "spend":
                self.count += 1
                try:
                    await self.of.spend(self.rng.choice((50, 400)), f"spend:{self.count}")
                except BillingError as refused:
                    assert refused.reason == "INSUFFICIENT_CREDITS"
            case "repeat" if self.said:
                await self._ask(self.rng.choice(list(self.said)))

    async def _renew(self) -> None:
        await self.of.renew(door=self.rng.choice(self.jobs))

    def _new_call(self) -> str:
        self.count += 1
        key, door = f"key:{self.count}", self.rng.choice(self.doors)
        code = self.rng.choice(CODES)
        rows = self.of.rows()
        call: Call
        if not rows or self.rng.random() < 0.4:
            call = lambda: self.of.buy(code, key, self.rng_free_units(key), door)  # noqa: E731
        else:
            addon, act = self.rng.choice(rows)["id"], self.rng.choice((self.of.cancel, self.of.resume))
            call = lambda: act(addon, key, door)  # noqa: E731
        self.said[key] = (call, None)
        return key

    @staticmethod
    def rng_free_units(key: str) -> int:
        """A repeat asks for the same."""
        return 1 + len(key) % 2

    async def _ask(self, key: str) -> None:
        call, first = self.said[key]
        try:
            answer = await call()
        except Unavailable:
            return
        except BillingError as refused:
            assert refused.reason in {"INSUFFICIENT_CREDITS", "ADDON_EXISTS", "UNKNOWN_ADDON", "CONFLICT"}
            if refused.reason != "INSUFFICIENT_CREDITS":
                return  # not remembered: it says how things stand
            told = str(sorted(refused.metadata.items()))
        else:
            told = f"{type(answer).__name__} {_shown(answer.addon)} {getattr(answer, 'credits', 0)}"
        if first is None:
            _, first = self.said[key]  # a racer may have been told meanwhile
        assert first in (None, told), f"{key} was told {first} and then {told}"
        self.said[key] = (call, told)


def _shown(addon: pb.TenantAddon) -> str:
    return f"{addon.tenant_addon_id} {addon.units} {addon.status} {addon.next_renewal_at.ToJsonString()}"


@asynccontextmanager
async def program(
    room: Room, database: Database, tenant: str, travel: Travel, seed: int
) -> AsyncIterator[Program]:
    """A program of two processes of the room, one of which loses calls to the ledger."""
    of = await books(room, tenant, 1000)
    async with another_room(room, database) as (product, maintenance, line):
        yield Program(
            of,
            random.Random(seed),
            travel,
            line,
            [room.product, product],
            [room.maintenance, maintenance],
        )


@pytest.mark.parametrize("seed", range(PROGRAMS))
async def test_every_period_is_charged_once_in_any_program(
    room: Room, database: Database, tenant: str, travel: Travel, seed: int
) -> None:
    async with program(room, database, tenant, travel, seed) as chosen:
        await chosen.run(STEPS)

        assert any(row["period"] for row in chosen.of.rows()), "the program bought nothing"


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_programs_for_minutes(room: Room, database: Database, tenant: str, travel: Travel) -> None:
    ends_at, seed = time.monotonic() + soaking.SECONDS, soaking.any_seed()
    while time.monotonic() < ends_at:
        async with program(room, database, f"{tenant}_{seed}", travel, seed) as chosen:
            await chosen.run(STEPS)
        seed += 1
