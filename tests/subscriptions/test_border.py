"""What gets lost between us and the provider is found again, and made once."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from sqlalchemy import text

from services.subscriptions.actions.catalog import apply_catalog
from services.subscriptions.rules.signatures import order_signature, subscription_signature
from shared.errors import (
    Aborted,
    BillingError,
    FailedPrecondition,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from tests.sandbox.running import KEY_SECRET
from tests.subscriptions.builders import CATALOG
from tests.subscriptions.conftest import Room


def at_provider(room: Room, tenant: str) -> list[dict]:
    found = room.sandbox.sdk.subscription.all({"count": 100})["items"]
    return [each for each in found if each["notes"] and each["notes"].get("tenant_id") == tenant]


async def test_a_lost_answer_never_makes_a_second_subscription(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.sandbox.set("faults", kind="drop", method="POST", path="/v1/subscriptions", times=1)

    with pytest.raises(Unavailable) as lost:
        await room.checkout(tenant)
    begun = await room.checkout(tenant)

    assert lost.value.reason == "PROVIDER_UNAVAILABLE"
    [only] = at_provider(room, tenant)
    assert begun.checkout.subscription_id == only["id"]
    assert begun.replayed


async def test_a_provider_that_surely_did_nothing_is_asked_again_at_once(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.sandbox.set("faults", kind="status", status=429, path="/v1/subscriptions", times=1)
    with pytest.raises(Unavailable):
        await room.checkout(tenant)

    await room.checkout(tenant)

    assert len(at_provider(room, tenant)) == 1


async def test_after_an_unknown_outcome_nothing_is_made_before_the_lists_can_show_it(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    for status in (502, 500):
        room.sandbox.set(
            "faults", kind="status", status=status, method="POST", path="/v1/subscriptions", times=1
        )
        with pytest.raises(Unavailable):
            await room.checkout(tenant)
        with pytest.raises(Unavailable, match="lag by minutes"):
            await room.checkout(tenant)
        room.clock.ahead += timedelta(minutes=4)

    await room.checkout(tenant)

    assert len(at_provider(room, tenant)) == 1


async def test_a_lost_answer_that_the_list_shows_late_makes_no_second_subscription(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    room.sandbox.set("faults", kind="list_lag", seconds=100_000)
    room.sandbox.set("faults", kind="drop", method="POST", path="/v1/subscriptions", times=1)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await room.checkout(tenant)
    room.sandbox.set("faults", kind="list_lag", seconds=0)

    begun = await room.checkout(tenant)

    assert [each["id"] for each in at_provider(room, tenant)] == [begun.checkout.subscription_id]


async def test_a_resumed_checkout_keeps_its_price(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    dearer = replace(CATALOG.plans["pro"], price_monthly_paise=249_900)
    room.change("DELETE FROM provider_plans WHERE plan_id = 'pro'")
    room.sandbox.set("faults", kind="status", status=502, path="/v1/plans", times=1)
    with pytest.raises(Unavailable):
        await room.checkout(tenant)

    await apply_catalog(
        room.engine, replace(CATALOG, plans={**CATALOG.plans, "pro": dearer}), actor="tests", dry_run=False
    )
    try:
        begun = await room.checkout(tenant)
    finally:
        await apply_catalog(room.engine, CATALOG, actor="tests", dry_run=False)

    [made] = at_provider(room, tenant)
    plan = room.sandbox.sdk.plan.fetch(made["plan_id"])
    assert (begun.checkout.total_paise, plan["item"]["amount"]) == (235_882, 235_882)


async def test_a_lost_order_is_found_by_its_receipt(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.sandbox.set("faults", kind="drop", method="POST", path="/v1/orders", times=1)
    with pytest.raises(Unavailable):
        await room.buy_credits(tenant)
    [purchase] = room.rows("SELECT id FROM credit_pack_purchases WHERE tenant_id = %s", tenant)
    [order] = room.sandbox.sdk.order.all({"receipt": purchase["id"]})["items"]

    deliveries = room.sandbox.act(f"orders/{order['id']}/pay", method="upi")
    for delivery in deliveries:
        await room.deliver(delivery)

    assert (await room.balance(tenant))["permanent"] == 2_200
    assert (await room.buy_credits(tenant)).order_id == order["id"]


async def test_events_of_a_subscription_whose_id_we_never_stored_are_matched(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.sandbox.set("faults", kind="drop", method="POST", path="/v1/subscriptions", times=1)
    with pytest.raises(Unavailable):
        await room.checkout(tenant)
    [made] = at_provider(room, tenant)

    for delivery in reversed(room.sandbox.act(f"subscriptions/{made['id']}/pay", method="card")):
        await room.deliver(delivery)

    assert (await room.balance(tenant))["subscription"] == 15_000
    assert (await room.current(tenant)).subscription_id == made["id"]
    assert (await room.checkout(tenant)).checkout.subscription_id == made["id"]


async def test_two_callers_with_one_key_make_one_subscription(room: Room, tenant: str) -> None:
    await room.provision(tenant)

    answers = await asyncio.gather(*(room.checkout(tenant) for _ in range(6)), return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert all(isinstance(each, Aborted) and each.reason == "CONFLICT" for each in refused)
    assert len(at_provider(room, tenant)) == 1
    assert (await room.checkout(tenant)).checkout.subscription_id == at_provider(room, tenant)[0]["id"]


async def test_another_checkout_replaces_the_one_that_was_not_paid(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    first = (await room.checkout(tenant, plan="starter", key="one")).checkout.subscription_id

    second = (await room.checkout(tenant, plan="pro", key="two")).checkout.subscription_id

    statuses = {each["id"]: each["status"] for each in at_provider(room, tenant)}
    assert statuses == {first: "cancelled", second: "created"}
    pending = (await room.current(tenant)).pending_change
    assert (pending.plan_code, pending.subscription_id) == ("pro", second)
    [task] = room.rows(
        "SELECT payload->>'razorpaySubscriptionId' AS orphan FROM billing_reconciliation_queue"
        " WHERE tenant_id = %s AND task_type = 'cancel_provider_subscription' AND completed_at IS NOT NULL",
        tenant,
    )
    assert task["orphan"] == first


async def test_what_cannot_be_bought_is_refused(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    for delivery in room.sandbox.act(f"subscriptions/{checkout.subscription_id}/pay", method="card"):
        await room.deliver(delivery)

    reasons = {}
    for plan in ("free", "pro", "starter", "platinum"):
        with pytest.raises(BillingError) as refused:
            await room.checkout(tenant, plan=plan, key=f"again-{plan}")
        reasons[plan] = refused.value.reason
    assert reasons == {
        "free": "PLAN_NOT_FOR_SALE",
        "pro": "ALREADY_SUBSCRIBED",
        "starter": "SUBSCRIPTION_EXISTS",
        "platinum": "UNKNOWN_PLAN",
    }


async def test_a_trial_charges_later_and_only_once_in_a_life(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant, trial=True)).checkout
    assert checkout.HasField("first_charge_at")

    for delivery in room.sandbox.act(f"subscriptions/{checkout.subscription_id}/authenticate", method="card"):
        await room.deliver(delivery)

    current = await room.current(tenant)
    assert (current.plan_code, current.status) == ("pro", pb.SUBSCRIPTION_STATUS_TRIALING)
    assert current.trial_end_at == checkout.first_charge_at
    assert current.has_used_trial
    assert (await room.balance(tenant))["subscription"] == 500


def verification(tenant: str, payment: str, signature: str, **purchase: str) -> pb.VerifyPaymentRequest:
    return pb.VerifyPaymentRequest(
        tenant_id=tenant,
        idempotency_key=f"verify-{signature[:8]}",
        payment_id=payment,
        signature=signature,
        **purchase,
    )


async def test_verify_and_webhook_are_one_effect(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    deliveries = room.sandbox.act(f"subscriptions/{checkout.subscription_id}/pay", method="card")
    payment = next(
        d["parsed"]["payload"]["payment"]["entity"]["id"]
        for d in deliveries
        if d["event"] == "subscription.charged"
    )
    signature = subscription_signature(KEY_SECRET, payment, checkout.subscription_id)

    request = verification(tenant, payment, signature, intent_id=checkout.intent_id)
    first = await room.product.VerifyPayment(request)
    again = await room.product.VerifyPayment(request)
    for delivery in deliveries:
        await room.deliver(delivery)

    assert (first.status, first.reason) == (pb.VERIFY_STATUS_VERIFIED, "granted")
    assert again == first
    assert (await room.balance(tenant))["subscription"] == 15_000
    assert (await room.current(tenant)).plan_code == "pro"
    assert len(room.rows("SELECT 1 FROM credit_grants WHERE tenant_id = %s", tenant)) == 1


async def test_verify_after_the_webhook_says_the_same(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    deliveries = room.sandbox.act(f"orders/{order.order_id}/pay", method="upi")
    for delivery in deliveries:
        await room.deliver(delivery)
    payment = deliveries[0]["parsed"]["payload"]["payment"]["entity"]["id"]

    verified = await room.product.VerifyPayment(
        verification(
            tenant,
            payment,
            order_signature(KEY_SECRET, order.order_id, payment),
            purchase_id=order.purchase_id,
        )
    )

    assert (verified.status, verified.reason) == (pb.VERIFY_STATUS_VERIFIED, "already_funded")
    assert (await room.balance(tenant))["permanent"] == 2_200


async def test_verifying_a_trials_mandate_begins_the_trial_once(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant, trial=True)).checkout
    deliveries = room.sandbox.act(
        f"subscriptions/{checkout.subscription_id}/authenticate", method="card", token_paise=500
    )
    payment = next(
        d["parsed"]["payload"]["payment"]["entity"]["id"]
        for d in deliveries
        if "payment" in d["parsed"]["payload"]
    )
    signature = subscription_signature(KEY_SECRET, payment, checkout.subscription_id)

    verified = await room.product.VerifyPayment(
        verification(tenant, payment, signature, intent_id=checkout.intent_id)
    )
    for delivery in deliveries:
        await room.deliver(delivery)

    assert (verified.status, verified.reason) == (pb.VERIFY_STATUS_VERIFIED, "trial_began")
    assert await room.balance(tenant) == {"subscription": 500, "permanent": 0}
    assert len(room.rows("SELECT 1 FROM credit_grants WHERE tenant_id = %s", tenant)) == 1


async def test_a_forged_verification_is_refused_and_counted(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)

    with pytest.raises(PermissionDenied) as refused:
        await room.product.VerifyPayment(
            verification(tenant, "pay_00000000000000", "f" * 64, purchase_id=order.purchase_id)
        )

    assert refused.value.reason == "SIGNATURE_MISMATCH"
    [counted] = room.rows(
        "SELECT endpoint, payload_id FROM billing_signature_failures WHERE tenant_id = %s", tenant
    )
    assert counted == {"endpoint": "/payment/verify", "payload_id": "pay_00000000000000"}


async def test_forged_verifications_are_limited_and_never_lock_the_customer_out(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    deliveries = room.sandbox.act(f"orders/{order.order_id}/pay", method="upi")
    payment = deliveries[0]["parsed"]["payload"]["payment"]["entity"]["id"]

    refusals = []
    for number in range(8):
        with pytest.raises((PermissionDenied, ResourceExhausted)) as refused:
            await room.product.VerifyPayment(
                verification(tenant, payment, f"{number}" * 64, purchase_id=order.purchase_id)
            )
        refusals.append(refused.value)
    verified = await room.product.VerifyPayment(
        verification(
            tenant,
            payment,
            order_signature(KEY_SECRET, order.order_id, payment),
            purchase_id=order.purchase_id,
        )
    )

    assert [each.reason for each in refusals] == ["SIGNATURE_MISMATCH"] * 5 + ["RATE_LIMITED"] * 3
    waits = [each.retry_after_seconds for each in refusals if isinstance(each, ResourceExhausted)]
    assert all(170 <= wait <= 180 for wait in waits)
    assert verified.status == pb.VERIFY_STATUS_VERIFIED
    recorded = room.rows("SELECT 1 FROM billing_signature_failures WHERE tenant_id = %s", tenant)
    assert len(recorded) == 8  # what is refused without a look at it would never raise the alarm


async def test_verifications_of_one_tenant_are_limited(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    async with room.engine.begin() as db:
        await db.execute(
            text(
                "INSERT INTO rate_limit_buckets (room, key, tat)"
                " VALUES ('subscriptions', :key, clock_timestamp() + interval '899 seconds')"
            ),
            {"key": f"verify:{tenant}"},
        )

    with pytest.raises(ResourceExhausted) as refused:
        await room.product.VerifyPayment(
            verification(tenant, "pay_00000000000000", "f" * 64, purchase_id=order.purchase_id)
        )

    assert refused.value.metadata["limit"] == "100 in 15 minutes"
    assert not room.rows("SELECT 1 FROM billing_signature_failures WHERE tenant_id = %s", tenant)


async def test_a_payment_of_another_order_pays_nothing_here(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    cheap, dear = (
        await room.buy_credits(tenant, pack="small", key="a"),
        await room.buy_credits(tenant, pack="large", key="b"),
    )
    deliveries = room.sandbox.act(f"orders/{cheap.order_id}/pay", method="upi")
    payment = deliveries[0]["parsed"]["payload"]["payment"]["entity"]["id"]
    signature = order_signature(KEY_SECRET, dear.order_id, payment)

    with pytest.raises(FailedPrecondition) as refused:
        await room.product.VerifyPayment(
            verification(tenant, payment, signature, purchase_id=dear.purchase_id)
        )

    assert refused.value.reason == "PAYMENT_MISMATCH"
    assert (await room.balance(tenant))["permanent"] == 0


async def test_only_ids_reach_the_providers_paths(room: Room) -> None:
    for forged in ("../payments/pay_00000000000000", "sub_1?x=1", "", "sub_0000000000000/cancel"):
        with pytest.raises(FailedPrecondition) as refused:
            await room.razorpay.fetch_subscription(forged)
        assert refused.value.reason == "PROVIDER_REFUSED"
