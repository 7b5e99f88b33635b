"""What fault tests found between operations that share a batch, without the faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest

from services.ledger.lanes import Lanes
from services.ledger.rules.model import PERMANENT, Outcome
from services.ledger.rules.requests import Authorize, Consume, Debit, Grant
from tests.conftest import Database
from tests.faults.ledgers import serving
from tests.faults.operations import COUNTED, entitlements


@pytest.fixture
async def lanes(database: Database, tenant: str) -> AsyncIterator[Lanes]:
    """One lane, and a tenant with credits and limits."""
    url = database.url("ledger_rw")
    async with serving(lanes_url=url, reads_url=url, lanes=1) as client:
        await client.funding.SetEntitlements(entitlements(tenant))
    async with Lanes(url, count=1, waiting_max=300, waiting_per_tenant_max=200) as lanes:
        await lanes.submit(a_grant(tenant))
        yield lanes


def a_grant(tenant: str) -> Grant:
    return Grant(
        tenant_id=tenant,
        idempotency_key="grant",
        bucket=PERMANENT,
        credits=100,
        expires_at=None,
        reference_id="pay_1",
        reason="credit_pack",
    )


def a_count(tenant: str, key: str, amount: int) -> Consume:
    return Consume(tenant_id=tenant, idempotency_key=key, limits=((COUNTED, amount),))


def an_authorization(tenant: str, key: str, amount: int) -> Authorize:
    return Authorize(
        tenant_id=tenant,
        idempotency_key=key,
        limits=((COUNTED, amount),),
        debit_credits=1,
        hold_credits=0,
        hold_ttl=timedelta(),
        reason="blog.publish",
    )


async def used(database: Database, tenant: str) -> int:
    async with await psycopg.AsyncConnection.connect(database.url("billing_operator")) as db:
        cursor = await db.execute(
            "SELECT used FROM tenant_usage WHERE tenant_id = %s AND limit_key = %s", [tenant, COUNTED]
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_usage_is_counted_in_the_order_in_which_it_was_decided(
    lanes: Lanes, database: Database, tenant: str
) -> None:
    """What moves no credits and what does may be decided at the same moment of a tenant's time."""
    for last in range(1, 5):
        await lanes.submit(a_count(tenant, f"before-{last}", 1))
        before = await used(database, tenant)
        asked = [
            an_authorization(tenant, f"{last}-{n}", n) if n % 2 else a_count(tenant, f"{last}-{n}", n)
            for n in range(last, 0, -1)
        ]

        await asyncio.gather(*(lanes.submit(each) for each in asked))

        assert await used(database, tenant) == before + sum(range(1, last + 1))


async def test_repeats_that_share_a_batch_have_their_lines_once(lanes: Lanes, tenant: str) -> None:
    debit = Debit(tenant_id=tenant, idempotency_key="debit", credits=5, min_credits=5, reason="blog.publish")
    first = await lanes.submit(debit)

    repeats = await asyncio.gather(*(lanes.submit(debit) for _ in range(8)))

    assert isinstance(first, Outcome)
    for repeat in repeats:
        assert isinstance(repeat, Outcome)
        assert (repeat.transaction, repeat.entries) == (first.transaction, first.entries)
