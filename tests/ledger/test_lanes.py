"""The write path under failure: every caller is told the truth, and nobody pays for a neighbour."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import psycopg
import pytest

from services.ledger import errors
from services.ledger.lanes import Lanes
from services.ledger.rules.batch import Decided
from services.ledger.rules.model import PERMANENT, Outcome
from services.ledger.rules.requests import Debit, Grant
from services.ledger.store import load, write
from shared.errors import Unavailable
from tests.conftest import Database


@pytest.fixture
async def lanes(database: Database) -> AsyncIterator[Lanes]:
    async with Lanes(
        database.url("ledger_rw"), count=1, waiting_max=300, waiting_per_tenant_max=200
    ) as lanes:
        yield lanes


def a_grant(tenant: str, credits: int = 100, reference: str = "pay_1") -> Grant:
    return Grant(
        tenant_id=tenant,
        idempotency_key=f"grant:{reference}",
        bucket=PERMANENT,
        credits=credits,
        expires_at=None,
        reference_id=reference,
        reason="credit_pack",
    )


def a_debit(tenant: str, key: str, credits: int = 1) -> Debit:
    return Debit(
        tenant_id=tenant, idempotency_key=key, credits=credits, min_credits=credits, reason="blog.publish"
    )


async def balance(database: Database, tenant: str) -> tuple[int, int]:
    """(the mirror, the sum of the lines)"""
    async with await psycopg.AsyncConnection.connect(database.url("billing_operator")) as db:
        cursor = await db.execute(
            "SELECT balance, (SELECT sum(d_posted) FROM credit_entries e WHERE e.tenant_id = c.tenant_id)"
            " FROM tenant_credits c WHERE tenant_id = %s",
            [tenant],
        )
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]


async def test_a_caller_that_goes_away_harms_nobody(lanes: Lanes, database: Database, tenant: str) -> None:
    await lanes.submit(a_grant(tenant))
    calls = [asyncio.create_task(lanes.submit(a_debit(tenant, f"k{number}"))) for number in range(40)]
    await asyncio.sleep(0)

    for call in calls[::2]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(each, Outcome) for each in results[1::2])
    mirror, lines = await balance(database, tenant)
    assert mirror == lines
    assert 60 <= mirror <= 80


async def test_an_operation_that_the_database_cannot_take_fails_alone(
    lanes: Lanes, database: Database, tenant: str
) -> None:
    await lanes.submit(a_grant(tenant))
    # PostgreSQL text cannot hold NUL, which the gate lets nobody send: here it stands for any poison.
    operations = [a_debit(tenant, "a"), a_debit(tenant, "poison\x00"), a_debit(tenant, "b")]

    results = await asyncio.gather(*(lanes.submit(each) for each in operations), return_exceptions=True)

    assert [type(each).__name__ for each in results] == ["Outcome", "DataError", "Outcome"]
    assert await balance(database, tenant) == (98, 98)


async def test_a_connection_that_dies_under_load_is_resolved_before_anybody_is_told(
    lanes: Lanes, database: Database, tenant: str
) -> None:
    await lanes.submit(a_grant(tenant, 1000))

    async def kill_backends() -> None:
        async with await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True) as admin:
            for _ in range(12):
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'ledger-lane-0' AND datname = current_database()"
                )
                await asyncio.sleep(0.05)

    async def spend(number: int) -> None:
        await asyncio.sleep(number * 0.004)
        answer = await lanes.submit(a_debit(tenant, f"k{number}"))
        assert isinstance(answer, Outcome)
        assert not answer.replayed

    await asyncio.gather(kill_backends(), *(spend(number) for number in range(150)))

    assert await balance(database, tenant) == (850, 850)


async def test_a_full_lane_refuses_before_doing_anything(
    lanes: Lanes, database: Database, tenant: str
) -> None:
    await lanes.submit(a_grant(tenant, 1000))

    results = await asyncio.gather(
        *(lanes.submit(a_debit(tenant, f"k{number}")) for number in range(260)), return_exceptions=True
    )

    full = [each for each in results if isinstance(each, errors.LaneFull)]
    assert full
    assert await balance(database, tenant) == (1000 - (260 - len(full)),) * 2


async def test_one_tenants_flood_leaves_room_in_each_batch_for_another(lanes: Lanes, tenant: str) -> None:
    other = f"{tenant}-other"
    await lanes.submit(a_grant(tenant, 1000))
    await lanes.submit(a_grant(other))
    flood = [asyncio.create_task(lanes.submit(a_debit(tenant, f"k{number}"))) for number in range(200)]
    await asyncio.sleep(0)

    await lanes.submit(a_debit(other, "mine"))
    finished_before = sum(task.done() for task in flood)
    await asyncio.gather(*flood)

    assert finished_before <= 200
    assert all(isinstance(task.result(), Outcome) for task in flood)


async def test_leaving_tells_those_who_wait_that_the_outcome_is_unknown(
    database: Database, tenant: str
) -> None:
    lanes = Lanes(database.url("ledger_rw"), count=1, waiting_max=10, waiting_per_tenant_max=10)
    waiting = asyncio.create_task(lanes.submit(a_grant(tenant)))  # no lane runs yet
    await asyncio.sleep(0)

    await lanes.__aexit__(None, None, None)

    with pytest.raises(Unavailable):
        await waiting


async def test_two_processes_fund_a_payment_once_whatever_the_key(
    lanes: Lanes, database: Database, tenant: str
) -> None:
    grants = [replace(a_grant(tenant), idempotency_key=f"grant:{number}") for number in range(8)]
    async with Lanes(
        database.url("ledger_rw"), count=1, waiting_max=300, waiting_per_tenant_max=200
    ) as others:
        results = await asyncio.gather(
            *(each.submit(grant) for grant in grants for each in (lanes, others)), return_exceptions=True
        )

    funded = [each for each in results if isinstance(each, Outcome)]
    assert len({each.transaction.id for each in funded}) == 1
    assert [each.replayed for each in funded].count(False) == 1
    refused = [each for each in results if not isinstance(each, Outcome)]
    assert {type(each) for each in refused} == {errors.DuplicateReference}
    assert await balance(database, tenant) == (100, 100)


async def test_a_session_that_the_server_ended_for_idling_is_replaced(
    lanes: Lanes, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lanes.submit(a_grant(tenant))
    write_now, failed = write.write, []

    async def write_late(connection: load.Connection, decided: Decided) -> None:
        if not failed:  # what the driver reports after this process was frozen inside a transaction
            failed.append(True)
            raise psycopg.errors.IdleInTransactionSessionTimeout
        await write_now(connection, decided)

    monkeypatch.setattr(write, "write", write_late)

    answer = await lanes.submit(a_debit(tenant, "k"))

    assert isinstance(answer, Outcome)
    assert failed
    assert await balance(database, tenant) == (99, 99)


async def test_lots_of_an_account_that_was_not_there_at_the_lock_are_nobodys_yet(
    lanes: Lanes, database: Database, tenant: str
) -> None:
    # As a lane sees it whose lock came just before another process opened the account.
    async with await psycopg.AsyncConnection.connect(database.url("ledger_rw")) as db:
        await db.execute(
            "INSERT INTO credit_buckets (tenant_id, lot, id, bucket, priority, granted, remaining, reference_id,"
            " grant_transaction_id, created_at) VALUES (%s, 1, 'lot', 'permanent', 20, 5, 5, 'r', 't', now())",
            [tenant],
        )

    with pytest.raises(errors.UnknownTenant):
        await lanes.submit(a_debit(tenant, "k"))
    async with await psycopg.AsyncConnection.connect(database.admin_url) as db:
        await db.execute("DELETE FROM ledger.credit_buckets WHERE tenant_id = %s", [tenant])
