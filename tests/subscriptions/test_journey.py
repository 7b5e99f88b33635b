"""The main job of the room, against a real ledger and a real sandbox."""

import hashlib
import random

import pytest
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from shared.errors import FailedPrecondition, NotFound
from tests.subscriptions.conftest import Room

PRO_CREDITS, MEDIUM_CREDITS = 15_000, 2_200


async def test_a_new_tenant_is_on_free_with_its_limits_in_the_ledger(room: Room, tenant: str) -> None:
    provisioned = await room.provision(tenant)

    assert (provisioned.plan_code, provisioned.created) == ("free", True)
    assert provisioned.status == pb.SUBSCRIPTION_STATUS_ACTIVE
    current = await room.current(tenant)
    limits = {f"{u.service_code}.{u.limit.key}": u.limit.value for u in current.usage}
    assert (limits["blog.posts"], limits["platform.seats"], limits["platform.custom_roles"]) == (10, 2, 0)
    assert not current.credits.unavailable
    assert current.credits.available == 0


async def test_seven_deliveries_in_any_order_and_twice_grant_once(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    assert (checkout.total_paise, checkout.total_display) == (235_882, "₹2,358.82")
    deliveries = room.sandbox.act(f"subscriptions/{checkout.subscription_id}/pay", method="card")
    assert len(deliveries) == 7

    order = deliveries * 2
    random.Random(tenant).shuffle(order)
    for delivery in order:
        await room.deliver(delivery)

    assert await room.balance(tenant) == {"subscription": PRO_CREDITS, "permanent": 0}
    current = await room.current(tenant)
    assert (current.plan_code, current.status) == ("pro", pb.SUBSCRIPTION_STATUS_ACTIVE)
    assert not current.HasField("pending_change")
    assert current.entitlements_version == 2
    [grant] = room.rows("SELECT * FROM credit_grants WHERE tenant_id = %s", tenant)
    [row] = room.rows("SELECT * FROM subscriptions WHERE tenant_id = %s", tenant)
    assert (grant["expires_at"] - row["current_period_end"]).total_seconds() == 48 * 3600
    decided = room.rows(
        "SELECT outcome FROM processed_payment_events WHERE body_sha256 = ANY(%s)",
        [hashlib.sha256(delivery["body"]).hexdigest() for delivery in deliveries],
    )
    assert len(decided) == 7


async def test_a_bought_pack_becomes_permanent_credits_once(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    assert (order.total_paise, order.credits, order.total_display) == (166_000, MEDIUM_CREDITS, "₹1,660.00")

    deliveries = room.sandbox.act(f"orders/{order.order_id}/pay", method="upi")
    outcomes = [await room.deliver(delivery) for delivery in [*deliveries, *deliveries]]

    assert [o.reason for o in outcomes].count("granted") >= 1
    assert await room.balance(tenant) == {"subscription": 0, "permanent": MEDIUM_CREDITS}
    assert (await room.buy_credits(tenant)).order_id == order.order_id


async def test_a_repeated_checkout_resumes_and_another_content_is_refused(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    first = await room.checkout(tenant)

    again = await room.checkout(tenant)

    assert again.replayed
    assert again.checkout == first.checkout
    with pytest.raises(FailedPrecondition) as refused:
        await room.checkout(tenant, plan="business")
    assert refused.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert refused.value.metadata["field"] == "plan_code"


async def test_an_unknown_tenant_is_refused(room: Room, tenant: str) -> None:
    with pytest.raises(NotFound) as refused:
        await room.checkout(tenant)

    assert refused.value.reason == "UNKNOWN_TENANT"
