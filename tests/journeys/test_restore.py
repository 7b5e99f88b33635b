"""A backup taken under load, the suite lost, given back elsewhere, and brought level with the provider."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from suite.backups.shelf import Backup, Shelf
from tests.faults.soaking import SECONDS
from tests.journeys import losing, shell
from tests.journeys.losing import Load, Told, balance, debit, pay, rows, run_job
from tests.journeys.test_hostile_deliveries import post
from tests.journeys.test_kill import Clients, clients_of
from tests.suite.running import HOUSE, RunningSuite
from tests.webhooks.harness import eventually

PAGE = HOUSE / "docs" / "backup.md"
SYNCS_MAX = 8
# What a worker had in hand at the moment of the backup waits for the end of its lease.
SETTINGS = {"WEBHOOKS_DELIVERY_LEASE_SECONDS": "4", "WEBHOOKS_DELIVERY_CALL_SECONDS": "3"}

pytestmark = pytest.mark.skipif(
    not (HOUSE / ".venv" / ".ok").exists(), reason="the page types .venv/bin, which make setup makes"
)


def blocks(heading: str) -> list[str]:
    """What a section of the page has typed into a shell."""
    [section] = [
        part for part in re.split(r"^## ", PAGE.read_text(), flags=re.M) if part.startswith(f"{heading}\n")
    ]
    return re.findall(r"^```sh\n(.*?)^```", section, flags=re.M | re.S)


@dataclass
class Drill:
    """Where everything lies."""

    folder: Path
    lost: RunningSuite
    restored: RunningSuite

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.folder / "shelf")

    def typed(self, heading: str, suite: RunningSuite) -> str:
        """The section, with this drill's folders in place of the page's."""
        script = "set -e\n" + "\n".join(blocks(heading))
        script = re.sub(r"billing-\d+T\d+Z\.dump", "*.dump", script)  # there is one
        for usual, here in (
            ("/var/backups/billing", self.shelf.folder),
            ("/srv/billing-restored", self.restored.data_dir),
            (".data/", f"{self.lost.data_dir}/"),
        ):
            script = script.replace(usual, str(here))
        told = shell.typed(suite, script)
        assert told.returncode == 0, f"{script}\n{told.stdout}\n{told.stderr}"
        return told.stdout


@pytest.fixture
def drill() -> Iterator[Drill]:
    folder = Path(tempfile.mkdtemp(prefix="billing-drill-"))
    folder.chmod(0o711)  # as root the server is `nobody`, who must get in
    (folder / "lost").mkdir(mode=0o711)
    # The provider is the same one: what was bought there does not go with our database.
    settings = {"SANDBOX_STATE": str(folder / "sandbox.journal"), **SETTINGS}
    made = Drill(
        folder, RunningSuite(folder / "lost", **settings), RunningSuite(folder / "restored", **settings)
    )
    try:
        yield made
    finally:
        for suite in (made.lost, made.restored):
            suite.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(400)  # two suites one after the other, on a machine that may be busy
async def test_what_was_acknowledged_before_the_backup_is_there_once_and_the_rest_comes_from_the_provider(
    drill: Drill,
) -> None:
    await live_through(drill, seconds=1.0)


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_the_same_with_more_to_lose(drill: Drill) -> None:
    await live_through(drill, seconds=min(SECONDS, 120.0))


async def live_through(drill: Drill, *, seconds: float) -> None:
    told = Told()
    drill.lost.start()
    async with clients_of(drill.lost) as clients:
        # Begun before the backup and paid after it; and one that was only begun after it.
        order = await losing.order_of(clients, "late_buyer")
        subscription = await losing.checkout_of(clients, "late_subscriber")
        await losing.provision(clients, "orphan")
        load = Load(clients, told)
        await load.begin()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(drill.typed, "Take one", drill.lost)
        await asyncio.sleep(seconds / 2)
        told.bodies += await pay(clients, f"orders/{order}/pay", deliver=True)
        told.bodies += await pay(clients, f"subscriptions/{subscription}/pay", deliver=True)
        orphan = await losing.checkout_of(clients, "orphan")
        told.bodies += await pay(clients, f"subscriptions/{orphan}/pay", deliver=True)
        await load.end()
        await eventually(lambda: funded(clients, told), seconds=60)
    drill.lost.stop()
    [made] = drill.shelf.backups()

    began = time.monotonic()
    said = await asyncio.to_thread(drill.typed, "Restore", drill.lost)
    assert "rights: as in a fresh database" in said
    drill.restored.clock.write_text("0")
    drill.restored.start()
    serving_seconds = time.monotonic() - began
    await check_restored(drill, made, told)
    syncs = await level_with_the_provider(drill.restored)
    level_seconds = time.monotonic() - began
    await check_level(drill, told)
    report(made, told, said, serving_seconds, level_seconds, syncs)


# The month of the free plan, where an hour turned meanwhile and `grant_due_credits` ran.
BESIDES = (0, 100)


async def funded(clients: Clients, told: Told) -> bool:
    """All that was paid is credited; so it is not for want of time that something is missing later."""
    wanted = dict.fromkeys((*told.packs, "late_buyer"), losing.PACK_CREDITS)
    wanted |= dict.fromkeys((*told.subscribed, "late_subscriber", "orphan"), losing.PRO_CREDITS)
    return all([await balance(clients, tenant) >= credits for tenant, credits in wanted.items()])


async def check_restored(drill: Drill, made: Backup, told: Told) -> None:
    """Before anything is brought level: the ledger is sound, and nothing that was promised by then is missing."""
    answer = json.loads(drill.typed("Before anybody is let in", drill.restored))
    assert answer["verifications"]
    assert all(each.get("verified") for each in answer["verifications"]), answer
    there = {
        (tenant, key): transaction
        for tenant, key, transaction in rows(
            drill.restored,
            "SELECT tenant_id, idempotency_key, id FROM credit_transactions WHERE kind = 'debit'"
            " AND tenant_id = ANY(%s)",
            list(losing.SPENDERS),
        )
    }
    promised = {debited: id for debited, (when, id) in told.debits.items() if when < made.manifest.taken_at}
    assert promised
    assert promised.items() <= there.items()
    assert there.items() <= {debited: id for debited, (_, id) in told.debits.items()}.items(), (
        "none of its own"
    )
    assert len(there) < len(told.debits), "nothing was lost, so this drill proves nothing"
    async with clients_of(drill.restored) as clients:
        for (tenant, key), transaction in list(promised.items())[:: max(1, len(promised) // 100)]:
            again = await clients.ledger.Debit(debit(tenant, key))
            assert (again.replayed, again.transaction.id) == (True, transaction)
        for (tenant, key), _ in list(told.debits.items() - {(k, told.debits[k]) for k in there})[:20]:
            first, second = [await clients.ledger.Debit(debit(tenant, key)) for _ in range(2)]
            assert (first.replayed, second.replayed) == (False, True)


async def level_with_the_provider(suite: RunningSuite) -> int:
    """How often it had to be asked until nothing differed."""
    for number in range(1, SYNCS_MAX + 1):
        synced = await run_job(suite, "sync_provider", f"drill-sync-{number}")
        await run_job(suite, "reconcile", f"drill-reconcile-{number}")
        answer = synced["subscriptions.SyncWithProvider"]
        if not int(answer.get("differences", 0)) and not int(answer.get("tasksQueued", 0)):
            return number
    raise AssertionError(f"after {SYNCS_MAX} rounds something still differs: {synced}")


async def check_level(drill: Drill, told: Told) -> None:
    suite = drill.restored
    begun = tenants(suite, "SELECT tenant_id FROM checkout_intents")
    ordered = tenants(
        suite, "SELECT tenant_id FROM credit_pack_purchases WHERE provider_order_id IS NOT NULL"
    )
    assert {"late_subscriber"} <= begun
    assert {"late_buyer"} <= ordered
    async with clients_of(suite) as clients:
        await eventually(lambda: nothing_is_owed(suite), seconds=60)
        # The provider's deliveries once more, all of them: what came by the lists does not come twice.
        for body in told.bodies:
            await post(suite, clients.ingress, body)
        await eventually(lambda: nothing_is_owed(suite), seconds=60)
        for tenant in ordered & {"late_buyer", *told.packs}:
            assert await balance(clients, tenant) - losing.PACK_CREDITS in BESIDES, tenant
        for tenant in begun & {"late_subscriber", *told.subscribed}:
            assert await balance(clients, tenant) == losing.PRO_CREDITS, tenant
    said = await asyncio.to_thread(drill.typed, "Until it is level with the provider", suite)
    assert said.count("RUN_OUTCOME_SUCCEEDED") == 3
    findings = rows(
        suite, "SELECT tenant_id, check_type FROM billing_integrity_reports WHERE resolved_at IS NULL"
    )
    assert ("orphan", "orphan_provider_sub") in findings
    assert {check for _, check in findings} <= {"orphan_provider_sub", "charge_without_subscription"}
    assert not {tenant for tenant, _ in findings} & begun


def tenants(suite: RunningSuite, query: str) -> set[str]:
    return {tenant for (tenant,) in rows(suite, query)}


async def nothing_is_owed(suite: RunningSuite) -> bool:
    owed = rows(suite, "SELECT count(*) FROM billing_reconciliation_queue WHERE completed_at IS NULL")
    waiting = rows(suite, "SELECT count(*) FROM webhook_events WHERE NOT processed")
    await asyncio.sleep(0.2)
    return owed == waiting == [(0,)]


def report(made: Backup, told: Told, said: str, serving: float, level: float, syncs: int) -> None:
    after = [when for when, _ in told.debits.values() if when > made.manifest.taken_at]
    newest: datetime = max(after)
    print(
        f"\nacknowledged debits: {len(told.debits)}, of these {len(after)} after the backup and lost with it"
        f" ({(newest - made.manifest.taken_at).total_seconds():.1f} s of work);"
        f" dump {made.manifest.seconds:.2f} s, {sum(made.manifest.rows.values())} rows;"
        f" restored and serving after {serving:.1f} s, level with the provider after {level:.1f} s and {syncs} rounds"
    )
    print(said.splitlines()[-1])
