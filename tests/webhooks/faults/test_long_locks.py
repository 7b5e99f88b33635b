"""Long transactions and locks of others on the inbox: deliveries are answered at once, and none waits for another's lock."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psycopg
import pytest

from tests.conftest import Database
from tests.webhooks.harness import Running, charged, eventually

# Far below what a provider waits, far above what taking in takes on a busy machine.
SOON_SECONDS = 3.0


@asynccontextmanager
async def long_transaction(
    database: Database, *statements: str, role: str = "webhooks_rw"
) -> AsyncIterator[psycopg.AsyncConnection]:
    """Somebody's session that did these things and does not end."""
    async with await psycopg.AsyncConnection.connect(database.url(role)) as session:
        for statement in statements:
            await session.execute(statement)
        yield session
        await session.rollback()


async def answered_soon(room: Running, body: bytes) -> httpx.Response:
    async with asyncio.timeout(SOON_SECONDS):
        answer = await room.post(body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM webhook_events",
        "LOCK TABLE webhook_events IN ACCESS SHARE MODE",
        "SELECT id FROM webhook_events FOR UPDATE",
    ],
)
async def test_a_long_transaction_stops_nothing(
    room: Running, tenant: str, database: Database, statement: str
) -> None:
    await answered_soon(room, charged(f"{tenant}_before"))
    await room.settled(1)

    async with long_transaction(database, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", statement):
        for number in range(20):
            await answered_soon(room, charged(f"{tenant}_{number}"))
        await room.settled(21, seconds=30)

    assert len(room.subscriptions.effects) == len(room.subscriptions.requests) == 21


async def test_events_locked_by_an_operators_replay_hold_up_nobody_else(
    room: Running, tenant: str, database: Database
) -> None:
    bodies = [charged(f"{tenant}_{number}") for number in range(10)]
    for body in bodies:
        await answered_soon(room, body)
    await room.settled(10)
    replay = (
        "SELECT id FROM webhook_events ORDER BY id FOR UPDATE",
        "UPDATE webhook_events SET processed = false, processed_at = NULL, outcome = NULL, outcome_reason = NULL,"
        " retry_count = 0, next_retry_at = clock_timestamp()",
    )

    async with long_transaction(database, *replay) as operator:
        again = await asyncio.gather(*(answered_soon(room, body) for body in bodies))
        assert [answer.json() for answer in again] == [{"status": "duplicate"}] * 10
        for number in range(10):
            # Of the same subscriptions as the events that are locked.
            later = charged(f"{tenant}_{number}", payment=f"pay_{tenant}_{number}_later")
            assert (await answered_soon(room, later)).json() == {"status": "stored"}
        await eventually(lambda: applied(room, 20), seconds=30)
        await operator.commit()
    await eventually(lambda: asked(room, 30), seconds=30)

    assert len(set(room.subscriptions.effects)) == len(room.subscriptions.effects) == 20


async def applied(room: Running, count: int) -> bool:
    return len(room.subscriptions.effects) == count


async def asked(room: Running, count: int) -> bool:
    return len(room.subscriptions.requests) == count


async def test_an_ingress_that_froze_while_it_stored_holds_up_its_own_delivery_only(
    room: Running, tenant: str, database: Database
) -> None:
    """Its transaction is open and its row unseen: whoever brings the same delivery has to wait for its end."""
    body = charged(tenant)
    insert = (
        "INSERT INTO webhook_events (id, provider, account_id, mode, body, body_sha256, request_id, received_at)"
        f" VALUES ('evt_{tenant}', 'razorpay', 'default', 'test', '{{}}',"
        f" '{hashlib.sha256(body).hexdigest()}', 'req', clock_timestamp())"
    )

    async with long_transaction(database, insert):
        started = time.monotonic()
        redelivery = asyncio.create_task(room.post(body))
        others: list[int] = []
        while time.monotonic() - started < 1.5 or not redelivery.done():
            number = len(others)
            both = await asyncio.gather(
                room.post(charged(f"{tenant}_{number}_a")), room.post(charged(f"{tenant}_{number}_b"))
            )
            others += [answer.status_code for answer in both]
        refused = await redelivery
    again = await answered_soon(room, body)

    assert set(others) == {200}
    assert refused.status_code == 503
    assert again.json() == {"status": "stored"}
    await room.settled(len(others) + 1, seconds=30)
    assert len(room.subscriptions.effects) == len(others) + 1


async def test_many_redeliveries_of_what_is_held_up_do_not_hold_up_the_rest(
    room: Running, tenant: str, database: Database
) -> None:
    held = [charged(f"{tenant}_held_{number}") for number in range(3)]
    inserts = [
        "INSERT INTO webhook_events (id, provider, account_id, mode, body, body_sha256, request_id, received_at)"
        f" VALUES ('evt_{tenant}_{number}', 'razorpay', 'default', 'test', '{{}}',"
        f" '{hashlib.sha256(body).hexdigest()}', 'req', clock_timestamp())"
        for number, body in enumerate(held)
    ]

    async with long_transaction(database, *inserts):
        mixed = [body for number in range(10) for body in (*held, charged(f"{tenant}_{number}"))]
        answers = await asyncio.gather(*(room.post(body) for body in mixed))

    statuses = [answer.status_code for answer in answers]
    good = statuses[3::4]
    assert good == [200] * 10
    assert set(statuses) == {200, 503}
    for body in held:
        assert (await answered_soon(room, body)).status_code == 200
