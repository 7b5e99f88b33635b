"""Two ledger processes over the same tenants: locks keep them correct, and one that froze harms nobody."""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from services.ledger import lanes
from tests.conftest import Database
from tests.faults import soaking
from tests.faults.checks import verify
from tests.faults.journal import Call, Told
from tests.faults.ledgers import Client, LedgerProcess, client_of
from tests.faults.operations import World, a_debit
from tests.faults.writers import PATIENT_SECONDS, Writers, settle

WRITERS_EACH = 4
CALLS = 150
PATIENCE_SECONDS = 30
# Longer than any transaction of a ledger that runs.
STILL_THERE_SECONDS = 0.3


@dataclass(frozen=True)
class Pair:
    """Two ledgers, and a client of each."""

    processes: tuple[LedgerProcess, LedgerProcess]
    clients: tuple[Client, Client]


@asynccontextmanager
async def two_ledgers(database: Database, module: str) -> AsyncIterator[Pair]:
    url = database.url("ledger_rw")
    with tempfile.TemporaryDirectory(prefix="billing-faults-") as folder:
        one, other = (LedgerProcess(url, Path(folder) / f"{n}.log", module=module) for n in range(2))
        try:
            await asyncio.gather(one.start(), other.start())
            async with client_of(one.address) as client, client_of(other.address) as other_client:
                yield Pair((one, other), (client, other_client))
        finally:
            one.kill()
            other.kill()


@pytest.fixture(scope="module")
async def pair(database: Database) -> AsyncIterator[Pair]:
    async with two_ledgers(database, "tests.faults.impatient") as pair:
        yield pair


async def test_the_same_keys_at_two_ledgers_have_one_effect_and_one_answer(
    database: Database, tenant: str, pair: Pair
) -> None:
    seed = soaking.seed(20263)
    rng = random.Random(seed)
    writers = Writers(World([f"{tenant}_{number}" for number in range(3)]), pair.clients, seed)
    await writers.open_accounts()
    calls = [writers.journal.add(writers.world.next_call(rng)) for _ in range(CALLS)]

    async def write(client: Client) -> None:
        for call in calls:
            call.tell(await call.ask(client.send(call.rpc, timeout=PATIENT_SECONDS)))

    await asyncio.gather(*(write(client) for client in pair.clients for _ in range(WRITERS_EACH)))

    for call in calls:
        for key, answers in call.answers.items():
            definite = [answer for answer in answers if answer.is_definite]
            assert len({answer.content for answer in definite}) == 1, f"{key}: {answers}"
            anew = [answer for answer in definite if answer.leaves_a_record and not answer.replayed]
            assert len(anew) == definite[0].leaves_a_record, f"{key}: {answers}"
    await verify(writers, database.url("billing_operator"))


async def test_a_ledger_that_froze_inside_a_transaction_keeps_nobody_waiting_and_books_nothing_twice(
    database: Database, tenant: str, pair: Pair
) -> None:
    await freeze_and_go_on(database, tenant, pair, soaking.seed(20264), locked_seconds=2)


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
async def test_ledgers_freeze_for_minutes(database: Database, tenant: str) -> None:
    rng = random.Random(soaking.any_seed())
    ends_at, rounds = time.monotonic() + soaking.SECONDS, 0
    locked_seconds = lanes.ROUND_TRIP_SECONDS + 1
    async with two_ledgers(database, "services.ledger") as pair:
        while time.monotonic() < ends_at:
            rounds += 1
            seed = rng.randrange(10**9)
            await freeze_and_go_on(database, f"{tenant}_{rounds}", pair, seed, locked_seconds=locked_seconds)
    print(f"{rounds} freezes")


async def freeze_and_go_on(
    database: Database, tenant: str, pair: Pair, seed: int, *, locked_seconds: float
) -> None:
    """Freezes the first ledger with locks in its hand, for longer than PostgreSQL lets it."""
    rng = random.Random(seed)
    writers = Writers(World([f"{tenant}_{number}" for number in range(3)]), pair.clients, seed)
    await writers.open_accounts()
    frozen, awake = pair.processes[0], pair.clients[1]
    async with writers.working():
        await asyncio.sleep(0.5)
        session = await freeze_inside_a_transaction(database, frozen, rng)
        try:
            await asyncio.sleep(locked_seconds)
            await touch_every_tenant(writers, awake, "awake")
            assert session not in await open_transactions(database)
        finally:
            frozen.signal(signal.SIGCONT)
        await touch_every_tenant(writers, pair.clients[0], "woken")
    print(writers.journal.summary())
    assert writers.journal.count(Told.UNKNOWN) > 0
    await verify(writers, database.url("billing_operator"))


async def freeze_inside_a_transaction(
    database: Database, ledger: LedgerProcess, rng: random.Random
) -> tuple[int, str]:
    """SIGSTOP at a moment when it holds locks; answers its session and when that transaction began."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            ledger.signal(signal.SIGSTOP)
            before = await open_transactions(database)
            if before:
                await asyncio.sleep(STILL_THERE_SECONDS)
                if left := before & await open_transactions(database):
                    return left.pop()
            ledger.signal(signal.SIGCONT)
            await asyncio.sleep(rng.uniform(0.005, 0.05))


async def open_transactions(database: Database) -> set[tuple[int, str]]:
    """Lanes' sessions that wait for their ledger inside a transaction."""
    async with await psycopg.AsyncConnection.connect(database.admin_url) as db:
        cursor = await db.execute(
            "SELECT pid, xact_start::text FROM pg_stat_activity WHERE state = 'idle in transaction'"
            " AND application_name LIKE 'ledger-lane-%' AND datname = current_database()"
        )
        return {(row[0], row[1]) for row in await cursor.fetchall()}


async def touch_every_tenant(writers: Writers, client: Client, name: str) -> None:
    """A debit from each, through this ledger, within seconds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        for number, tenant in enumerate(writers.world.tenants):
            call = Call(name, "Debit", a_debit(tenant, f"{name}-{tenant}-{number}", 1))
            await settle(writers.journal.add(call), client)
