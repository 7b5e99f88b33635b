"""Nothing that one tenant has, or that a person does to it, stops a lane for the others."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest

from services.ledger import errors
from services.ledger.lanes import Lanes
from services.ledger.rules.batch import Decided
from services.ledger.rules.model import Noted, Outcome
from services.ledger.rules.requests import Freeze, PlaceHold, Unfreeze
from services.ledger.store import load, write
from shared.errors import Unavailable
from tests.conftest import Database
from tests.ledger.conftest import Travel
from tests.ledger.test_lanes import a_debit, a_grant, balance


@pytest.fixture
async def lanes(database: Database) -> AsyncIterator[Lanes]:
    async with Lanes(
        database.url("ledger_rw"), count=1, waiting_max=4000, waiting_per_tenant_max=2000
    ) as lanes:
        yield lanes


def a_hold(tenant: str, key: str) -> PlaceHold:
    return PlaceHold(
        tenant_id=tenant, idempotency_key=key, credits=1, ttl=timedelta(minutes=1), reason="ai.generate"
    )


async def test_a_frozen_account_with_more_due_holds_than_are_settled_at_once_can_be_unfrozen(
    lanes: Lanes, database: Database, tenant: str, travel: Travel
) -> None:
    count = load.DUE_HOLDS_MAX + 20
    await lanes.submit(a_grant(tenant, 1000))
    await lanes.submit_all([a_hold(tenant, f"h{number}") for number in range(count)])
    who = {"tenant_id": tenant, "actor": "asha", "reason": "a dispute"}
    await lanes.submit(Freeze(idempotency_key="freeze", **who))
    travel.forward(hours=1)

    async with asyncio.timeout(5):
        with pytest.raises(errors.AccountFrozen):
            await lanes.submit(a_debit(tenant, "frozen"))
        unfrozen = await lanes.submit(Unfreeze(idempotency_key="unfreeze", **who))
        after = await lanes.submit(a_debit(tenant, "after", 1000))

    assert isinstance(unfrozen, Noted)
    assert isinstance(after, Outcome)
    assert await balance(database, tenant) == (0, 0)


async def test_one_item_that_the_database_cannot_take_leaves_its_batch_the_other_answers(
    lanes: Lanes, tenant: str
) -> None:
    other = f"{tenant}-other"
    await lanes.submit(a_grant(tenant))
    await lanes.submit(a_grant(other))

    answers = await lanes.submit_all([a_debit(tenant, "poison\x00"), a_debit(other, "fine")])

    assert getattr(answers[0], "reason", None) == "INTERNAL"
    assert isinstance(answers[1], Outcome)


async def test_a_row_that_somebody_keeps_locked_costs_its_own_tenant_only(
    lanes: Lanes, database: Database, tenant: str
) -> None:
    other = f"{tenant}-other"
    await lanes.submit(a_grant(tenant))
    await lanes.submit(a_grant(other))
    async with await psycopg.AsyncConnection.connect(database.admin_url) as somebody:
        await somebody.execute("SELECT FROM ledger.tenant_credits WHERE tenant_id = %s FOR UPDATE", [tenant])
        first = [lanes.submit(a_debit(tenant, "a")), lanes.submit(a_debit(other, "a"))]
        locked, free = await asyncio.wait_for(asyncio.gather(*first, return_exceptions=True), 8)
        assert isinstance(locked, Unavailable)
        assert isinstance(free, Outcome)
        # Who was found locked is not waited for again, as long as he is.
        began = time.monotonic()
        second = [lanes.submit(a_debit(tenant, "b")), lanes.submit(a_debit(other, "b"))]
        locked, free = await asyncio.wait_for(asyncio.gather(*second, return_exceptions=True), 8)
        assert isinstance(locked, Unavailable)
        assert isinstance(free, Outcome)
        assert time.monotonic() - began < 3

    assert isinstance(await lanes.submit(a_debit(tenant, "a")), Outcome)
    assert await balance(database, tenant) == (99, 99)


@pytest.mark.parametrize(
    "state",
    [
        "08006",
        "25006",
        "25P03",
        "25P04",
        "40001",
        "40P01",
        "53100",
        "53200",
        "53300",
        "57014",
        "57P01",
        "58030",
    ],
)
async def test_what_passes_is_tried_again_and_nobody_notices(
    lanes: Lanes, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    await lanes.submit(a_grant(tenant))
    fail_once(monkeypatch, state)

    answer = await lanes.submit(a_debit(tenant, "k"))

    assert isinstance(answer, Outcome)
    assert not answer.replayed
    assert await balance(database, tenant) == (99, 99)


@pytest.mark.parametrize("state", ["54000", "XX001", "42501", "23514", "22003"])
async def test_what_one_operation_causes_costs_its_neighbours_nothing(
    lanes: Lanes, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    await lanes.submit(a_grant(tenant))
    fail_while(monkeypatch, state, "poison")

    calls = [lanes.submit(a_debit(tenant, key)) for key in ("a", "poison", "b")]
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)

    assert [isinstance(each, Outcome) for each in answers] == [True, False, True]
    assert await balance(database, tenant) == (98, 98)


async def test_a_disk_that_stays_full_is_told_as_unknown_and_the_lane_lives_on(
    lanes: Lanes, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lanes.submit(a_grant(tenant))
    with monkeypatch.context() as full:
        full.setattr("shared.backoff.delay", lambda *_, **__: timedelta())
        fail_while(full, "53100", "k")
        with pytest.raises(Unavailable):
            await asyncio.wait_for(lanes.submit(a_debit(tenant, "k")), 8)

    assert isinstance(await lanes.submit(a_debit(tenant, "k")), Outcome)
    assert await balance(database, tenant) == (99, 99)


def fail_once(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """The next batch meets this error before anything of it is committed."""
    write_now, failed = write.write, []

    async def failing(connection: load.Connection, decided: Decided) -> None:
        if not failed:
            failed.append(True)
            raise psycopg.errors.lookup(state)
        await write_now(connection, decided)

    monkeypatch.setattr(write, "write", failing)


def fail_while(monkeypatch: pytest.MonkeyPatch, state: str, key: str) -> None:
    """Every batch with this key meets this error."""
    write_now = write.write

    async def failing(connection: load.Connection, decided: Decided) -> None:
        if any(record.idempotency_key == key for record in decided.records):
            raise psycopg.errors.lookup(state)
        await write_now(connection, decided)

    monkeypatch.setattr(write, "write", failing)
