"""Every event that reaches a decision leaves a row, whatever the decision."""

import asyncio
import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from billing.subscriptions.v1 import payment_events_pb2 as pb
from billing.subscriptions.v1 import subscriptions_pb2
from pydantic import SecretStr

from shared.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from shared.rpc.client import open_channel
from tests.ledger.conftest import SECRETS, Travel
from tests.subscriptions.conftest import Room, event

FOLDER = Path(__file__).parents[1] / "payloads" / "razorpay"
SAMPLES = {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*.json"))}


@pytest.mark.parametrize("sample", SAMPLES)
async def test_samples_of_strangers_are_recorded_and_change_nothing(room: Room, sample: str) -> None:
    body = SAMPLES[sample]
    account = json.loads(body)["account_id"]
    delivery = {"body": body, "event_id": "evt_sample"}

    first = await room.deliver(delivery)
    again = await room.deliver(delivery)

    assert (first.outcome, first.tenant_id) == ("ignored", None)
    assert again == first
    [row] = room.rows(
        "SELECT outcome, reason, event_type, account_id, decided_again_at FROM processed_payment_events"
        " WHERE body_sha256 = %s",
        hashlib.sha256(body).hexdigest(),
    )
    assert (row["outcome"], row["reason"], row["account_id"]) == ("ignored", first.reason, account)
    assert row["decided_again_at"] is None
    assert row["event_type"] == json.loads(body)["event"]


async def test_two_workers_with_one_event_decide_it_once(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    deliveries = room.sandbox.act(f"subscriptions/{checkout.subscription_id}/pay", method="card")

    outcomes = await asyncio.gather(*(room.deliver(delivery) for delivery in deliveries * 4))

    told = [
        [outcome.outcome for outcome in outcomes[place :: len(deliveries)]]
        for place in range(len(deliveries))
    ]
    assert len(told) == 7
    assert all(set(one) == {"ignored"} or one.count("duplicate") == 3 for one in told), told
    assert (await room.balance(tenant))["subscription"] == 15_000
    assert len(room.rows("SELECT 1 FROM credit_grants WHERE tenant_id = %s", tenant)) == 1


async def test_one_key_for_two_bodies_is_refused(room: Room) -> None:
    first = event(event_type="payment.authorized", identity="one body")
    await room.events.ApplyPaymentEvent(first)
    other = event(event_type="payment.authorized", identity="another body")
    other.idempotency_key = first.idempotency_key

    with pytest.raises(FailedPrecondition) as refused:
        await room.events.ApplyPaymentEvent(other)

    assert (refused.value.reason, refused.value.metadata["field"]) == (
        "IDEMPOTENCY_KEY_REUSED",
        "event.body_sha256",
    )


async def test_events_of_the_other_mode_are_ignored(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)

    for delivery in room.sandbox.act(f"orders/{order.order_id}/pay", method="upi"):
        assert (await room.deliver(delivery, mode="live")).reason == "other_mode"

    assert (await room.balance(tenant))["permanent"] == 0


async def test_a_charge_for_a_stranger_of_a_tenant_of_ours_reaches_a_person(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    plan = room.rows("SELECT provider_plan_id FROM provider_plans WHERE plan_id = 'pro' LIMIT 1")[0]
    foreign = room.sandbox.sdk.subscription.create(
        {
            "plan_id": plan["provider_plan_id"],
            "total_count": 12,
            "notes": {"tenant_id": tenant, "plan_code": "pro"},
        }
    )

    outcomes = {
        delivery["event"]: await room.deliver(delivery)
        for delivery in room.sandbox.act(f"subscriptions/{foreign['id']}/pay", method="card")
    }

    assert outcomes["subscription.charged"].reason == "unknown_subscription"
    assert (await room.current(tenant)).plan_code == "free"
    [finding] = room.rows("SELECT * FROM billing_integrity_reports WHERE tenant_id = %s", tenant)
    assert (finding["check_type"], finding["severity"]) == ("charge_without_subscription", "critical")
    assert finding["observed"]["razorpaySubscriptionId"] == foreign["id"]


async def test_a_charge_that_comes_after_its_period_is_granted_alive(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    deliveries = room.sandbox.act(f"subscriptions/{checkout.subscription_id}/pay", method="card")
    room.clock.ahead = timedelta(days=60)

    for delivery in deliveries:
        await room.deliver(delivery)

    [grant] = room.rows("SELECT * FROM credit_grants WHERE tenant_id = %s", tenant)
    assert grant["expires_at"] > room.clock()
    assert (await room.balance(tenant))["subscription"] == 15_000
    [finding] = room.rows("SELECT check_type FROM billing_integrity_reports WHERE tenant_id = %s", tenant)
    assert finding["check_type"] == "late_charge"


async def test_dunning_and_the_end_reach_the_tenants_row(room: Room, tenant: str, travel: Travel) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    subscription = checkout.subscription_id
    for delivery in room.sandbox.act(f"subscriptions/{subscription}/pay", method="card"):
        await room.deliver(delivery)

    travel.forward(days=32)  # past what was paid: up to there a cancelled plan stays
    for delivery in room.sandbox.act(f"subscriptions/{subscription}/fail"):
        await room.deliver(delivery)
    failing = await room.current(tenant)
    for delivery in room.sandbox.act(f"subscriptions/{subscription}/cancel"):
        await room.deliver(delivery)
    ended = await room.current(tenant)

    assert (failing.plan_code, failing.status) == ("pro", subscriptions_pb2.SUBSCRIPTION_STATUS_PAST_DUE)
    assert [alert.kind for alert in failing.alerts] == [subscriptions_pb2.TENANT_ALERT_KIND_PAST_DUE]
    assert (ended.plan_code, ended.status, ended.alerts) == (
        "free",
        subscriptions_pb2.SUBSCRIPTION_STATUS_CANCELED,
        [],
    )
    limits = {f"{u.service_code}.{u.limit.key}": u.limit.value for u in ended.usage}
    assert limits["blog.posts"] == 10


async def test_malformed_events_are_refused_with_every_violation(room: Room) -> None:
    request = event(event_type="x", mode="test")
    request.event.mode = "sideways"
    request.event.body_sha256 = "ABC"

    with pytest.raises(InvalidArgument) as refused:
        await room.events.ApplyPaymentEvent(request)

    assert {field for field, _ in refused.value.violations} == {"event.mode", "event.body_sha256"}


async def test_only_rooms_report_events(room: Room) -> None:
    async with open_channel(room.address, SecretStr(SECRETS["gateway_secret"])) as channel:
        stub = type(room.events)(channel)
        with pytest.raises(PermissionDenied):
            await stub.ApplyPaymentEvent(pb.ApplyPaymentEventRequest())
