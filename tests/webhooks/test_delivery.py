"""From the inbox to subscriptions: once in effect, in order while nothing fails, blocked by nothing."""

import asyncio
import json
from typing import Any

import pytest
from billing.subscriptions.v1 import payment_events_pb2 as pb

from services.webhooks.rules.delivery import Claimed
from shared.errors import FailedPrecondition, InvalidArgument, Unavailable
from tests.webhooks.conftest import Start
from tests.webhooks.harness import (
    SAMPLES,
    Running,
    Subscriptions,
    charged,
    eventually,
    neighbour,
    room_settings,
    sample,
)

LETTERS = "SELECT * FROM webhook_dead_letter_queue ORDER BY created_at"


async def test_every_sample_reaches_subscriptions_or_the_dead_letters(room: Running) -> None:
    for each in SAMPLES:
        await room.http.post(
            f"{room.url}/webhooks/razorpay",
            content=sample(each["file"].removeprefix("razorpay/")),
            headers=each["headers"],
        )

    await room.settled(len(SAMPLES))
    well_formed = [each for each in SAMPLES if each["well_formed"]]
    assert sorted(room.subscriptions.types) == sorted(each["event"] for each in well_formed)
    assert sorted(row["reason"] for row in await room.rows(LETTERS)) == [
        "body_not_json",
        "body_not_object",
        "body_not_utf8",
    ]


async def test_an_event_arrives_whole(room: Running) -> None:
    await room.post(sample("subscription.charged.json"), x_razorpay_event_id="hfY5BCyTmyKzkR")

    [row] = await room.settled(1)
    [request] = room.subscriptions.requests
    event = request.event
    assert request.idempotency_key == f"event:razorpay:default:test:{row['body_sha256']}"
    assert (event.account_id, event.mode) == ("acc_clhYSuNtIaG79b", "test")
    assert (event.event_id, event.event_type) == ("hfY5BCyTmyKzkR", "subscription.charged")
    assert event.received_at.ToMicroseconds() == int(row["received_at"].timestamp() * 1_000_000)
    assert event.occurred_at.seconds == 1791957289
    assert (event.payment.id, event.payment.amount, event.payment.captured) == (
        "pay_jWoKp0BC8gbNPg",
        235882,
        True,
    )
    assert (event.subscription.paid_count, event.subscription.current_end.seconds) == (1, 1794594600)
    assert dict(event.subscription.notes) == {
        "tenant_id": "tn_01JA7ZK3Q8",
        "plan_code": "pro",
        "cycle": "monthly",
    }
    assert not event.HasField("order")
    assert not event.subscription.HasField("ended_at")
    assert (row["outcome"], row["outcome_reason"], row["tenant_id"]) == (
        "applied",
        "recorded",
        "tn_01JA7ZK3Q8",
    )
    assert room.subscriptions.request_ids == [row["request_id"]]


@pytest.mark.parametrize("outcome", ["duplicate", "superseded", "ignored"])
async def test_the_outcome_is_written_down(room: Running, tenant: str, outcome: str) -> None:
    async def decide(_request: Any) -> pb.ApplyPaymentEventResponse:
        value = pb.PaymentEventOutcome.Value(f"PAYMENT_EVENT_OUTCOME_{outcome.upper()}")
        return pb.ApplyPaymentEventResponse(outcome=value, reason="because")

    room.subscriptions.before = decide

    await room.post(charged(tenant))

    [row] = await room.settled(1)
    assert (row["outcome"], row["outcome_reason"]) == (outcome, "because")
    assert row["processed_at"] is not None


async def test_poison_is_set_aside_while_neighbours_flow(room: Running, tenant: str) -> None:
    poison = {
        "money_not_integer": 235882.0,
        "money_negative": -1,
        "money_missing": None,
        "money_absurd": 10**30,
    }
    for reason, amount in poison.items():
        document = json.loads(charged(tenant, subscription=f"sub_{reason}"))
        document["payload"]["payment"]["entity"]["amount"] = amount
        await room.post(json.dumps(document).encode())
        await room.post(charged(f"{tenant}_{reason}"))

    rows = await room.settled(8)
    assert sorted(row["outcome_reason"] for row in rows if row["outcome"] == "dead") == sorted(poison)
    assert len(room.subscriptions.effects) == 4
    assert {row["last_error"] for row in await room.rows(LETTERS)} == {
        f"{reason}: payload.payment.entity.amount" for reason in poison
    }


async def test_a_definite_refusal_is_set_aside_at_once(room: Running, tenant: str) -> None:
    async def refuse(_request: Any) -> None:
        raise InvalidArgument("no", violations=[("event.payment.id", "is wrong: 4111111111111111")])

    room.subscriptions.before = refuse

    await room.post(charged(tenant))

    await room.settled(1)
    [letter] = await room.rows(LETTERS)
    assert (letter["reason"], letter["retry_count"], letter["tenant_id"]) == ("refused", 1, tenant)
    assert letter["last_error"] == "INVALID_ARGUMENT: event.payment.id"


async def test_after_its_last_attempt_an_event_is_set_aside(start: Start, tenant: str) -> None:
    room = await start(webhooks_delivery_attempts=3, webhooks_delivery_backoff_seconds=0.01)

    async def fail(_request: Any) -> None:
        raise FailedPrecondition("no", reason="NOT_NOW")

    room.subscriptions.before = fail

    await room.post(charged(tenant))

    [row] = await room.settled(1)
    [letter] = await room.rows(LETTERS)
    assert len(room.subscriptions.requests) == 3
    assert (row["outcome"], row["retry_count"]) == ("dead", 3)
    assert (letter["reason"], letter["last_error"]) == (
        "attempts_exhausted",
        "FAILED_PRECONDITION NOT_NOW",
    )


