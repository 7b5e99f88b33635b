"""Two ingress processes before the real rooms: one delivery has one effect, whoever claims what, whoever stands still."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from billing.ledger.v1 import ledger_pb2
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.faults import soaking
from tests.journeys.ingresses import Doors, told_of, two_doors
from tests.journeys.test_kill import PACK_CREDITS, Clients, clients_of
from tests.suite.running import RunningSuite
from tests.webhooks.harness import eventually

pytestmark = pytest.mark.xdist_group("suite")

SOON_SECONDS = 3.0  # on a busy machine; a provider waits five
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
async def house(running_suite: RunningSuite) -> AsyncIterator[tuple[Doors, Clients]]:
    async with two_doors(running_suite) as doors, clients_of(running_suite) as clients:
        yield doors, clients


async def an_order(clients: Clients, tenant: str) -> str:
    await clients.subscriptions.ProvisionTenant(
        pb.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
    )
    order = await clients.subscriptions.BuyCredits(
        pb.BuyCreditsRequest(tenant_id=tenant, idempotency_key="pack", pack_code="small")
    )
    return str(order.order_id)


async def a_paid_pack(clients: Clients, tenant: str) -> list[bytes]:
    return await told_of(clients, f"orders/{await an_order(clients, tenant)}/pay")


def the_one(bodies: list[bytes], event: str) -> bytes:
    [found] = [body for body in bodies if json.loads(body)["event"] == event]
    return found


async def funded_once(doors: Doors, tenant: str) -> bool:
    grants = await doors.grants(tenant)
    assert len(grants) <= 1
    return [amount for _, amount in grants] == [PACK_CREDITS]


async def test_a_hundred_identical_deliveries_at_once_are_one(
    house: tuple[Doors, Clients], tenant: str
) -> None:
    doors, clients = house
    body = the_one(await a_paid_pack(clients, tenant), "order.paid")

    statuses = await asyncio.gather(*(doors.send(body, number % 2) for number in range(100)))
    await eventually(lambda: funded_once(doors, tenant), seconds=PATIENCE_SECONDS)

    assert statuses == [200] * 100
    [answers] = [told for told in doors.accepted.values() if len(told) == 100]
    assert sorted(answers) == ["duplicate"] * 99 + ["stored"]
    [before] = await doors.rows([body])
    assert (before["outcome"], before["attempt"]) == ("applied", 1)

    # The header that names the event is not signed, so another name is no other event.
    for number in range(6):
        other_name = {"x-razorpay-event-id": f"evt_other_{number}"}
        assert await doors.send(body, number % 2, **other_name) == 200
    assert await doors.rows([body]) == [before]
    assert len(await doors.grants(tenant)) == 1


async def test_a_forged_event_id_suppresses_nothing(house: tuple[Doors, Clients], tenant: str) -> None:
    doors, clients = house
    victim, other = f"{tenant}_victim", f"{tenant}_other"
    real = the_one(await a_paid_pack(clients, victim), "order.paid")
    signed_too = the_one(await a_paid_pack(clients, other), "order.paid")
    name = {"x-razorpay-event-id": f"evt_{tenant}"}

    forged = {**name, "x-razorpay-signature": "0" * 64}
    assert await doors.send(real, 0, **forged) == 401
    assert await doors.send(real.replace(b"500", b"501"), 1, **forged) == 401
    assert await doors.send(signed_too, 0, **name) == 200
    assert await doors.rows([real]) == []
    assert await doors.send(real, 1, **name) == 200

    for buyer in (victim, other):
        await eventually(partial(funded_once, doors, buyer), seconds=PATIENCE_SECONDS)
    rows = await doors.rows([real, signed_too])
    assert {row["event_id"] for row in rows} == {name["x-razorpay-event-id"]}
    assert {row["outcome"] for row in rows} == {"applied"}


async def test_what_names_nobody_or_nothing_of_ours_is_decided_and_its_neighbours_are_funded(
    house: tuple[Doors, Clients], tenant: str
) -> None:
    doors, clients = house
    buyer = f"{tenant}_buyer"
    good = await a_paid_pack(clients, buyer)
    charge = the_one(await a_life(clients, tenant), "subscription.charged")
    strange = [
        changed(charge, "subscription", plan_id="plan_of_nobody"),
        changed(charge, "subscription", id="sub_of_nobody", notes={"tenant_id": "deleted"}),
        changed(charge, "subscription", id="sub_of_nobody", notes=[]),
        changed(charge, "payment", amount=2**62, currency="XTS", notes={"tenant_id": buyer}),
    ]

    for number, body in enumerate([body for pair in zip(strange, good * 2, strict=False) for body in pair]):
        assert await doors.send(body, number % 2) == 200
    for body in good:
        assert await doors.send(body, 0) == 200
    await eventually(partial(doors.decided, [*strange, *good]), seconds=PATIENCE_SECONDS)

    await eventually(partial(funded_once, doors, buyer), seconds=PATIENCE_SECONDS)
    assert {row["outcome"] for row in await doors.rows(good)} <= {"applied", "duplicate", "ignored"}
    for row in await doors.rows(strange):
        assert row["retry_count"] == 0 or row["outcome"] == "dead"
        assert row["outcome_reason"]


def changed(body: bytes, entity: str, **fields: Any) -> bytes:
    document = json.loads(body)
    document["payload"][entity]["entity"].update(fields)
    return json.dumps(document).encode()


async def test_a_subscriptions_room_that_stands_still_is_not_felt_at_the_door(
    house: tuple[Doors, Clients], running_suite: RunningSuite, tenant: str
) -> None:
    doors, clients = house
    buyers = [f"{tenant}_{number}" for number in range(12)]
    bodies = [body for buyer in buyers for body in await a_paid_pack(clients, buyer)]

    async with standing_still(running_suite, "subscriptions"):
        slowest = 0.0
        for number, body in enumerate(bodies):
            started = time.monotonic()
            assert await doors.send(body, number % 2) == 200
            slowest = max(slowest, time.monotonic() - started)
            await asyncio.sleep(0.05)
        undecided = [row for row in await doors.rows(bodies) if not row["processed"]]
    await eventually(lambda: doors.decided(bodies), seconds=PATIENCE_SECONDS)

    assert slowest < SOON_SECONDS
    assert len(undecided) == len(bodies)
    for buyer in buyers:
        await eventually(partial(funded_once, doors, buyer), seconds=PATIENCE_SECONDS)
    assert {row["outcome"] for row in await doors.rows(bodies)} <= {"applied", "duplicate", "ignored"}


@asynccontextmanager
async def standing_still(suite: RunningSuite, room: str) -> AsyncIterator[None]:
    pid = suite.pid(room)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


LIFE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("pay", {"method": "card"}),
    ("pause", {}),
    ("resume", {}),
    ("cancel", {}),
)


async def a_life(clients: Clients, tenant: str) -> list[bytes]:
    """A subscription's life and a pack that was bought and given back, as the provider tells of them."""
    order = await an_order(clients, tenant)
    begun = await clients.subscriptions.Checkout(
        pb.CheckoutRequest(
            tenant_id=tenant,
            idempotency_key="buy",
            plan_code="pro",
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
    )
    told = await told_of(clients, f"orders/{order}/pay")
    payment = json.loads(the_one(told, "order.paid"))["payload"]["payment"]["entity"]["id"]
    for act, details in LIFE:
        told += await told_of(clients, f"subscriptions/{begun.checkout.subscription_id}/{act}", **details)
    told += await told_of(clients, f"payments/{payment}/refund")
    return told


async def how_it_stands(doors: Doors, clients: Clients, tenant: str) -> dict[str, Any]:
    balance = (await clients.ledger.GetBalance(ledger_pb2.GetBalanceRequest(tenant_id=tenant))).balance
    current = await clients.subscriptions.GetCurrent(pb.GetCurrentRequest(tenant_id=tenant))
    booked = await doors.read(
        "SELECT kind, tx_status, amount, reason FROM credit_transactions WHERE tenant_id = %s"
        " ORDER BY kind, amount, reason",
        tenant,
    )
    owed = await doors.read(
        "SELECT count(*) AS open FROM billing_reconciliation_queue"
        " WHERE tenant_id = %s AND completed_at IS NULL",
        tenant,
    )
    return {
        "credits": {bucket.bucket: bucket.credits for bucket in balance.buckets if bucket.credits},
        "stands": (current.plan_code, current.status, current.cancel_at_period_end),
        "booked": booked,
        "owed": owed[0]["open"],
    }


async def told_badly(doors: Doors, bodies: list[bytes], rng: random.Random) -> None:
    """In any order, some several times, some dropped and sent again later, and all of it once more at the end."""
    shuffled = [body for body in bodies for _ in range(rng.choice([1, 1, 2, 3]))]
    rng.shuffle(shuffled)
    dropped = [body for body in bodies if rng.random() < 0.3]
    for body in [*(each for each in shuffled if each not in dropped), *dropped]:
        await doors.deliver(body, rng)
    await eventually(lambda: doors.decided(bodies), seconds=PATIENCE_SECONDS)
    ancient = list(bodies)
    rng.shuffle(ancient)
    for body in ancient:
        assert await doors.send(body, rng.randrange(2)) == 200


async def lives_end_alike(house: tuple[Doors, Clients], tenant: str, rng: random.Random, count: int) -> None:
    doors, clients = house
    model, others = f"{tenant}_model", [f"{tenant}_{number}" for number in range(count)]
    in_order = await a_life(clients, model)
    for body in in_order:
        await doors.deliver(body, rng)
        await eventually(partial(doors.decided, [body]), seconds=PATIENCE_SECONDS)
    lives = [await a_life(clients, each) for each in others]
    await asyncio.gather(*(told_badly(doors, bodies, rng) for bodies in lives))

    async def settled(each: str) -> bool:
        return bool((await how_it_stands(doors, clients, each))["owed"] == 0)

    for each in (model, *others):
        await eventually(partial(settled, each), seconds=PATIENCE_SECONDS)
    expected = await how_it_stands(doors, clients, model)
    assert expected["booked"], "nothing came of it, so this proves nothing"
    for each in others:
        assert await how_it_stands(doors, clients, each) == expected


async def test_lives_told_in_any_order_twice_late_and_again_end_alike(
    house: tuple[Doors, Clients], tenant: str
) -> None:
    await lives_end_alike(house, tenant, random.Random(soaking.seed(513)), 5)


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
async def test_lives_for_minutes(house: tuple[Doors, Clients], tenant: str) -> None:
    rng, ends_at, rounds = random.Random(soaking.any_seed()), time.monotonic() + soaking.SECONDS, 0
    while time.monotonic() < ends_at:
        rounds += 1
        await lives_end_alike(house, f"{tenant}_{rounds}", rng, 10)
    print(f"{rounds} rounds of 10 lives")
