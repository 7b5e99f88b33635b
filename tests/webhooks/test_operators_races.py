"""Operators at work beside each other and beside deliveries: nothing is lost, doubled or stuck, and all is written down."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from billing.webhooks.v1 import webhooks_admin_pb2 as pb

from services.webhooks.rules.operators import SELECTION_MAX
from services.webhooks.store import inbox
from shared.database import transaction
from shared.errors import FailedPrecondition, NotFound, Unavailable
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Running, charged, eventually, sample

WHO: dict[str, Any] = {"actor": "asha@example.com", "reason": "ticket 8841"}
AUDIT = "SELECT * FROM billing_audit_log WHERE room = 'webhooks' AND tenant_id = %s ORDER BY created_at"
MANY = """
    INSERT INTO webhook_events (id, provider, account_id, mode, event_type, tenant_id, body, body_sha256, request_id,
        received_at, processed, processed_at, outcome, outcome_reason, next_retry_at)
    SELECT 'evt_' || lpad(n::text, 8, '0'), 'razorpay', 'default', 'test', 'subscription.charged', %s, '{}',
        encode(sha256(n::text::bytea), 'hex'), 'req', now() - make_interval(secs => n), true, now(), 'applied', 'granted',
        NULL
    FROM generate_series(1, %s) AS n
