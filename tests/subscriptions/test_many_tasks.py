"""A night on which every tenant is owed something: taking the next few looks at a few."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import event

from services.subscriptions.store import tasks
from shared.database import transaction
from tests.subscriptions.conftest import Room

MANY = 20_000


async def test_the_next_few_of_many_due_tasks_are_found_by_an_index(room: Room, tenant: str) -> None:
    now = room.clock()
    asked: list[tuple[Any, str, Any]] = []

    def listen(*told: Any) -> None:
        asked.append((told[0], told[2], told[3]))

    with psycopg.connect(room.admin_url) as db:
        db.execute("SET search_path = subscriptions")
        db.execute(
            "INSERT INTO billing_reconciliation_queue"
            " (id, tenant_id, task_type, counterpart, idempotency_key, payload, next_attempt_at)"
            " SELECT 'many_' || n, %s || n, 'grant_credits', 'ledger', 'grant', '{}', now() - interval '1 hour'"
            " FROM generate_series(1, %s) n",
            (tenant, MANY),
        )
        db.execute("ANALYZE billing_reconciliation_queue")
        db.commit()
        try:
            event.listen(room.engine.sync_engine, "before_cursor_execute", listen)
            async with transaction(room.engine) as own:
                await tasks.claim_tasks(own, now, limit=8)
                await tasks.list_abandoned(own, limit=8)
                ours = own.sync_connection  # the room works beside us
            plans = [
                "\n".join(line for (line,) in db.execute(f"EXPLAIN {statement}".encode(), values))
                for connection, statement, values in asked
                if connection is ours
            ]
        finally:
            event.remove(room.engine.sync_engine, "before_cursor_execute", listen)
            db.rollback()
            db.execute("DELETE FROM subscriptions.billing_reconciliation_queue WHERE id LIKE 'many_%'")
            db.commit()

    claiming, given_up = plans
    assert "using billing_reconciliation_queue_due" in claiming
    assert "Sort Key" not in claiming
    assert "billing_reconciliation_queue_abandoned" in given_up
