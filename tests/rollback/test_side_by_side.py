"""The previous release's rooms on this release's schema: beside ours on one database, and then alone in their place."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
from billing.ledger.v1 import ledger_admin_pb2, ledger_admin_pb2_grpc, ledger_pb2_grpc
from billing.ledger.v1 import ledger_pb2 as pb
from billing.subscriptions.v1 import subscriptions_pb2_grpc
from pydantic import SecretStr

from shared.rpc.client import open_channel
from suite import processes
from suite.addresses import LOOPBACK, free_port
from suite.readiness import GrpcDoor, until_open
from tests.journeys import shell
from tests.journeys.losing import (
    PACK_CREDITS,
    PRO_CREDITS,
    SPENDERS,
    Load,
    Told,
    balance,
    debit,
    rows,
    run_job,
)
from tests.journeys.test_hostile_deliveries import paid, post
from tests.journeys.test_kill import Clients, clients_of
from tests.rollback import previous
from tests.suite.running import HOUSE, RunningSuite
from tests.webhooks.harness import eventually

ROOMS = ("ledger", "subscriptions", "webhooks", "scheduler")
READY_SECONDS_MAX = 30

_missing = previous.why_not(previous.release())
pytestmark = [
    pytest.mark.skipif(_missing is not None, reason=str(_missing)),
    pytest.mark.soak,  # by `make rollback-check`: it starts eight rooms and two suites
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="billing-rollback-"))
    path.chmod(0o711)  # as root the server is `nobody`, who must get in
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def older(folder: Path) -> Path:
    return previous.unpack(previous.release(), folder / "previous")


def environment_of(suite: RunningSuite, room: str) -> dict[str, str]:
    """What the running room was started with, its keys and its database among it."""
    pid = suite.pid(room)
    assert pid is not None
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


@contextmanager
def rooms_of(house: Path, suite: RunningSuite) -> Iterator[dict[str, str]]:
    """The previous release's rooms as further replicas of ours; where they listen."""
    listen = {door: f"{LOOPBACK}:{free_port([])}" for door in (*ROOMS, "webhooks_http")}
    started = []
    try:
        for room in ROOMS:
            told = environment_of(suite, room) | previous.environment(house)
            told |= {f"{door.upper()}_LISTEN": address for door, address in listen.items()}
            told |= {f"{room.upper()}_METRICS_LISTEN": ""}
            log = (suite.data_dir / f"previous-{room}.log").open("wb")
            with log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", f"services.{room}"],
                        cwd=house,
                        env=told,
                        stdout=log,
                        stderr=log,
                        preexec_fn=processes.die_with_parent(signal.SIGTERM),
                    )
                )
        yield listen
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)


async def serve(suite: RunningSuite, listen: dict[str, str]) -> None:
    for room in ROOMS:
        try:
            await asyncio.wait_for(until_open(GrpcDoor(room, listen[room])), READY_SECONDS_MAX)
        except TimeoutError:
            said = (suite.data_dir / f"previous-{room}.log").read_text()
            pytest.fail(f"the previous release's {room} does not serve on the newer schema:\n{said[-3000:]}")


@asynccontextmanager
async def callers(suite: RunningSuite, listen: dict[str, str]) -> AsyncIterator[Clients]:
    """Like `clients_of`, at the previous release's doors."""
    keys = suite.runtime["secrets"]
    product = SecretStr(keys["gateway_secret"])
    async with (
        clients_of(suite) as ours,
        open_channel(listen["ledger"], product) as ledger,
        open_channel(listen["subscriptions"], product) as subscriptions,
        httpx.AsyncClient(base_url=f"http://{listen['webhooks_http']}", timeout=5) as ingress,
    ):
        yield Clients(
            ledger_pb2_grpc.LedgerServiceStub(ledger),
            ours.funding,
            subscriptions_pb2_grpc.SubscriptionsServiceStub(subscriptions),
            ingress,
            ours.sandbox,
        )


async def verified(suite: RunningSuite) -> list[str]:
    """The tenants whose ledger does not add up."""
    secret = SecretStr(suite.runtime["secrets"]["operator_secret"])
    async with open_channel(suite.runtime["addresses"]["ledger"], secret) as channel:
        request = ledger_admin_pb2.VerifyLedgerRequest(page_size=500)
        answer = await ledger_admin_pb2_grpc.LedgerAdminServiceStub(channel).VerifyLedger(request)
    assert answer.verifications
    return [each.tenant_id for each in answer.verifications if not each.verified]


