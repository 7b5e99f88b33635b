"""A backlog that is drained while more arrives: each event once, in its subscription's order, every sender answered."""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import replace
from typing import Any

import pytest
from billing.subscriptions.v1 import payment_events_pb2 as events_pb

from bench import world
from bench.handover import Handover
from bench.ingress import PLANS
from shared.errors import Unavailable
from tests.faults import soaking
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Running, charged

BACKLOG, BESIDE, SUBSCRIPTIONS = 240, 60, 12
FAILING_SHARE = 0.3
LONG_BACKLOG = 100_000


def key(body: bytes) -> str:
    return f"event:razorpay:default:test:{hashlib.sha256(body).hexdigest()}"


async def post_all(room: Running, bodies: list[bytes], seconds_between: float = 0.0) -> list[int]:
    """One after the other, so that the order of arrival is known."""
    answers = []
    for body in bodies:
        answers.append((await room.post(body)).status_code)
        await asyncio.sleep(seconds_between)
    return answers


def some_charges(dice: random.Random, tenant: str, numbers: range) -> list[tuple[str, bytes]]:
    found = []
    for number in numbers:
        subscription = f"sub_{tenant}_{dice.randrange(SUBSCRIPTIONS)}"
        body = charged(tenant, subscription=subscription, payment=f"pay_{tenant}_{number}")
        found.append((subscription, body))
    return found


async def test_a_backlog_is_drained_in_order_and_once_while_more_arrives(start: Start, tenant: str) -> None:
    dice = random.Random(soaking.seed(5107))
    events = some_charges(dice, tenant, range(BACKLOG + BESIDE))
    subscription_of = {key(body): subscription for subscription, body in events}
    bodies = [body for _, body in events]
    troubled = {f"sub_{tenant}_{number}" for number in range(0, SUBSCRIPTIONS, 2)}
    failed: set[str] = set()

    async def before(request: events_pb.ApplyPaymentEventRequest) -> Any:
        has_trouble = subscription_of[request.idempotency_key] in troubled
        if has_trouble and dice.random() < FAILING_SHARE and request.idempotency_key not in failed:
            failed.add(request.idempotency_key)
            raise Unavailable("not now")

    silent = await start(deliver=False)
    stored = await post_all(silent, bodies[:BACKLOG])
    waiting = await silent.rows("SELECT id FROM webhook_events WHERE NOT processed")
    room = await start()
    room.subscriptions.before = before
    beside = await post_all(room, bodies[BACKLOG:], 0.002)
    rows = await room.settled(len(bodies), seconds=60)

    assert set(stored + beside) == {200}
    assert len(waiting) == BACKLOG
    assert {row["outcome"] for row in rows} == {"applied"}
    assert len(failed) > 10
    effects = room.subscriptions.effects
    assert sorted(effects) == sorted(subscription_of)
    for subscription in set(subscription_of.values()) - troubled:
        arrived = [key(body) for whose, body in events if whose == subscription]
        assert [each for each in effects if subscription_of[each] == subscription] == arrived


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 1800)
def test_a_hundred_thousand_backlogged_beside_twenty_a_second() -> None:
    """The real rooms: what is drained in SOAK_SECONDS, how long senders wait meanwhile, and every balance at the end."""
    plan = replace(PLANS["full"], backlog=LONG_BACKLOG, drain_seconds=soaking.SECONDS, drains_all=False)
    with world.new() as here:
        here.wear_in()
        handover = Handover(here, plan, print, kind="renewals")
        ratios = handover.run()
    for rate in handover.rates.values():
        print(rate.as_json())
    missed = [ratio.as_json() for ratio in ratios if not ratio.met]
    assert not missed, f"load average {world.load_average()}"
