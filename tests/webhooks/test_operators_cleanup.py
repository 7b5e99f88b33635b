"""What the room forgets of its own in the schema that all rooms share, and what it leaves to its neighbours."""

import asyncio
from typing import Any

import psycopg
from billing.webhooks.v1 import webhooks_maintenance_pb2 as pb

from services.webhooks.actions import watch
from tests.webhooks.conftest import Start

STAGED = """
    INSERT INTO billing_signature_failures (id, room, endpoint, created_at)
    SELECT room || days || '_' || n, room, 'webhook', now() - make_interval(days => days)
    FROM unnest(ARRAY['webhooks', 'subscriptions']) AS room, unnest(ARRAY[10, 89, 91, 400]) AS days,
        generate_series(1, 3) AS n;
"""
BUCKETS = """
    DELETE FROM rate_limit_buckets;
    INSERT INTO rate_limit_buckets (room, key, tat)
    SELECT room, hours || ' hours', now() - make_interval(hours => hours)
    FROM unnest(ARRAY['webhooks', 'ledger']) AS room, unnest(ARRAY[-1, 23, 25, 900]) AS hours;
"""
LEFT = "SELECT room, count(*) AS n FROM {} GROUP BY room ORDER BY room"


async def left(room: Any, table: str) -> dict[str, int]:
    return {row["room"]: row["n"] for row in await room.rows(LEFT.format(table))}


async def clean(room: Any, *, dry_run: bool = False) -> pb.CleanupResponse:
    answer: pb.CleanupResponse = await room.maintenance.Cleanup(
        pb.CleanupRequest(idempotency_key="job:cleanup", dry_run=dry_run)
    )
    return answer


async def test_refused_signatures_and_idle_limits_are_forgotten_and_counted(start: Start) -> None:
    room = await start(deliver=False)
    await room.db.execute(STAGED + BUCKETS)

    for dry_run in (True, False):
        answer = await clean(room, dry_run=dry_run)
        assert (answer.signature_failures_removed_count, answer.rate_limit_buckets_removed_count) == (6, 2)
        assert not answer.more_remains
    again = await clean(room)

    assert (again.signature_failures_removed_count, again.rate_limit_buckets_removed_count) == (0, 0)
    assert await left(room, "billing_signature_failures") == {"subscriptions": 12, "webhooks": 6}
    assert await left(room, "rate_limit_buckets") == {"ledger": 4, "webhooks": 2}


async def test_how_long_they_are_kept_is_a_setting(start: Start) -> None:
    room = await start(deliver=False, webhooks_signature_failure_retention_days=365)
    await room.db.execute(STAGED)

    assert (await clean(room)).signature_failures_removed_count == 3


async def test_after_a_flood_they_go_in_batches_and_two_runs_get_on(start: Start) -> None:
    room = await start(deliver=False)
    count = 2 * watch._BATCH + 77
    await room.db.execute(
        "INSERT INTO billing_signature_failures (id, room, endpoint, created_at)"
        " SELECT 'flood' || n, 'webhooks', 'webhook', now() - interval '100 days'"
        f" FROM generate_series(1, {count}) AS n"
    )

    answers = await asyncio.gather(clean(room), clean(room))

    assert sum(answer.signature_failures_removed_count for answer in answers) == count
    assert await left(room, "billing_signature_failures") == {}


async def test_no_room_forgets_what_another_one_recorded(start: Start, database: Any) -> None:
    """Whatever its statement says."""
    room = await start(deliver=False)
    await room.db.execute(STAGED + BUCKETS)

    async with await psycopg.AsyncConnection.connect(database.url("webhooks_rw"), autocommit=True) as ours:
        await ours.execute("DELETE FROM billing_signature_failures")
        await ours.execute("DELETE FROM rate_limit_buckets")

    assert await left(room, "billing_signature_failures") == {"subscriptions": 12}
    assert await left(room, "rate_limit_buckets") == {"ledger": 4}
