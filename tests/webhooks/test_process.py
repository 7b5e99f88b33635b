"""The room as a process of its own: started by its command, killed, restarted, stopped."""

import asyncio
import json
import os
import signal
import socket
from typing import Any

import httpx
import psycopg
import pytest

from tests.webhooks.harness import SECRET, Subscriptions, charged, eventually, neighbour, room_settings
from tests.webhooks.processes import Process, post, process

CANARY = "4111111111111111"


async def test_kill_9_in_the_middle_loses_and_repeats_nothing(
    database: Any, secrets: Any, db: psycopg.AsyncConnection, tenant: str
) -> None:
    subscriptions = Subscriptions()

    async def dawdle(_request: Any) -> None:
        await asyncio.sleep(0.01)

    subscriptions.before = dawdle
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    bodies = [charged(f"{tenant}_{number}") for number in range(150)]
    async with (
        neighbour(settings, subscriptions) as address,
        process(database, secrets, address) as room,
        httpx.AsyncClient(timeout=5) as http,
    ):
        await room.start()

        async def send(body: bytes) -> None:
            while await post(http, room.url, body) != 200:
                await asyncio.sleep(0.05)

        senders = [asyncio.create_task(send(body)) for body in bodies[:75]]
        await eventually(lambda: _applied(subscriptions, 10))
        await room.end(signal.SIGKILL)
        senders += [asyncio.create_task(send(body)) for body in bodies[75:]]
        await room.start()
        await asyncio.gather(*senders)
        await eventually(lambda: _applied(subscriptions, 150), seconds=15)
        await eventually(lambda: _all_processed(db), seconds=15)
        code = await room.end(signal.SIGTERM)

    assert code == 0
    assert len(subscriptions.effects) == len(set(subscriptions.effects)) == 150
    cursor = await db.execute("SELECT DISTINCT outcome FROM webhook_events")
    assert {row[0] for row in await cursor.fetchall()} <= {"applied", "duplicate"}


async def _applied(subscriptions: Subscriptions, count: int) -> bool:
    return len(subscriptions.effects) >= count


async def _all_processed(db: psycopg.AsyncConnection) -> bool:
    cursor = await db.execute("SELECT bool_and(processed) FROM webhook_events")
    row = await cursor.fetchone()
    return bool(row and row[0])


async def test_neither_logs_nor_rows_hold_secrets_or_cards(
    database: Any, secrets: Any, db: psycopg.AsyncConnection, tenant: str
) -> None:
    document = json.loads(charged(tenant))
    document["payload"]["payment"]["entity"]["card"]["number"] = CANARY
    body = json.dumps(document).encode()
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    async with (
        neighbour(settings, Subscriptions()) as address,
        process(database, secrets, address) as room,
        httpx.AsyncClient(timeout=5) as http,
    ):
        await room.start()
        statuses = [
            await post(http, room.url, body),
            await post(http, room.url, body[:-2]),
            await post(http, room.url, f"[{CANARY}]".encode()),
            await post(http, room.url, f'{{"event":"{CANARY}"}}'.encode()),
            await post(http, room.url, body, **{"X-Razorpay-Signature": CANARY}),
            await post(http, room.url, body, **{"User-Agent": "x" * 3000}),
        ]
        await eventually(lambda: _all_processed(db))
        code = await room.end(signal.SIGTERM)

    assert statuses == [200, 200, 200, 200, 401, 200]
    assert code == 0
    kept = room.log
    for table in ("webhook_events", "webhook_dead_letter_queue", "billing_signature_failures"):
        cursor = await db.execute(f"SELECT t::text FROM {table} t")
        kept += "".join(row[0] for row in await cursor.fetchall()).encode()
    assert b"serving" in room.log
    for secret in (CANARY, SECRET, secrets.room, secrets.operator, secrets.gateway):
        assert secret.encode() not in kept
        assert secret.encode().hex() not in kept.decode(errors="replace")


async def test_missing_settings_are_named_at_once_and_never_shown(secrets: Any) -> None:
    room = Process({"PATH": os.environ["PATH"], "ROOM_SECRET": "short", "RAZORPAY_MODE": "prod"}, "")

    await room.start(wait=False)
    code = await room.end(signal.SIGCONT)

    text = room.log.decode()
    assert code not in (0, None)
    for name in (
        "GATEWAY_SECRET",
        "OPERATOR_SECRET",
        "ROOM_SECRET",
        "WEBHOOKS_DATABASE_URL",
        "RAZORPAY_MODE",
    ):
        assert name in text
    assert "short" not in text.replace("shorter", "")
    assert "prod" not in text


@pytest.mark.parametrize("variable", ["WEBHOOKS_HTTP_LISTEN", "WEBHOOKS_LISTEN"])
async def test_a_taken_port_ends_the_start(
    database: Any, secrets: Any, db: psycopg.AsyncConnection, variable: str
) -> None:
    async with process(database, secrets, "127.0.0.1:1") as room:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            room.environment[variable] = f"127.0.0.1:{taken.getsockname()[1]}"
            await room.start(wait=False)
            assert room.running is not None
            code = await asyncio.wait_for(room.running.wait(), 15)

    assert code != 0