@pytest.mark.timeout(400)  # two suites one after the other, on a machine that may be busy
async def test_both_releases_serve_one_database_and_then_the_previous_one_alone(
    folder: Path, older: Path
) -> None:
    (folder / "data").mkdir(mode=0o711)
    journal = str(folder / "sandbox.journal")
    ours = RunningSuite(folder / "data", SANDBOX_STATE=journal)
    told = Told()
    try:
        ours.start()
        with rooms_of(older, ours) as listen:
            await serve(ours, listen)
            await side_by_side(ours, listen, told)
    finally:
        ours.stop()
    rolled_back = RunningSuite(folder / "data", SANDBOX_STATE=journal, **python_of(older))
    rolled_back.house = older
    try:
        rolled_back.start()
        assert "migrations applied: none were missing" in rolled_back.output().split("asked to stop")[-1]
        await alone(rolled_back, told)
        looked = await asyncio.to_thread(shell.typed, rolled_back, page("Is it well again"))
        assert looked.stdout.count("RUN_OUTCOME_SUCCEEDED") == 2, looked.stdout + looked.stderr
        assert looked.stdout.count('"verified": true') == looked.stdout.count('"tenantId": ') > 0
    finally:
        rolled_back.stop()


def page(heading: str) -> str:
    """What a section of docs/rollback.md has typed into a shell."""
    text = (HOUSE / "docs" / "rollback.md").read_text()
    [section] = [part for part in re.split(r"^## ", text, flags=re.M) if part.startswith(f"{heading}\n")]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", section, flags=re.M | re.S))


def python_of(house: Path) -> dict[str, str]:
    told = previous.environment(house)
    return {name: value for name, value in told.items() if os.environ.get(name) != value}


async def side_by_side(ours: RunningSuite, listen: dict[str, str], told: Told) -> None:
    """A deploy, in the middle: clients meet one release here and the other there, with the same keys."""
    async with clients_of(ours) as new, callers(ours, listen) as old:
        load = Load(new, told)
        await load.begin()
        for number in range(20):
            spender = SPENDERS[number % len(SPENDERS)]
            first, second = (old, new) if number % 2 else (new, old)
            once = await first.ledger.Debit(debit(spender, f"mixed-{number}"))
            again = await second.ledger.Debit(debit(spender, f"mixed-{number}"))
            assert (once.replayed, again.replayed) == (False, True)
            assert once.transaction.id == again.transaction.id
        for tenant, caller, ingress in (("of_old", old, old), ("of_new", new, old), ("of_both", old, new)):
            bodies = await paid(caller, tenant)
            for body in bodies:
                await post(ours, ingress.ingress, body)
        await load.end()
        await eventually(lambda: credited(new, ("of_old", "of_new", "of_both")), seconds=60)
        assert await balance(old, "of_new") == PRO_CREDITS
    for job in ("reconcile", "audit_integrity", "cleanup"):
        await run_job(ours, job, f"mixed-{job}")
    assert await verified(ours) == []
    assert rows(ours, "SELECT * FROM billing_integrity_reports") == []


async def credited(clients: Clients, tenants: tuple[str, ...]) -> bool:
    return all([await balance(clients, tenant) == PRO_CREDITS for tenant in tenants])


async def alone(suite: RunningSuite, told: Told) -> None:
    """After the rollback: what the newer release promised is kept, and what is new works."""
    async with clients_of(suite) as clients:
        for (tenant, key), (_, transaction) in list(told.debits.items())[:50]:
            again = await clients.ledger.Debit(debit(tenant, key))
            assert (again.replayed, again.transaction.id) == (True, transaction)
        for body in await paid(clients, "after"):
            await post(suite, clients.ingress, body)
        await eventually(lambda: credited(clients, ("after",)), seconds=60)
        await eventually(lambda: packs_paid(clients, told), seconds=60)
        page = await clients.ledger.ListTransactions(pb.ListTransactionsRequest(tenant_id="after"))
        assert [each.amount for each in page.transactions][-1:] == [PRO_CREDITS]
    for job in ("settle_expired", "reconcile", "audit_integrity", "sync_provider"):
        await run_job(suite, job, f"alone-{job}")
    assert await verified(suite) == []
    assert rows(suite, "SELECT * FROM billing_integrity_reports WHERE resolved_at IS NULL") == []


async def packs_paid(clients: Clients, told: Told) -> bool:
    return all([await balance(clients, tenant) == PACK_CREDITS for tenant in told.packs])
