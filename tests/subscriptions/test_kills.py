"""A room killed between the provider's answer and its own: one object there, and the repeat ends where one call would."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb
from billing.subscriptions.v1 import subscriptions_admin_pb2_grpc as admin_grpc
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from billing.subscriptions.v1 import subscriptions_pb2_grpc as product_grpc
from pydantic import SecretStr

from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.sandbox.running import free_port
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import PRO_PAISE, Life, cycle_of
from tests.subscriptions.wire import a_process, holding_back_answers

Prepare = Callable[[Life], Awaitable[None]]


@dataclass(frozen=True)
class Killed:
    """A call, what the provider is asked for it, and what must be true once it was repeated."""

    service: str
    method: str
    path: str
    request: Callable[[Life], Any]
    prepare: Prepare
    then: Prepare


async def provisioned(life: Life) -> None:
    await life.room.provision(life.tenant)


async def on_starter(life: Life) -> None:
    await life.subscribe("starter")


async def on_pro(life: Life) -> None:
    await life.subscribe("pro")


def made(life: Life, status: str) -> list[str]:
    return [each for each, at_provider in life.at_provider().items() if at_provider == status]


async def one_purchase(life: Life) -> None:
    [subscription_id] = made(life, "created")
    await life.act(subscription_id, "pay", method="card")
    await life.assert_stands("pro")
    assert await life.credits() == 15_000


async def one_upgrade(life: Life) -> None:
    [subscription_id] = made(life, "created")
    await life.act(subscription_id, "pay", method="card")
    await life.reconcile()
    await life.hear()
    await life.assert_stands("pro")
    assert life.living() == [subscription_id]
    [given_back] = life.refunds()
    assert given_back["kind"] == "proration"
    taken = sum(each["credits"] for each in life.revocations())
    assert await life.credits() == 3_000 + 15_000 - taken


async def one_order(life: Life) -> None:
    [purchase] = life.room.rows("SELECT * FROM credit_pack_purchases WHERE tenant_id = %s", life.tenant)
    [order] = life.room.sandbox.sdk.order.all({"receipt": purchase["id"]})["items"]
    assert order["id"] == purchase["provider_order_id"]
    await life.tell(life.room.sandbox.act(f"orders/{order['id']}/pay", method="upi"))
    assert await life.credits() == 2_200


async def one_refund(life: Life) -> None:
    await life.hear("refund.created")
    await life.hear("refund.processed")
    [payment] = life.payments()
    [refund] = life.room.sandbox.sdk.payment.fetch_multiple_refund(payment["id"], {})["items"]
    [ours] = life.refunds()
    assert (ours["provider_refund_id"], ours["amount_paise"]) == (refund["id"], PRO_PAISE // 2)
    assert ours["status"] == "processed"
    assert len(life.revocations()) == 1
    assert await life.credits() == 7_500


async def one_end(life: Life) -> None:
    assert life.living() == []
    await life.assert_stands("free", "canceled")
    assert await life.credits() == 15_000


async def one_pause(life: Life) -> None:
    assert list(life.at_provider().values()) == ["paused"]
    await life.assert_stands("pro", "paused")


CASES = [
    Killed(
        "product",
        "Checkout",
        r"/v1/subscriptions",
        lambda life: pb.CheckoutRequest(
            tenant_id=life.tenant, idempotency_key="once", plan_code="pro", cycle=cycle_of("monthly")
        ),
        provisioned,
        one_purchase,
    ),
    Killed(
        "product",
        "ChangePlan",
        r"/v1/subscriptions",
        lambda life: pb.ChangePlanRequest(
            tenant_id=life.tenant, idempotency_key="once", plan_code="pro", cycle=cycle_of("monthly")
        ),
        on_starter,
        one_upgrade,
    ),
    Killed(
        "product",
        "BuyCredits",
        r"/v1/orders",
        lambda life: pb.BuyCreditsRequest(tenant_id=life.tenant, idempotency_key="once", pack_code="medium"),
        provisioned,
        one_order,
    ),
    Killed(
        "operator",
        "RefundPayment",
        r"/v1/payments/\w+/refund",
        lambda life: admin_pb.RefundPaymentRequest(
            tenant_id=life.tenant,
            idempotency_key="once",
            actor="asha@example.com",
            reason="goodwill",
            payment_id=life.payments()[0]["id"],
            amount_paise=PRO_PAISE // 2,
        ),
        on_pro,
        one_refund,
    ),
    Killed(
        "product",
        "CancelSubscription",
        r"/v1/subscriptions/\w+/cancel",
        lambda life: pb.CancelSubscriptionRequest(
            tenant_id=life.tenant, idempotency_key="once", mode=pb.CANCEL_MODE_NOW, reason="too dear"
        ),
        on_pro,
        one_end,
    ),
    Killed(
        "product",
        "PauseSubscription",
        r"/v1/subscriptions/\w+/pause",
        lambda life: pb.PauseSubscriptionRequest(tenant_id=life.tenant, idempotency_key="once"),
        on_pro,
        one_pause,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
async def test_what_was_killed_between_two_answers_is_done_once(
    room: Room, database: Database, tenant: str, case: Killed
) -> None:
    life = Life(room, tenant)
    await case.prepare(life)
    request = case.request(life)
    port = free_port()
    secret = SECRETS["gateway_secret" if case.service == "product" else "operator_secret"]
    with holding_back_answers(room, case.path) as line, a_process(room, database, line, port) as process:
        async with open_channel(f"127.0.0.1:{port}", SecretStr(secret)) as channel:
            await asyncio.wait_for(channel.channel_ready(), 20)
            call = asyncio.ensure_future(getattr(stub(case, channel), case.method)(request))
            assert await asyncio.to_thread(line.held.wait, 15)
            os.kill(process.pid, signal.SIGKILL)
            await asyncio.gather(call, return_exceptions=True)

    free_what_the_dead_held(room, tenant)
    repeat = room.product if case.service == "product" else room.admin
    first = await getattr(repeat, case.method)(request)
    again = await getattr(repeat, case.method)(request)
    await room.reconcile()

    assert again.replayed
    assert without_replayed(first) == without_replayed(again)
    await case.then(life)
    assert life.open_tasks() == []


def stub(case: Killed, channel: Any) -> Any:
    if case.service == "product":
        return product_grpc.SubscriptionsServiceStub(channel)
    return admin_grpc.SubscriptionsAdminServiceStub(channel)


def without_replayed(answer: Any) -> Any:
    """What a repeat must answer as well."""
    told = type(answer)()
    told.CopyFrom(answer)
    told.ClearField("replayed")
    return told


def free_what_the_dead_held(room: Room, tenant: str) -> None:
    """Its leases, sooner than time would."""
    room.change("UPDATE checkout_intents SET locked_until = now() WHERE tenant_id = %s", tenant)
    room.change(
        "UPDATE billing_reconciliation_queue SET locked_until = now() WHERE tenant_id = %s AND completed_at IS NULL",
        tenant,
    )