async def test_a_neighbour_that_was_away_gets_everything_once(
    start: Start, secrets: Any, database: Any, tenant: str
) -> None:
    subscriptions = Subscriptions()
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    async with neighbour(settings, subscriptions) as address:
        pass
    room = await start(address=address, subscriptions=subscriptions)
    for number in range(5):
        await room.post(charged(f"{tenant}_{number}"))

    async def failed() -> bool:
        return all(row["retry_count"] > 0 for row in await room.rows())

    await eventually(failed)
    async with neighbour(settings, subscriptions, listen=address):
        rows = await room.settled(5)

    assert {row["outcome"] for row in rows} <= {"applied", "duplicate"}
    assert len(subscriptions.effects) == 5


async def test_a_lost_answer_has_one_effect(start: Start, tenant: str) -> None:
    room = await start()
    answers = 0

    async def apply_then_break(request: pb.ApplyPaymentEventRequest) -> None:
        nonlocal answers
        answers += 1
        if answers == 1:
            room.subscriptions.effects.append(request.idempotency_key)
            raise Unavailable("the answer is lost")

    room.subscriptions.before = apply_then_break

    await room.post(charged(tenant))

    [row] = await room.settled(1)
    assert (row["outcome"], answers) == ("duplicate", 2)
    assert len(room.subscriptions.effects) == 1


async def test_order_of_arrival_is_kept_within_a_subscription(room: Running, tenant: str) -> None:
    async def dawdle(_request: Any) -> None:
        await asyncio.sleep(0.02)

    room.subscriptions.before = dawdle
    for number in range(6):
        for subscription in ("one", "two"):
            await room.post(charged(tenant, subscription=f"sub_{subscription}", payment=f"pay_{number}"))

    await room.settled(12)
    for subscription in ("one", "two"):
        assert [
            request.event.payment.id
            for request in room.subscriptions.requests
            if request.event.subscription.id == f"sub_{subscription}"
        ] == [f"pay_{number}" for number in range(6)]


async def test_a_failure_blocks_nothing_behind_it(start: Start, tenant: str) -> None:
    room = await start(webhooks_delivery_backoff_seconds=60)

    async def fail_the_first(request: pb.ApplyPaymentEventRequest) -> None:
        if request.event.payment.id == "pay_first":
            raise Unavailable("later")

    room.subscriptions.before = fail_the_first

    for payment in ("pay_first", "pay_second", "pay_third"):
        await room.post(charged(tenant, payment=payment))

    rows = await room.settled(2)
    assert [row["processed"] for row in rows] == [False, True, True]


async def test_a_dead_workers_claim_is_taken_over_and_its_answer_refused(start: Start, tenant: str) -> None:
    room = await start(deliver=False, webhooks_delivery_lease_seconds=0.3, webhooks_delivery_call_seconds=0.2)
    await room.post(charged(tenant))
    [stale] = await room.room.courier.claim(10)

    assert await room.room.courier.claim(10) == []
    await asyncio.sleep(0.35)
    [fresh] = await room.room.courier.claim(10)
    late, current = await room.room.courier.deliver(stale), await room.room.courier.deliver(fresh)

    assert (stale.attempt, fresh.attempt, fresh.retry_count) == (1, 2, 1)
    assert (late, current) == ("lost", "duplicate")
    assert len(room.subscriptions.effects) == 1


async def test_a_body_that_kills_its_workers_becomes_a_dead_letter(start: Start, tenant: str) -> None:
    room = await start(
        deliver=False,
        webhooks_delivery_lease_seconds=0.01,
        webhooks_delivery_call_seconds=0.009,
        webhooks_delivery_attempts=3,
    )
    await room.post(charged(tenant))

    for _ in range(3):
        await room.room.courier.claim(1)
        await asyncio.sleep(0.02)
    [last] = await room.room.courier.claim(1)

    assert await room.room.courier.deliver(last) == "dead"
    [letter] = await room.rows(LETTERS)
    assert (letter["reason"], letter["last_error"]) == ("attempts_exhausted", "worker_died")


async def test_two_workers_never_hold_the_same_event(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    for number in range(30):
        await room.post(charged(f"{tenant}_{number}"))

    claims: list[list[Claimed]] = await asyncio.gather(*(room.room.courier.claim(10) for _ in range(6)))

    taken = [event.id for claim in claims for event in claim]
    assert len(taken) == len(set(taken)) == 30


async def test_a_restart_in_the_middle_gives_its_claims_back(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    hanging = asyncio.Event()

    async def hang(_request: Any) -> None:
        hanging.set()
        await asyncio.sleep(30)

    room.subscriptions.before = hang
    await room.post(charged(tenant))
    [event] = await room.room.courier.claim(1)
    attempt = asyncio.create_task(room.room.courier.deliver(event))
    await hanging.wait()

    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    room.subscriptions.before = None
    [again] = await room.room.courier.claim(1)

    assert again.retry_count == 0
    assert await room.room.courier.deliver(again) == "applied"


async def test_a_backlog_drains_while_new_deliveries_are_taken_in(start: Start, tenant: str) -> None:
    first = await start(deliver=False)
    await asyncio.gather(*(first.post(charged(f"{tenant}_{number}")) for number in range(150)))

    second = await start(subscriptions=first.subscriptions, address=first.settings.subscriptions_address)
    answer = await second.post(charged(f"{tenant}_late"))

    assert answer.status_code == 200
    await second.settled(151)
    assert len(first.subscriptions.effects) == 151
