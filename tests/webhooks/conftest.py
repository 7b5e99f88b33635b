"""The room running on this worker's database, empty at the start of each test."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from tests.webhooks.harness import Running, Subscriptions, neighbour, room_settings, serving

Start = Callable[..., Awaitable[Running]]
OURS = "webhook_events, webhook_dead_letter_queue, webhook_admin_requests"


@pytest.fixture
async def db(database: Any) -> AsyncIterator[psycopg.AsyncConnection]:
    """The administrator's connection, to look and to stage."""
    async with await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True) as connection:
        await connection.execute("SET search_path = webhooks, ops")
        await connection.execute(f"TRUNCATE {OURS}, billing_signature_failures, rate_limit_buckets")
        yield connection


@pytest.fixture
async def start(database: Any, secrets: Any, db: psycopg.AsyncConnection) -> AsyncIterator[Start]:
    """Starts rooms with settings of the test's own; the first has its own neighbour."""
    async with AsyncExitStack() as stack:

        async def start_room(*, deliver: bool = True, **changes: Any) -> Running:
            subscriptions = changes.pop("subscriptions", None) or Subscriptions()
            url = database.url("webhooks_rw")
            address = changes.pop("address", None)
            if address is None:
                settings = room_settings(url, secrets, "127.0.0.1:1")
                address = await stack.enter_async_context(neighbour(settings, subscriptions))
            settings = room_settings(url, secrets, address, **changes)
            return await stack.enter_async_context(serving(settings, subscriptions, db, deliver=deliver))

        yield start_room


@pytest.fixture
async def room(start: Start) -> Running:
    """A room with default settings."""
    return await start()
