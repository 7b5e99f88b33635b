"""What the room can tell of an event or a task without believing what others wrote into it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from billing.subscriptions.v1 import payment_events_pb2 as events_pb
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from shared.errors import InvalidArgument, PermissionDenied
from tests.subscriptions.conftest import Room, event
from tests.subscriptions.test_border import verification


async def bought(room: Room, tenant: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """A paid subscription: its id and its deliveries by event, not yet delivered."""
    await room.provision(tenant)
    subscription_id = (await room.checkout(tenant)).checkout.subscription_id
    deliveries = room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card")
    return subscription_id, {delivery["event"]: delivery for delivery in deliveries}


async def test_once_a_charge_is_known_every_event_about_its_payment_names_the_tenant(
    room: Room, tenant: str
) -> None:
    _, deliveries = await bought(room, tenant)
    await room.deliver(deliveries.pop("subscription.charged"))

    told = {name: (await room.deliver(delivery)).tenant_id for name, delivery in deliveries.items()}

    assert told == dict.fromkeys(deliveries, tenant)
    assert (await room.balance(tenant))["subscription"] == 15_000


async def test_an_invoice_names_the_tenant_by_its_subscription_before_any_charge(
    room: Room, tenant: str
) -> None:
    _, deliveries = await bought(room, tenant)

    decided = await room.deliver(deliveries["invoice.paid"])

    assert (decided.outcome, decided.tenant_id) == ("ignored", tenant)


async def test_refunds_disputes_and_bare_orders_name_the_tenant_by_what_we_hold(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    paid, *_ = room.sandbox.act(f"orders/{order.order_id}/pay", method="upi")
    payment_id = paid["parsed"]["payload"]["payment"]["entity"]["id"]
    for delivery in (paid, *_):
        await room.deliver(delivery)

    refund = events_pb.ProviderRefund(id="rfnd_00000000000001", payment_id=payment_id)
    dispute = events_pb.ProviderDispute(id="disp_00000000000001", payment_id=payment_id)
    bare = events_pb.ProviderOrder(id=order.order_id)
    for about in (
        event(event_type="refund.processed", refund=refund, identity=f"{tenant} refund"),
        event(event_type="payment.dispute.created", dispute=dispute, identity=f"{tenant} dispute"),
        event(event_type="order.paid", order=bare, identity=f"{tenant} order"),
    ):
        answer = await room.events.ApplyPaymentEvent(about)
        assert (answer.outcome, answer.tenant_id) == (events_pb.PAYMENT_EVENT_OUTCOME_IGNORED, tenant)


async def test_notes_that_a_customer_can_write_name_nobody(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    payment = events_pb.ProviderPayment(
        id="pay_00000000000009",
        order_id="order_0000000000009",
        amount=166_000,
        currency="INR",
        status="captured",
        captured=True,
        notes={"tenant_id": tenant, "purchase_id": "pur_1", "intent_id": "int_1"},
    )

    answer = await room.events.ApplyPaymentEvent(
        event(event_type="payment.captured", payment=payment, identity=tenant)
    )

    assert (answer.reason, answer.tenant_id) == ("unknown_order", "")
    assert room.rows("SELECT 1 FROM credit_grants WHERE tenant_id = %s", tenant) == []


@pytest.mark.parametrize("trial", [False, True])
async def test_a_grants_task_names_the_providers_subscription(room: Room, tenant: str, trial: bool) -> None:
    await room.provision(tenant)
    subscription_id = (await room.checkout(tenant, trial=trial)).checkout.subscription_id
    act = "authenticate" if trial else "pay"
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/{act}", method="card"):
        await room.deliver(delivery)

    [task] = room.rows(
        "SELECT payload FROM billing_reconciliation_queue"
        " WHERE tenant_id = %s AND task_type = 'grant_credits'",
        tenant,
    )
    assert task["payload"]["razorpaySubscriptionId"] == subscription_id


async def test_a_packs_task_names_no_subscription(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    for delivery in room.sandbox.act(f"orders/{order.order_id}/pay", method="upi"):
        await room.deliver(delivery)

    [task] = room.rows(
        "SELECT payload FROM billing_reconciliation_queue"
        " WHERE tenant_id = %s AND task_type = 'grant_credits'",
        tenant,
    )
    assert "razorpaySubscriptionId" not in task["payload"]


async def test_a_forged_verification_leaves_who_tried_it(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    forged = verification(tenant, "pay_00000000000000", "f" * 64, purchase_id=order.purchase_id)
    forged.remote_ip, forged.user_agent = "2001:db8::7", "Mozilla/5.0 (forged)"

    with pytest.raises(PermissionDenied):
        await room.product.VerifyPayment(forged)

    [counted] = room.rows(
        "SELECT host(remote_ip::inet) AS remote_ip, user_agent FROM billing_signature_failures WHERE tenant_id = %s",
        tenant,
    )
    assert counted == {"remote_ip": "2001:db8::7", "user_agent": "Mozilla/5.0 (forged)"}


@pytest.mark.parametrize(
    ("field", "value"), [("remote_ip", "10.0.0.256"), ("remote_ip", "here"), ("user_agent", "x" * 513)]
)
async def test_who_tried_it_must_look_like_it(room: Room, tenant: str, field: str, value: str) -> None:
    request: pb.VerifyPaymentRequest = verification(
        tenant, "pay_00000000000000", "f" * 64, purchase_id="pur_1"
    )
    setattr(request, field, value)

    with pytest.raises(InvalidArgument) as refused:
        await room.product.VerifyPayment(request)

    assert [named for named, _ in refused.value.violations] == [field]


async def test_a_period_at_the_edge_of_the_calendar_is_still_granted_for(room: Room, tenant: str) -> None:
    subscription_id, _ = await bought(room, tenant)
    snapshot = events_pb.ProviderSubscription(id=subscription_id, status="active", paid_count=1)
    snapshot.current_start.FromDatetime(datetime.now(UTC))
    snapshot.current_end.FromDatetime(datetime(2199, 12, 31, tzinfo=UTC))
    payment = events_pb.ProviderPayment(
        id=f"pay_{tenant}", amount=235_882, currency="INR", status="captured", captured=True
    )

    answer = await room.events.ApplyPaymentEvent(
        event(event_type="subscription.charged", subscription=snapshot, payment=payment, identity=tenant)
    )

    assert answer.reason == "granted"
    [grant] = room.rows("SELECT expires_at FROM credit_grants WHERE tenant_id = %s", tenant)
    assert grant["expires_at"] == datetime(2199, 12, 31, tzinfo=UTC) + timedelta(hours=48)


async def test_a_pack_paid_three_times_shows_both_payments_too_many(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    for number in (1, 2, 3, 3, 2):
        payment = events_pb.ProviderPayment(
            id=f"pay_{tenant}_{number}",
            order_id=order.order_id,
            amount=166_000,
            currency="INR",
            status="captured",
            captured=True,
        )
        told = event(event_type="payment.captured", payment=payment)
        await room.events.ApplyPaymentEvent(told)
        told.event.event_type = "order.paid"  # the same money, told again in another body
        told.event.body_sha256 = told.event.body_sha256[::-1]
        told.idempotency_key += ":order"
        await room.events.ApplyPaymentEvent(told)

    [finding] = room.rows(
        "SELECT check_type, severity::text, observed FROM billing_integrity_reports WHERE tenant_id = %s",
        tenant,
    )
    assert (finding["check_type"], finding["severity"]) == ("purchase_paid_twice", "critical")
    earlier = finding["observed"]["earlier"]
    assert {each["paymentId"] for each in (finding["observed"], *earlier)} == {
        f"pay_{tenant}_2",
        f"pay_{tenant}_3",
    }
    assert len(earlier) == 1
    assert (await room.balance(tenant))["permanent"] == 2_200
