"""Lists and selections find their rows through indexes, with a hundred thousand events stored."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.webhooks.rules.operators import EventFilter, EventSelection, LetterSelection
from services.webhooks.rules.paging import Position
from services.webhooks.store import operators, signatures, upkeep
from shared import clock
from shared.database import create_engine, transaction

EVENTS = """
    INSERT INTO webhook_events (id, provider, account_id, mode, event_id, event_type, tenant_id, body, body_sha256,
        request_id, received_at, processed, processed_at, outcome, outcome_reason, next_retry_at)
    SELECT 'evt_' || lpad(n::text, 8, '0'), 'razorpay', 'default', 'test', 'event' || n,
        CASE n % 5 WHEN 0 THEN 'payment.captured' ELSE 'subscription.charged' END, 'tenant' || n % 5000, '{}',
        encode(sha256(n::text::bytea), 'hex'), 'req', now() - make_interval(secs => n * 60), n > 50,
        CASE WHEN n > 50 THEN now() END,
        CASE WHEN n <= 50 THEN NULL WHEN n % 2000 = 0 THEN 'dead' ELSE 'applied' END, 'granted',
        CASE WHEN n <= 50 THEN now() END
    FROM generate_series(1, 100000) AS n;
    INSERT INTO webhook_dead_letter_queue (id, webhook_event_id, tenant_id, reason, retry_count, created_at)
    SELECT 'dead_' || id, id, tenant_id, 'refused', 1, received_at FROM webhook_events WHERE outcome = 'dead';
    INSERT INTO billing_signature_failures (id, room, endpoint, tenant_id, created_at)
    SELECT 'sig_' || n, 'webhooks', 'webhook', NULL, now() - make_interval(secs => n * 30)
    FROM generate_series(1, 100000) AS n;
    ANALYZE webhook_events, webhook_dead_letter_queue, billing_signature_failures;
"""


@pytest.fixture(scope="module")
async def engine(database: Any) -> AsyncIterator[AsyncEngine]:
    """The room's sessions beside many rows, which are gone afterwards."""
    tables = "webhooks.webhook_events, webhooks.webhook_dead_letter_queue, ops.billing_signature_failures"
    async with await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True) as admin:
        await admin.execute(f"TRUNCATE {tables}")
        await admin.execute("SET search_path = webhooks, ops")
        await admin.execute(EVENTS)
        engine = create_engine(database.url("webhooks_rw"), application_name="test_plans")
        yield engine
        await engine.dispose()
        await admin.execute(f"TRUNCATE {tables}")


async def read_by_scan(engine: AsyncEngine, ask: Any) -> list[str]:
    """The tables that were read from end to end to answer, by the plan of every statement asked."""
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        asked.append((statement, parameters))

    async with transaction(engine) as db:
        event.listen(db.sync_connection, "before_cursor_execute", note)
        await ask(db)
        event.remove(db.sync_connection, "before_cursor_execute", note)
        plans = []
        for statement, parameters in asked:
            plan = await db.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            plans += [row[0] for row in plan]
    assert plans
    return [line.strip() for line in plans if "Seq Scan" in line]


NOW = clock.now()
LISTED = {
    "all": EventFilter(),
    "a tenant": EventFilter(tenant_id="tenant7"),
    "a type": EventFilter(event_type="payment.captured"),
    "an id": EventFilter(event_id="event777"),
    "pending": EventFilter(status="pending"),
    "processed": EventFilter(status="processed"),
    "dead": EventFilter(status="dead"),
    "a range": EventFilter(received_from=NOW - timedelta(hours=9), received_until=NOW - timedelta(hours=8)),
}


@pytest.mark.parametrize("wanted", LISTED.values(), ids=LISTED)
@pytest.mark.parametrize("before", [None, Position(NOW - timedelta(days=3), "evt_1")], ids=["first", "later"])
async def test_lists_of_events(engine: AsyncEngine, wanted: EventFilter, before: Position | None) -> None:
    async def ask(db: AsyncConnection) -> None:
        await operators.list_events(db, wanted, before=before, limit=51)

    assert await read_by_scan(engine, ask) == []


@pytest.mark.parametrize(
    "chosen",
    [
        EventSelection(id="evt_00000077"),
        EventSelection(tenant_id="tenant7"),
        EventSelection(received_from=NOW - timedelta(hours=50), received_until=NOW - timedelta(hours=47)),
    ],
    ids=["id", "tenant", "range"],
)
async def test_replays(engine: AsyncEngine, chosen: EventSelection) -> None:
    async def ask(db: AsyncConnection) -> None:
        found = await operators.lock_events(db, chosen, 10_001)
        await operators.count_events(db, chosen)
        assert found
        await operators.deliver_again(db, [event.id for event in found])

    assert await read_by_scan(engine, ask) == []


async def test_dead_letters_and_refused_signatures(engine: AsyncEngine) -> None:
    """The queue of dead letters is small by its nature: what counts are the events behind it."""

    async def ask(db: AsyncConnection) -> None:
        await operators.take_letters(db, LetterSelection(ids=["dead_evt_00002000"]), 10)
        await signatures.newest_failures(db, timedelta(hours=2), 20_000)
        await signatures.count_failures(db, timedelta(hours=1))
        await signatures.list_failures(
            db, tenant_id=None, endpoint="webhook", since_at=None, before=None, limit=50
        )
        await upkeep.last_received_at(db)

    assert [line for line in await read_by_scan(engine, ask) if "dead_letter" not in line] == []
