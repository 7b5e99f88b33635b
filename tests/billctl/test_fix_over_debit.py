"""Runbook 7 as a command: one refund for each debit above its cost, once, however often it is asked for."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from billing.ledger.v1 import ledger_pb2

from tests.billctl.conftest import Books
from tests.billctl.fixing import ORDER, Fixer, bought
from tests.journeys.test_kill import clients_of
from tests.suite.running import HOUSE, RunningSuite

# What it costs in the catalogue, and what was taken.
COST, CHARGED = 15, 19
DEBITS = 250
WINDOW = (
    "--action",
    "media.generate",
    "--until",
    f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%MZ}",
)


@pytest.fixture(scope="module")
def fixer(suite: RunningSuite, books: Books) -> Fixer:
    return Fixer(suite, books)


async def debited(fixer: Fixer, tenant: str, *debits: ledger_pb2.DebitRequest) -> None:
    async with clients_of(fixer.suite) as clients:
        items = [ledger_pb2.BatchDebitItem(debit=debit) for debit in debits]
        answer = await clients.ledger.BatchDebit(ledger_pb2.BatchDebitRequest(items=items))
    assert all(each.HasField("debit") for each in answer.results)


def debit(tenant: str, key: str, credits: int, **metadata: str) -> ledger_pb2.DebitRequest:
    return ledger_pb2.DebitRequest(
        tenant_id=tenant, idempotency_key=key, credits=credits, reason="media.generate", metadata=metadata
    )


def refunds(fixer: Fixer, *tenants: str) -> list[tuple[str, int, int]]:
    """(tenant, refunds, credits)."""
    return [
        (row["tenant_id"], row["n"], row["credits"])
        for row in fixer.books.rows(
            "SELECT tenant_id, COUNT(*) AS n, SUM(amount)::int AS credits FROM credit_transactions"
            " WHERE kind = 'refund' AND tenant_id = ANY(%s) GROUP BY tenant_id ORDER BY tenant_id",
            list(tenants),
        )
    ]


async def test_what_was_taken_too_much_is_given_back_debit_by_debit_and_goes_on_after_a_refusal(
    fixer: Fixer, tenant: str
) -> None:
    first, frozen = f"{tenant}_1", f"{tenant}_2"
    since = ("--since", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}")
    for each in (first, frozen):
        await bought(fixer, each)
        await debited(fixer, each, *(debit(each, f"too-dear-{n}", CHARGED) for n in range(DEBITS)))
    right = [
        debit(first, "right", COST),
        debit(first, "three", 3 * COST, quantity="3"),
        debit(first, "cheap", 1),
    ]
    await debited(fixer, first, *right)
    fixer.by_hand("UPDATE ledger.tenant_credits SET state = 'frozen' WHERE tenant_id = %s", frozen)
    words = ("over-debit", *WINDOW, *since)
    over = CHARGED - COST

    looked = await asyncio.to_thread(fixer.looked, *words, exit=3)
    partly = await asyncio.to_thread(fixer.applied, *words, ticket=f"O-{tenant}", exit=4)
    assert refunds(fixer, first, frozen) == [(first, DEBITS, over * DEBITS)]
    fixer.by_hand("UPDATE ledger.tenant_credits SET state = 'active' WHERE tenant_id = %s", frozen)
    await asyncio.to_thread(fixer.applied_twice, *words, ticket=f"O-{tenant}")

    [totals] = looked["facts"][f"against {COST} for each"]
    assert (totals["debits"], totals["owed_debits"]) == (2 * DEBITS + 3, 2 * DEBITS)
    assert totals["owed"] == 2 * over * DEBITS
    assert f"{DEBITS:,} of {2 * DEBITS:,} debits" in partly["applied"][0]["result"]
    assert "ACCOUNT_FROZEN" in partly["applied"][0]["result"]
    assert refunds(fixer, first, frozen) == [(each, DEBITS, over * DEBITS) for each in (first, frozen)]
    assert len(fixer.audited(f"O-{tenant}", "refund_overdebit")) == 2 * DEBITS


async def test_a_published_cost_that_is_wrong_itself_is_named_beside_the_catalogue(
    fixer: Fixer, tenant: str
) -> None:
    since = ("--since", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", "--tenant", tenant)
    await bought(fixer, tenant)
    await debited(fixer, tenant, debit(tenant, "as-published", COST))

    well = await asyncio.to_thread(fixer.looked, "over-debit", *WINDOW, *since, exit=0)
    cheaper = await asyncio.to_thread(fixer.looked, "over-debit", *WINDOW, *since, "--cost", "4", exit=3)
    dearer = await asyncio.to_thread(fixer.typed, "over-debit", *WINDOW, *since, "--cost", "16")

    assert (well["verdict"], well["plan"]) == ("ok", [])
    assert "give back 11 credits" in cheaper["plan"][0]["does"]
    assert "catalog.yaml" in cheaper["next"][0]
    assert dearer.exit_code == 1
    assert "above what was charged" in dearer.stderr


async def test_two_people_at_once_give_back_the_difference_once(fixer: Fixer, tenant: str) -> None:
    since = ("--since", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", "--tenant", tenant)
    await bought(fixer, tenant)
    await debited(fixer, tenant, *(debit(tenant, f"dear-{n}", CHARGED) for n in range(DEBITS)))

    environment = {**os.environ, "BILLING_DATA_DIR": str(fixer.suite.data_dir)}
    both = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "billctl", "fix", "over-debit", *WINDOW, *since, *ORDER),
            *("--ticket", ticket),
            cwd=HOUSE,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for ticket in (f"P-{tenant}", f"Q-{tenant}")
    ]
    ends = [await each.wait() for each in both]

    assert ends == [0, 0], "what a colleague gave back is done as well"
    assert refunds(fixer, tenant) == [(tenant, DEBITS, (CHARGED - COST) * DEBITS)]


async def test_a_quantity_that_nobody_can_read_is_not_taken_for_one(fixer: Fixer, tenant: str) -> None:
    since = ("--since", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", "--tenant", tenant)
    await bought(fixer, tenant)
    odd = ["2.5", "0", "three", "", "-1", "9999999999"]
    await debited(fixer, tenant, *(debit(tenant, f"odd-{each}", 3 * COST, quantity=each) for each in odd))

    looked = await asyncio.to_thread(fixer.looked, "over-debit", *WINDOW, *since, exit=0)

    assert looked["plan"] == []
    assert any(step.startswith("6 debits and captures do not say") for step in looked["next"])


async def test_a_cost_that_changed_within_the_window_is_for_people_to_say(fixer: Fixer, tenant: str) -> None:
    began = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    since = ("--since", began, "--tenant", tenant)
    await bought(fixer, tenant)
    await debited(fixer, tenant, debit(tenant, "before-the-change", CHARGED))
    fixer.by_hand(
        "INSERT INTO subscriptions.catalog_versions (id, version, content, actor, created_at)"
        " SELECT 'cat_00' || md5(%s), 'older',"
        " jsonb_set(content, '{credit_costs,media.generate,credits}', '19'), 'asha',"
        " now() - interval '1 year' FROM subscriptions.catalog_versions LIMIT 1",
        tenant,
    )
    # The one that followed it is of this moment.
    fixer.by_hand("UPDATE subscriptions.catalog_versions SET created_at = now() WHERE version <> 'older'")
    try:
        refused = await asyncio.to_thread(fixer.typed, "over-debit", *WINDOW, *since)
        told = await asyncio.to_thread(
            fixer.looked, "over-debit", *WINDOW, *since, "--cost", str(COST), exit=3
        )
    finally:
        fixer.by_hand("DELETE FROM subscriptions.catalog_versions WHERE version = 'older'")

    assert refused.exit_code == 1
    assert "was published at 19 while the window ran and is at 15 now" in refused.stderr
    assert [row["credits"] for row in told["facts"]["catalogues while the window ran"]] == [19, 15]


@pytest.mark.parametrize(
    ("since", "complaint"),
    [("2026-11-20T10:00", "names no zone"), ("yesterday", "is no moment"), ("2999-01-01T00:00Z", "before")],
    ids=["no-zone", "no-moment", "backwards"],
)
def test_a_window_that_makes_no_sense_is_refused(fixer: Fixer, since: str, complaint: str) -> None:
    refused = fixer.typed("over-debit", *WINDOW, "--since", since, *ORDER, "--ticket", "O-never")

    assert refused.exit_code == 2
    assert complaint in refused.stderr