"""


def replay(tenant: str, key: str) -> pb.ReplayEventsRequest:
    return pb.ReplayEventsRequest(tenant_id=tenant, **WHO, idempotency_key=key)


async def test_two_operators_who_replay_at_once_deliver_each_event_and_apply_none_twice(
    room: Running, tenant: str
) -> None:
    for number in range(10):
        await room.post(charged(tenant, payment=f"pay_{number}"))
    await room.settled(10)

    answers = await asyncio.gather(
        *(room.admin.ReplayEvents(replay(tenant, f"{tenant}{number}")) for number in range(6))
    )
    rows = await room.settled(10)

    assert all(answer.replayed_count + answer.in_attempt_count == 10 for answer in answers)
    assert sum(answer.replayed_count for answer in answers) >= 10
    assert {row["outcome"] for row in rows} == {"duplicate"}
    assert len(room.subscriptions.effects) == 10
    assert len(await room.rows(AUDIT, tenant)) == 6


async def test_one_wish_sent_many_times_at_once_is_one(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    await room.post(charged(tenant))

    answers = await asyncio.gather(*(room.admin.ReplayEvents(replay(tenant, tenant)) for _ in range(8)))

    assert {answer.replayed_count for answer in answers} == {1}
    [line] = await room.rows(AUDIT, tenant)
    assert line["metadata"]["before"]["events"].popitem()[1] == "pending after 0 failures"
    [row] = await room.rows()
    assert row["attempt"] == 1


async def test_an_event_in_the_middle_of_an_attempt_is_left_to_it(room: Running, tenant: str) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    async def wait(_request: Any) -> None:
        asked.set()
        await answered.wait()

    room.subscriptions.before = wait
    await room.post(charged(tenant))
    await asked.wait()
    answer = await room.admin.ReplayEvents(replay(tenant, tenant))
    answered.set()
    [row] = await room.settled(1)

    assert (answer.replayed_count, answer.in_attempt_count) == (0, 1)
    assert (row["outcome"], row["attempt"], len(room.subscriptions.requests)) == ("applied", 1, 1)


async def test_a_worker_that_comes_late_does_not_end_the_replay(start: Start, tenant: str) -> None:
    """Its answer is from before the replay, which was wanted for what was mended since."""
    room = await start(
        deliver=False, webhooks_delivery_lease_seconds=0.05, webhooks_delivery_call_seconds=0.04
    )
    await room.post(charged(tenant))
    [stale] = await room.room.courier.claim(1)
    await asyncio.sleep(0.1)

    assert (await room.admin.ReplayEvents(replay(tenant, tenant))).replayed_count == 1
    assert await room.room.courier.deliver(stale) == "lost"

    [row] = await room.rows()
    assert (row["processed"], row["retry_count"]) == (False, 0)
    async with transaction(room.room.engine) as db:
        [fresh] = await inbox.claim_events(db, limit=1, lease_seconds=10)
    assert fresh.attempt > stale.attempt


async def test_replays_take_their_turn_in_the_order_of_receipt(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    await room.db.execute(MANY, (tenant, 500))

    await room.admin.ReplayEvents(replay(tenant, tenant))

    rows = await room.rows("SELECT next_retry_at FROM webhook_events ORDER BY received_at, id")
    moments = [row["next_retry_at"] for row in rows]
    assert moments == sorted(moments)
    assert 2.0 <= (moments[-1] - moments[0]).total_seconds() <= 3.0


async def test_as_many_as_a_call_may_change_change_in_one_transaction(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    await room.db.execute(MANY, (tenant, SELECTION_MAX))

    answer = await room.admin.ReplayEvents(replay(tenant, tenant))

    assert answer.replayed_count == SELECTION_MAX
    [row] = await room.rows(
        "SELECT count(DISTINCT xmin::text) AS n, bool_and(NOT processed) AS due FROM webhook_events"
    )
    assert row == {"n": 1, "due": True}
    [line] = await room.rows(AUDIT, tenant)
    assert len(line["metadata"]["before"]["events"]) == SELECTION_MAX


async def test_one_more_is_refused_and_changes_nothing(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    await room.db.execute(MANY, (tenant, SELECTION_MAX + 1))

    with pytest.raises(FailedPrecondition) as refusal:
        await room.admin.ReplayEvents(replay(tenant, tenant))

    assert refusal.value.reason == "SELECTION_TOO_LARGE"
    [row] = await room.rows("SELECT bool_and(processed) AS done FROM webhook_events")
    assert row["done"]
    assert await room.rows(AUDIT, tenant) == []


async def test_what_has_no_body_any_more_is_left_and_told(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    await room.db.execute(MANY, (tenant, 5))
    await room.db.execute("UPDATE webhook_events SET body_removed_at = now() WHERE id <= 'evt_00000002'")

    answer = await room.admin.ReplayEvents(replay(tenant, tenant))

    assert (answer.replayed_count, answer.in_attempt_count, answer.body_removed_count) == (3, 0, 2)


async def dead_letters(start: Start, tenant: str, count: int) -> tuple[Running, list[str]]:
    """A room in which so many events were set aside, and the ids of their letters; what is due from now on waits."""
    room = await start(deliver=False, webhooks_delivery_attempts=1)

    async def fail(_request: Any) -> None:
        raise Unavailable("later")

    room.subscriptions.before = fail
    for number in range(count):
        await room.post(charged(tenant, payment=f"pay_{number}"))
    await room.room.courier.deliver_due(concurrency=8, seconds=20)
    listed = await room.admin.ListDeadLetters(pb.ListDeadLettersRequest(tenant_id=tenant, page_size=200))
    return room, [letter.id for letter in listed.dead_letters]


async def test_a_letter_is_requeued_or_discarded_by_one_of_two_who_want_it(start: Start, tenant: str) -> None:
    room, ids = await dead_letters(start, tenant, 24)

    async def take(call: Callable[..., Awaitable[Any]], request: Any, letter: str, who: str) -> str:
        wish = request(
            dead_letters=pb.DeadLetterIds(ids=[letter]),
            actor=who,
            reason="ticket 8841",
            idempotency_key=f"{letter}{who}",
        )
        try:
            await call(wish)
        except NotFound:
            return "lost"
        return "requeued" if request is pb.RequeueDeadLettersRequest else "discarded"

    outcomes = await asyncio.gather(
        *(
            take(call, request, letter, who)
            for letter in ids
            for call, request, who in (
                (room.admin.RequeueDeadLetters, pb.RequeueDeadLettersRequest, "asha"),
                (room.admin.DiscardDeadLetters, pb.DiscardDeadLettersRequest, "ravi"),
            )
        )
    )

    assert outcomes.count("lost") == 24
    [left] = await room.rows("SELECT count(*) AS n FROM webhook_dead_letter_queue")
    [pending] = await room.rows("SELECT count(*) AS n FROM webhook_events WHERE NOT processed")
    assert (left["n"], pending["n"]) == (0, outcomes.count("requeued"))
    assert len(await room.rows(AUDIT, tenant)) == 24


async def test_replays_requeues_and_discards_of_the_same_events_never_wait_for_each_other_for_ever(
    start: Start, tenant: str
) -> None:
    room, _ = await dead_letters(start, tenant, 40)

    for turn in range(6):
        by_tenant: dict[str, Any] = {"tenant_id": tenant, **WHO}
        key = f"{tenant}{turn}"
        await asyncio.gather(
            room.admin.ReplayEvents(pb.ReplayEventsRequest(**by_tenant, idempotency_key=f"{key}a")),
            room.admin.RequeueDeadLetters(
                pb.RequeueDeadLettersRequest(**by_tenant, idempotency_key=f"{key}b")
            ),
            room.admin.DiscardDeadLetters(
                pb.DiscardDeadLettersRequest(
                    set_aside_for="attempts_exhausted", **WHO, idempotency_key=f"{key}c"
                )
            ),
            room.admin.ReplayEvents(pb.ReplayEventsRequest(**by_tenant, idempotency_key=f"{key}d")),
            room.room.courier.deliver_due(concurrency=4, seconds=5),
        )

    await room.room.courier.deliver_due(concurrency=8, seconds=20)
    [stuck] = await room.rows(
        "SELECT count(*) AS n FROM webhook_dead_letter_queue AS letter JOIN webhook_events AS event"
        " ON event.id = webhook_event_id WHERE NOT event.processed"
    )
    assert stuck["n"] == 0


async def test_a_page_stays_what_it_was_while_new_events_arrive(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    await room.db.execute(MANY, (tenant, 30))
    before = [
        row["id"]
        for row in await room.rows("SELECT id FROM webhook_events ORDER BY received_at DESC, id DESC")
    ]

    seen, token = [], ""
    for page in range(6):
        request = pb.ListEventsRequest(tenant_id=tenant, page_size=5, page_token=token)
        answer = await room.admin.ListEvents(request)
        seen += [event.id for event in answer.events]
        token = answer.next_page_token
        await room.post(charged(tenant, payment=f"pay_{page}"))

    assert (seen, token) == (before, "")


async def test_an_unreadable_letter_comes_back_with_its_reason_as_often_as_it_is_requeued(
    room: Running,
) -> None:
    await room.post(sample("_invalid/truncated.bin"))
    await room.settled(1)

    for turn in range(3):
        [letter] = (await room.admin.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
        assert letter.reason == "body_not_json"
        await room.admin.RequeueDeadLetters(
            pb.RequeueDeadLettersRequest(
                dead_letters=pb.DeadLetterIds(ids=[letter.id]),
                **WHO,
                idempotency_key=f"again{turn}{letter.id}",
            )
        )

        async def dead_again(former: str = letter.id) -> bool:
            found = (await room.admin.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
            return bool(found) and found[0].id != former

        await eventually(dead_again)
