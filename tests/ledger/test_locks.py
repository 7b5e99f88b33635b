"""Two processes at one tenant: whatever they decide by is read behind the row lock that both have waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
import pytest
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types

from services.ledger.lanes import Lanes
from services.ledger.rules.model import Noted, Outcome
from services.ledger.rules.requests import Consume, Debit, Operation
from tests.conftest import Database
from tests.ledger.builders import a_grant
from tests.ledger.conftest import RunningLedger

WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'ledger-lane-%'
    AND wait_event_type = 'Lock'"""


@pytest.fixture
async def processes(database: Database) -> AsyncIterator[tuple[Lanes, Lanes]]:
    url = database.url("ledger_rw")
    settings = {"count": 1, "waiting_max": 100, "waiting_per_tenant_max": 100}
    async with Lanes(url, **settings) as one, Lanes(url, **settings) as other:
        yield one, other


@pytest.fixture
async def spender(ledger: RunningLedger, tenant: str) -> str:
    """A tenant with 100 credits and one post left."""
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    posts = types.Limit(key="posts", value=1, kind=types.LIMIT_KIND_HARD)
    blog = types.ServiceEntitlement(service_code="blog", enabled=True, limits=[posts])
    await ledger.funding.SetEntitlements(
        funding_pb.SetEntitlementsRequest(tenant_id=tenant, idempotency_key="e", version=1, services=[blog])
    )
    return tenant


async def at_once(
    database: Database, tenant: str, processes: Sequence[Lanes], operations: Sequence[Operation]
) -> list[Any]:
    """Each process gets its operation while the tenant's row is locked by somebody else, so that both wait for it."""
    admin = await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True)
    async with admin, await psycopg.AsyncConnection.connect(database.url("ledger_rw")) as holder:
        await holder.execute("SELECT 1 FROM tenant_credits WHERE tenant_id = %s FOR UPDATE", [tenant])
        calls = [
            asyncio.ensure_future(lanes.submit(operation))
            for lanes, operation in zip(processes, operations, strict=True)
        ]
        async with asyncio.timeout(5):
            while True:
                row = await (await admin.execute(WAITING)).fetchone()
                if row is not None and row[0] >= len(operations):
                    break
                await asyncio.sleep(0.01)
        await holder.rollback()
    return list(await asyncio.gather(*calls, return_exceptions=True))


def a_debit(tenant: str, key: str) -> Debit:
    return Debit(tenant_id=tenant, idempotency_key=key, credits=60, min_credits=1, reason="blog.publish")


async def balance(ledger: RunningLedger, tenant: str) -> int:
    reply = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))
    return reply.balance.available


async def test_the_second_debit_sees_what_the_first_one_left(
    ledger: RunningLedger, database: Database, processes: tuple[Lanes, Lanes], spender: str
) -> None:
    debits = [a_debit(spender, "one"), a_debit(spender, "other")]

    told = await at_once(database, spender, processes, debits)

    assert [type(each) for each in told] == [Outcome, Outcome], told
    assert sorted(each.transaction.amount for each in told) == [-60, -40]
    assert await balance(ledger, spender) == 0


async def test_the_second_call_with_a_key_is_told_what_the_first_one_did(
    ledger: RunningLedger, database: Database, processes: tuple[Lanes, Lanes], spender: str
) -> None:
    told = await at_once(database, spender, processes, [a_debit(spender, "k"), a_debit(spender, "k")])

    assert [type(each) for each in told] == [Outcome, Outcome], told
    assert told[0].transaction == told[1].transaction
    assert sorted(each.replayed for each in told) == [False, True]
    assert await balance(ledger, spender) == 40


async def test_the_second_of_two_cannot_have_the_last_post_again(
    ledger: RunningLedger, database: Database, processes: tuple[Lanes, Lanes], spender: str
) -> None:
    posts = [
        Consume(tenant_id=spender, idempotency_key=key, limits=(("blog.posts", 1),))
        for key in ("one", "other")
    ]

    told = await at_once(database, spender, processes, posts)
    answer = await ledger.service.CheckLimit(
        pb.CheckLimitRequest(tenant_id=spender, limit_key="blog.posts", requested=0)
    )

    assert [type(each) for each in told].count(Noted) == 1, told
    assert [getattr(each, "reason", "") for each in told].count("PLAN_LIMIT_REACHED") == 1
    assert answer.decision.used == 1
