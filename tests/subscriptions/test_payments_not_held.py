"""Money that the provider holds in a tenant's name and we do not: brought where it can be, else told until it is settled."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions.sync import payments
from services.subscriptions.actions.sync import run as sync_run
from services.subscriptions.clients import razorpay
from services.subscriptions.config import SubscriptionsSettings
from shared.errors import NotFound
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_health import check
from tests.subscriptions.test_sync import alerts, bought, forget, orphan_of, paid, sync

PAST_GRACE = payments.GRACE + timedelta(minutes=1)
KEY = "subscriptions.payment_not_held"


def open_finding(room: Room, tenant: str) -> dict[str, Any] | None:
    found = room.rows(
        "SELECT * FROM billing_integrity_reports WHERE tenant_id = %s AND check_type = 'payment_not_held'"
        " AND resolved_at IS NULL",
        tenant,
    )
    assert len(found) < 2
    return found[0] if found else None


def paid_order(room: Room, notes: Any, *, amount: int = 118_000, receipt: str | None = None) -> str:
    """An order that this room never made, and its payment, of which nobody told us."""
    order = room.sandbox.sdk.order.create(
        {"amount": amount, "currency": "INR", "notes": notes, **({"receipt": receipt} if receipt else {})}
    )
    room.sandbox.act(f"orders/{order['id']}/pay", method="upi", deliver=False)
    return payment_of(room, order["id"])


def payment_of(room: Room, order_id: str) -> str:
    [payment] = room.sandbox.sdk.order.payments(order_id)["items"]
    payment_id: str = payment["id"]
    return payment_id


async def forgotten_pack(room: Room, tenant: str, *, key: str = "pack") -> str:
    """Credits bought and paid after a backup: with the backup the purchase is gone."""
    order = await room.buy_credits(tenant, key=key)
    room.sandbox.act(f"orders/{order.order_id}/pay", method="upi", deliver=False)
    room.change("DELETE FROM credit_pack_purchases WHERE provider_order_id = %s", order.order_id)
    return payment_of(room, order.order_id)


async def test_a_pack_whose_purchase_is_gone_is_told_once_until_the_money_went_back(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    payment_id = await forgotten_pack(room, tenant)
    amount = room.sandbox.sdk.payment.fetch(payment_id)["amount"]
    assert (alerts(await sync(room, tenant), tenant), open_finding(room, tenant)) == ({}, None), "on its way?"
    room.clock.ahead = PAST_GRACE

    tried = await sync(room, tenant, key="dry", dry_run=True)
    assert (alerts(tried, tenant)[KEY].evidence["payment_ids"], open_finding(room, tenant)) == (
        payment_id,
        None,
    )
    answer = await sync(room, tenant, key="2")

    finding = open_finding(room, tenant)
    assert finding is not None
    assert (finding["severity"], finding["observed"]["paymentIds"]) == ("critical", [payment_id])
    assert (finding["observed"]["paise"], finding["observed"]["totalPaise"]) == ([amount], amount)
    alert = alerts(answer, tenant)[KEY]
    assert (alert.key, alert.severity) == (f"{KEY}:{finding['id']}", alert_pb2.ALERT_SEVERITY_CRITICAL)
    assert "AdjustCredits" in alert.evidence["next_step"]
    assert (answer.differences, answer.tasks_queued) == (0, 0), "nothing that another run would mend"
    assert KEY not in {each.key.split(":")[0] for each in (await check(room)).alerts}, "SyncWithProvider's"
    with pytest.raises(NotFound) as unknown:
        await room.admin.RefundPayment(
            admin_pb.RefundPaymentRequest(
                tenant_id=tenant, payment_id=payment_id, idempotency_key="T-1", actor="asha", reason="T-1"
            )
        )
    assert unknown.value.reason == "UNKNOWN_PAYMENT"

    room.sandbox.act(f"payments/{payment_id}/refund", amount=amount // 2, deliver=False)
    room.clock.ahead = timedelta(days=30)
    again = alerts(await sync(room, tenant, key="3"), tenant)[KEY]
    assert again.key == alert.key, "as old as it is by now"
    assert again.evidence["paise"] == str(amount - amount // 2)
    room.sandbox.act(f"payments/{payment_id}/refund", amount=amount - amount // 2, deliver=False)
    assert KEY not in alerts(await sync(room, tenant, key="4"), tenant)
    assert open_finding(room, tenant) is None
    [closed] = room.rows("SELECT resolved_by FROM billing_integrity_reports WHERE id = %s", finding["id"])
    assert closed["resolved_by"] == "subscriptions.sync"


async def test_what_a_person_settled_is_not_told_again(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    first = await forgotten_pack(room, tenant)
    room.clock.ahead = PAST_GRACE
    await sync(room, tenant)
    finding = open_finding(room, tenant)
    assert finding is not None
    await room.admin.ResolveFinding(
        admin_pb.ResolveFindingRequest(
            finding_id=finding["id"], idempotency_key="T-2", actor="asha", reason="T-2: credits by hand"
        )
    )

    settled = await sync(room, tenant, key="2")
    second = await forgotten_pack(room, tenant, key="another")
    room.clock.ahead = 2 * PAST_GRACE
    answer = await sync(room, tenant, key="3")

    assert KEY not in alerts(settled, tenant)
    assert alerts(answer, tenant)[KEY].evidence["payment_ids"] == second
    assert first != second


async def test_a_pack_whose_order_was_lost_with_its_answer_is_credited(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    room.change("UPDATE credit_pack_purchases SET provider_order_id = NULL WHERE tenant_id = %s", tenant)
    room.sandbox.act(f"orders/{order.order_id}/pay", method="upi", deliver=False)
    room.clock.ahead = PAST_GRACE

    tried = await sync(room, tenant, key="dry", dry_run=True)
    answer = await sync(room, tenant)

    assert (tried.differences, answer.differences, alerts(answer, tenant)) == (1, 1, {})
    assert (await room.balance(tenant))["permanent"] == order.credits
    assert (await sync(room, tenant, key="2")).differences == 0
    assert (await room.balance(tenant))["permanent"] == order.credits


async def test_a_lost_webhook_of_a_pack_is_brought_and_never_told(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    room.sandbox.act(f"orders/{order.order_id}/pay", method="upi", deliver=False)
    room.clock.ahead = PAST_GRACE

    answer = await sync(room, tenant)

    assert (answer.differences, alerts(answer, tenant), open_finding(room, tenant)) == (1, {}, None)
    assert (await room.balance(tenant))["permanent"] == order.credits


async def test_a_pack_that_was_paid_twice_has_its_own_finding(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    for delivery in room.sandbox.act(f"orders/{order.order_id}/pay", method="upi"):
        await room.deliver(delivery)
    first = room.sandbox.sdk.payment.fetch(payment_of(room, order.order_id))
    twice = paid_order(room, {"tenant_id": tenant}, amount=first["amount"])
    other = room.sandbox.sdk.payment.fetch(twice)["order_id"]
    room.change("UPDATE credit_pack_purchases SET provider_order_id = %s WHERE tenant_id = %s", other, tenant)
    room.clock.ahead = PAST_GRACE

    for key in ("1", "2"):
        assert KEY not in alerts(await sync(room, tenant, key=key), tenant)

    [finding] = room.rows("SELECT * FROM billing_integrity_reports WHERE tenant_id = %s", tenant)
    assert (finding["check_type"], finding["observed"]["paymentId"]) == ("purchase_paid_twice", twice)
    assert (await sync(room, tenant, key="3")).differences == 0, "it was told already"


async def test_a_subscription_that_we_did_not_begin_stays_told_after_it_was_cancelled(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    orphan = orphan_of(room, tenant)
    room.sandbox.act(f"subscriptions/{orphan}/pay", method="card", deliver=False)
    room.clock.ahead = PAST_GRACE

    both = alerts(await sync(room, tenant), tenant)
    room.sandbox.sdk.subscription.cancel(orphan, {"cancel_at_cycle_end": False})
    after = alerts(await sync(room, tenant, key="2"), tenant)

    assert both.keys() == {KEY, "subscriptions.orphan_provider_sub"}
    assert both[KEY].evidence["paid_for"] == orphan
    assert after.keys() == {KEY}, "the money is still there"


async def test_a_checkout_whose_answer_was_lost_is_adopted_and_not_told(room: Room, tenant: str) -> None:
    subscription_id = await bought(room, tenant)
    forget(room, tenant)
    room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card", deliver=False)
    room.clock.ahead = PAST_GRACE

    answer = await sync(room, tenant)

    assert (alerts(answer, tenant), open_finding(room, tenant)) == ({}, None)
    assert (await room.current(tenant)).plan_code == "pro"


async def test_a_charge_that_asking_did_not_bring_is_told_until_it_is_held(room: Room, tenant: str) -> None:
    subscription_id = await bought(room, tenant)
    room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card", deliver=False)
    room.clock.ahead = timedelta(hours=3)
    room.change(
        "INSERT INTO billing_reconciliation_queue (id, tenant_id, task_type, counterpart, idempotency_key, payload,"
        " next_attempt_at, completed_at) VALUES (%s, %s, 'fetch_and_apply', 'provider', 'fetch:in-vain',"
        " jsonb_build_object('razorpaySubscriptionId', %s::text), now(), now() + interval '2 hours')",
        f"tsk_{tenant}",
        tenant,
        subscription_id,
    )

    told = await sync(room, tenant)
    assert alerts(told, tenant)[KEY].evidence["paid_for"] == subscription_id

    assert (await room.current(tenant)).plan_code == "pro", "asked once more after it was told"
    assert alerts(await sync(room, tenant, key="2"), tenant) == {}
    assert open_finding(room, tenant) is None


async def test_what_is_held_refunded_failed_or_of_others_is_none_of_our_business(
    room: Room, tenant: str
) -> None:
    await paid(room, tenant)
    others: list[Any] = [[], {"tenant_id": "somebody-elses-customer"}, {"shop": "shoes"}]
    for notes in others:
        paid_order(room, notes)
    gone = paid_order(room, {"tenant_id": tenant})
    room.sandbox.act(f"payments/{gone}/refund", deliver=False)
    failed = room.sandbox.sdk.order.create({"amount": 100, "currency": "INR", "notes": {"tenant_id": tenant}})
    room.sandbox.act(f"orders/{failed['id']}/fail", method="upi", deliver=False)
    claimed = paid_order(room, {"tenant_id": "somebody-elses-customer"})
    # What a customer's page says of the payment does not make it another tenant's.
    room.sandbox.sdk.payment.edit(claimed, {"notes": {"tenant_id": tenant}})
    room.clock.ahead = PAST_GRACE

    answer = await sync(room, tenant)

    assert (alerts(answer, tenant), open_finding(room, tenant), answer.differences) == ({}, None, 0)
    told = room.rows(
        "SELECT 1 FROM billing_integrity_reports WHERE tenant_id = 'somebody-elses-customer'",
    )
    assert told == []


async def test_a_tenant_that_is_known_again_is_told_of_its_money(room: Room, tenant: str) -> None:
    payment_id = paid_order(room, {"tenant_id": tenant, "purchase_id": "cpp_of_a_lost_day"})
    room.clock.ahead = PAST_GRACE
    assert KEY not in alerts(await sync(room, tenant), tenant)

    await room.provision(tenant)

    assert alerts(await sync(room, tenant, key="2"), tenant)[KEY].evidence["payment_ids"] == payment_id


def named(answer: pb.SyncWithProviderResponse, tenants: list[str]) -> set[str]:
    return {each.tenant_id for each in answer.alerts if each.key.startswith(KEY)} & set(tenants)


async def test_small_pages_and_payments_that_come_while_we_read_lose_none(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = [f"{tenant}_{number}" for number in range(5)]
    for each in tenants:
        await room.provision(each)
    wanted = {each: paid_order(room, {"tenant_id": each}) for each in tenants}
    room.clock.ahead = PAST_GRACE
    for module in (payments, razorpay):
        monkeypatch.setattr(module, "PAGE", 2)
    compare = payments._compare_page

    async def busy(look: Any, page: Any) -> None:
        paid_order(room, [])  # the provider's newest: every page by number would move
        await compare(look, page)

    monkeypatch.setattr(payments, "_compare_page", busy)
    room.change("DELETE FROM walks WHERE name = 'sync.payments'")

    answer = await sync(room, key=tenant)
    monkeypatch.undo()

    told = {each.tenant_id: each.evidence["payment_ids"] for each in answer.alerts if KEY in each.key}
    assert wanted.items() <= told.items()


async def test_a_run_without_time_goes_on_where_it_stopped_and_then_from_the_newest(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.provision(tenant)
    payment_id = paid_order(room, {"tenant_id": tenant})
    for module in (payments, razorpay):
        monkeypatch.setattr(module, "PAGE", 2)
    room.change("DELETE FROM walks WHERE name = 'sync.payments'")
    # Above it, as much as this run may read.
    newest = (room.clock() + timedelta(minutes=2)).isoformat()
    compared: list[int] = []
    compare = payments._compare_page

    async def counting(look: Any, page: Any) -> None:
        compared.append(len(page))
        await compare(look, page)

    monkeypatch.setattr(payments, "_compare_page", counting)
    has_time = sync_run.Run.has_time
    monkeypatch.setattr(
        sync_run.Run,
        "has_time",
        lambda run, share=0.8: (share != payments.SHARE or len(compared) < 2) and has_time(run, share),
    )
    room.clock.ahead = PAST_GRACE
    first = await sync(room, key=f"{tenant}:1")
    [stopped] = room.rows("SELECT place FROM walks WHERE name = 'sync.payments'")
    monkeypatch.undo()

    second = await sync(room, key=f"{tenant}:2")

    assert len(compared) == 2
    assert first.alerts
    assert "" < stopped["place"] <= newest
    assert {each.evidence["payment_ids"] for each in second.alerts if each.tenant_id == tenant} == {
        payment_id
    }
    [place] = room.rows("SELECT place FROM walks WHERE name = 'sync.payments'")
    assert place["place"] == ""


async def test_a_provider_that_lists_nothing_closes_nothing(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    await forgotten_pack(room, tenant)
    room.clock.ahead = PAST_GRACE
    key = alerts(await sync(room, tenant), tenant)[KEY].key
    room.sandbox.set("faults", kind="status", status=502, times=1000, method="GET", path="/v1/payments")

    answer = await sync(room, tenant, key="2")

    assert alerts(answer, tenant)[KEY].key == key
    assert "subscriptions.sync.provider_silent" in {each.key for each in answer.alerts}


@pytest.mark.parametrize("days", [0, 91])
def test_how_far_back_has_bounds(days: int) -> None:
    field = SubscriptionsSettings.model_fields["subscriptions_sync_payments_days"]
    limits = {type(each).__name__: each for each in field.metadata}
    assert not limits["Ge"].ge <= days <= limits["Le"].le
    assert field.default == 7
