"""What no webhook told is found by asking: once, by the same path, and as far as the provider answers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb
from billing.subscriptions.v1 import subscriptions_maintenance_pb2_grpc as pb_grpc
from pydantic import SecretStr

from services.subscriptions.actions.sync import known, strangers
from services.subscriptions.actions.sync import run as sync_run
from services.subscriptions.clients.razorpay import Razorpay
from shared.errors import PermissionDenied
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS, Travel
from tests.sandbox.running import free_port
from tests.subscriptions.conftest import MovableClock, Room, serving


async def sync(
    room: Room, tenant: str = "", *, key: str = "1", dry_run: bool = False
) -> pb.SyncWithProviderResponse:
    request = pb.SyncWithProviderRequest(
        idempotency_key=f"job:sync_provider:{key}", dry_run=dry_run, tenant_id=tenant
    )
    return await room.maintenance.SyncWithProvider(request, timeout=60)


async def bought(room: Room, tenant: str, *, plan: str = "pro") -> str:
    """A purchase begun; answers the provider's subscription."""
    await room.provision(tenant)
    subscription_id: str = (await room.checkout(tenant, plan=plan)).checkout.subscription_id
    return subscription_id


async def paid(room: Room, tenant: str) -> str:
    """A purchase paid, and every webhook of it delivered."""
    subscription_id = await bought(room, tenant)
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card"):
        await room.deliver(delivery)
    return subscription_id


def alerts(answer: pb.SyncWithProviderResponse, tenant: str) -> dict[str, alert_pb2.Alert]:
    """What was reported about a tenant, by the first words of its key."""
    return {alert.key.split(":")[0]: alert for alert in answer.alerts if alert.tenant_id == tenant}


async def state(room: Room, tenant: str) -> tuple[Any, ...]:
    """What a customer has, and what it was paid with."""
    current = await room.current(tenant)
    payments = room.rows("SELECT count(*) FROM payments WHERE tenant_id = %s", tenant)
    grants = room.rows("SELECT count(*) FROM credit_grants WHERE tenant_id = %s", tenant)
    return (
        *(current.plan_code, current.status, current.cancel_at_period_end, current.entitlements_version),
        *(await room.balance(tenant)).values(),
        *(payments[0]["count"], grants[0]["count"]),
    )


async def test_webhooks_that_were_missed_leave_the_same_state_as_if_they_had_come(
    room: Room, tenant: str
) -> None:
    missed, told = await bought(room, tenant), f"{tenant}_told"
    room.sandbox.act(f"subscriptions/{missed}/pay", method="card", deliver=False)
    await paid(room, told)
    assert (await room.current(tenant)).plan_code == "free"

    answer = await sync(room, tenant)

    assert (answer.compared, answer.differences, answer.tasks_queued, answer.orphans) == (1, 1, 1, 0)
    assert list(answer.alerts) == []
    assert await state(room, tenant) == await state(room, told)
    assert (await room.balance(tenant))["subscription"] == 15_000
    for key in ("1", "2"):
        again = await sync(room, tenant, key=key)
        assert (again.compared, again.differences, again.tasks_queued) == (1, 0, 0)
    assert await state(room, tenant) == await state(room, told)


async def test_renewals_and_an_end_that_nobody_told_of(room: Room, tenant: str, travel: Travel) -> None:
    subscription_id = await paid(room, tenant)
    for _ in range(2):
        travel.forward(days=31)
        room.sandbox.act("tick", deliver=False)

    answer = await sync(room, tenant)

    assert (answer.differences, answer.tasks_queued) == (1, 1)
    payments = room.rows("SELECT id FROM payments WHERE tenant_id = %s", tenant)
    assert len(payments) == room.sandbox.sdk.subscription.fetch(subscription_id)["paid_count"] == 3
    assert len(room.rows("SELECT 1 FROM credit_grants WHERE tenant_id = %s", tenant)) == 3
    room.sandbox.act(f"subscriptions/{subscription_id}/cancel", by="customer", deliver=False)
    await sync(room, tenant, key="2")
    current = await room.current(tenant)
    assert (current.plan_code, current.cancel_at_period_end) == ("pro", True)


async def test_a_run_for_all_finds_the_one_that_differs(room: Room, tenant: str) -> None:
    missed = await bought(room, tenant)
    room.sandbox.act(f"subscriptions/{missed}/pay", method="card", deliver=False)

    answer = await sync(room, key=tenant)
    await room.reconcile()

    assert answer.differences >= 1
    assert (await room.current(tenant)).plan_code == "pro"
    assert (await sync(room, tenant)).differences == 0


async def test_a_dry_run_counts_and_changes_nothing(room: Room, tenant: str) -> None:
    missed = await bought(room, tenant)
    room.sandbox.act(f"subscriptions/{missed}/pay", method="card", deliver=False)
    orphan_of(room, tenant)
    before = await state(room, tenant)

    answer = await sync(room, tenant, dry_run=True)

    assert (answer.differences, answer.tasks_queued, answer.orphans) == (1, 1, 1)
    assert await state(room, tenant) == before
    tasks = room.rows(
        "SELECT 1 FROM billing_reconciliation_queue WHERE tenant_id = %s AND task_type = 'fetch_and_apply'",
        tenant,
    )
    assert (tasks, findings(room, tenant)) == ([], [])


def orphan_of(room: Room, tenant: str, **notes: str) -> str:
    """A subscription that somebody made at the provider in the tenant's name."""
    plan = room.sandbox.sdk.plan.all({"count": 1})["items"][0]
    made = room.sandbox.sdk.subscription.create(
        {"plan_id": plan["id"], "total_count": 12, "notes": {"tenant_id": tenant, **notes}}
    )
    subscription_id: str = made["id"]
    return subscription_id


def findings(room: Room, tenant: str) -> list[dict[str, Any]]:
    """Orphans reported and not resolved."""
    return room.rows(
        "SELECT * FROM billing_integrity_reports WHERE tenant_id = %s AND check_type = 'orphan_provider_sub'"
        " AND resolved_at IS NULL",
        tenant,
    )


async def test_an_orphan_is_named_until_it_is_gone(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    first, second = orphan_of(room, tenant), orphan_of(room, tenant, intent_id="int_nobody")

    answer = await sync(room, tenant)

    assert answer.orphans == 2
    [finding] = findings(room, tenant)
    assert finding["severity"] == "warning"
    assert finding["observed"]["razorpaySubscriptionIds"] == sorted([first, second])
    alert = alerts(answer, tenant)["subscriptions.orphan_provider_sub"]
    assert "CancelOrphanSubscription" in alert.evidence["next_command"]

    room.sandbox.act(f"subscriptions/{first}/pay", method="card", deliver=False)
    answer = await sync(room, tenant, key="2")
    assert alerts(answer, tenant)["subscriptions.orphan_provider_sub"].severity == (
        alert_pb2.ALERT_SEVERITY_CRITICAL
    )
    assert [each["id"] for each in findings(room, tenant)] == [finding["id"]]
    assert (await room.current(tenant)).plan_code == "free"
    assert await room.balance(tenant) == {"subscription": 0, "permanent": 0}

    for subscription_id in (first, second):
        room.sandbox.sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": False})
    answer = await sync(room, tenant, key="3")
    assert (answer.orphans, findings(room, tenant)) == (0, [])
    [closed] = room.rows("SELECT resolved_by FROM billing_integrity_reports WHERE id = %s", finding["id"])
    assert closed["resolved_by"] == "subscriptions.sync"


async def test_an_orphan_stays_named_after_the_lists_went_on(room: Room, tenant: str, travel: Travel) -> None:
    await room.provision(tenant)
    orphan = orphan_of(room, tenant)
    assert (await sync(room, key=f"{tenant}:1")).orphans >= 1
    travel.forward(days=40)

    answer = await sync(room, key=f"{tenant}:2")

    assert alerts(answer, tenant)["subscriptions.orphan_provider_sub"].evidence["subscription_ids"] == orphan
    [place] = room.rows("SELECT place FROM walks WHERE name = 'sync.lists'")
    assert place["place"] > (room.clock() - timedelta(days=3)).isoformat()
    room.change("DELETE FROM walks WHERE name = 'sync.lists'")


async def test_lists_that_lag_behind_hide_an_orphan_only_for_a_while(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    orphan = orphan_of(room, tenant)
    room.sandbox.set("faults", kind="list_lag", seconds=300)
    hidden = await sync(room, key=f"{tenant}:1")
    room.sandbox.http.delete("/_sandbox/faults")

    shown = await sync(room, key=f"{tenant}:2")

    assert "subscriptions.orphan_provider_sub" not in alerts(hidden, tenant)
    assert alerts(shown, tenant)["subscriptions.orphan_provider_sub"].evidence["subscription_ids"] == orphan


def forget(room: Room, tenant: str) -> None:
    """The provider's answer to a checkout, lost on its way."""
    for statement in (
        "UPDATE checkout_intents SET provider_subscription_id = NULL WHERE tenant_id = %s",
        "DELETE FROM provider_subscriptions WHERE tenant_id = %s",
        "UPDATE subscriptions SET pending_plan_id = NULL, pending_billing_cycle = NULL, pending_kind = NULL,"
        " pending_razorpay_subscription_id = NULL, pending_since = NULL WHERE tenant_id = %s",
    ):
        room.change(statement, tenant)


async def test_a_purchase_whose_answer_was_lost_is_adopted_once_it_is_paid(room: Room, tenant: str) -> None:
    subscription_id = await bought(room, tenant)
    forget(room, tenant)

    unpaid = await sync(room, tenant)
    room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card", deliver=False)
    answer = await sync(room, tenant, key="2")

    assert (unpaid.orphans, unpaid.differences) == (0, 0), "the customer's next click finds it"
    assert (answer.orphans, findings(room, tenant)) == (0, [])
    current = await room.current(tenant)
    assert (current.plan_code, current.subscription_id) == ("pro", subscription_id)
    assert (await room.balance(tenant))["subscription"] == 15_000
    assert (await sync(room, tenant, key="3")).differences == 0


async def test_a_purchase_that_was_paid_and_ended_before_its_answer_is_adopted_too(
    room: Room, tenant: str
) -> None:
    subscription_id = await bought(room, tenant)
    forget(room, tenant)
    room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card", deliver=False)
    room.sandbox.act(f"subscriptions/{subscription_id}/cancel", by="customer", deliver=False)

    answer = await sync(room, tenant)

    current = await room.current(tenant)
    assert (answer.orphans, current.plan_code, current.cancel_at_period_end) == (0, "pro", True)
    assert (await room.balance(tenant))["subscription"] == 15_000
    assert (await sync(room, tenant, key="2")).differences == 0


async def test_an_order_that_was_paid_unheard_of(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    failed = await room.buy_credits(tenant, key="another")
    room.sandbox.act(f"orders/{order.order_id}/pay", method="upi", deliver=False)
    room.sandbox.act(f"orders/{failed.order_id}/fail", method="upi", deliver=False)

    answer = await sync(room, tenant)

    assert answer.differences == 1
    assert (await room.balance(tenant))["permanent"] == order.credits
    assert (await sync(room, tenant, key="2")).differences == 0
    assert (await room.balance(tenant))["permanent"] == order.credits


async def test_money_that_went_back_unheard_of(room: Room, tenant: str) -> None:
    await paid(room, tenant)
    await room.buy_credits(tenant)
    [payment] = room.rows("SELECT id, amount_paise FROM payments WHERE tenant_id = %s", tenant)
    room.sandbox.act(f"payments/{payment['id']}/refund", amount=payment["amount_paise"] // 2, deliver=False)

    created = await sync(room, tenant)
    [refund] = room.sandbox.sdk.payment.fetch_multiple_refund(payment["id"])["items"]
    assert (created.differences, await room.balance(tenant)) == (1, {"subscription": 15_000, "permanent": 0})
    room.sandbox.act(f"refunds/{refund['id']}/process", deliver=False)
    processed = await sync(room, tenant, key="2")

    assert processed.differences == 1
    assert (await room.balance(tenant))["subscription"] == 7_500
    [ours] = room.rows("SELECT status FROM billing_refunds WHERE payment_id = %s", payment["id"])
    assert ours["status"] == "processed"
    assert (await sync(room, tenant, key="3")).differences == 0


async def test_a_dispute_that_was_lost_and_one_that_was_won_unheard_of(room: Room, tenant: str) -> None:
    for number, outcome in enumerate(("lost", "won")):
        each = f"{tenant}_{outcome}"
        await paid(room, each)
        [payment] = room.rows("SELECT id FROM payments WHERE tenant_id = %s", each)
        room.sandbox.act(f"payments/{payment['id']}/dispute", deliver=False)
        opened = await sync(room, each)
        assert (opened.differences, (await room.balance(each))["subscription"]) == (1, 15_000)
        [dispute] = room.rows("SELECT id, status FROM billing_disputes WHERE payment_id = %s", payment["id"])
        room.sandbox.act(f"disputes/{dispute['id']}/{outcome}", deliver=False)

        settled = await sync(room, each, key="2")

        assert settled.differences == 1
        assert (await room.balance(each))["subscription"] == (0, 15_000)[number]
        assert (await sync(room, each, key="3")).differences == 0


async def test_a_plan_changed_by_hand_is_put_right_where_a_subscription_lives(
    room: Room, tenant: str
) -> None:
    await paid(room, tenant)
    room.change("UPDATE subscriptions SET plan_id = 'business' WHERE tenant_id = %s", tenant)

    answer = await sync(room, tenant)

    assert (answer.differences, answer.tasks_queued) == (1, 1)
    assert (await room.current(tenant)).plan_code == "pro"


async def test_a_subscription_that_charges_for_another_plan_reaches_a_person(room: Room, tenant: str) -> None:
    subscription_id = await paid(room, tenant)
    [ours] = room.rows("SELECT provider_plan_id FROM provider_subscriptions WHERE id = %s", subscription_id)
    room.change(
        "UPDATE provider_subscriptions SET provider_plan_id = 'plan_Elsewhere0001' WHERE id = %s",
        subscription_id,
    )

    answer = await sync(room, tenant)

    alert = alerts(answer, tenant)["subscriptions.sync.wrong_plan"]
    assert alert.severity == alert_pb2.ALERT_SEVERITY_CRITICAL
    assert (alert.evidence["ours"], alert.evidence["theirs"]) == (
        "plan_Elsewhere0001",
        ours["provider_plan_id"],
    )
    assert (answer.differences, answer.tasks_queued) == (1, 0), "asking again would change nothing"


async def test_a_subscription_that_the_provider_does_not_know_reaches_a_person(
    room: Room, tenant: str
) -> None:
    subscription_id = await bought(room, tenant)
    room.change("UPDATE provider_subscriptions SET id = 'sub_Nowhere0000001' WHERE id = %s", subscription_id)

    answer = await sync(room, tenant)

    alert = alerts(answer, tenant)["subscriptions.sync.unknown_at_provider"]
    assert alert.evidence["subscription_id"] == "sub_Nowhere0000001"
    room.change("DELETE FROM provider_subscriptions WHERE id = 'sub_Nowhere0000001'")


async def test_a_provider_that_falls_silent_in_the_middle_is_told_and_what_was_done_is_kept(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = [f"{tenant}_{number}" for number in range(6)]
    for each in tenants:
        subscription_id = await bought(room, each)
        room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card", deliver=False)
    room.change("DELETE FROM walks")
    monkeypatch.setattr(known, "PAGE", 1)
    # The orphans of other tests are fetched first.
    skip = 2 + sum(
        len(each["observed"]["razorpaySubscriptionIds"])
        for each in room.rows(
            "SELECT observed FROM billing_integrity_reports"
            " WHERE check_type = 'orphan_provider_sub' AND resolved_at IS NULL"
        )
    )
    room.sandbox.set(
        "faults",
        kind="status",
        status=500,
        skip=skip,
        times=1000,
        method="GET",
        path="/v1/subscriptions/*",
    )
    cut = await sync(room, key=f"{tenant}:1")
    monkeypatch.undo()
    room.sandbox.http.delete("/_sandbox/faults")

    [alert] = [each for each in cut.alerts if each.key == "subscriptions.sync.provider_silent"]
    assert alert.severity == alert_pb2.ALERT_SEVERITY_CRITICAL
    whole = await sync(room, key=f"{tenant}:2")
    assert 2 <= cut.compared == int(alert.evidence["compared"]) < whole.compared
    room.clock.ahead = timedelta(hours=1)  # what was tried while the provider was away is due again
    await room.reconcile()
    assert "subscriptions.sync.provider_silent" not in {each.key for each in whole.alerts}
    assert {(await room.current(each)).plan_code for each in tenants} == {"pro"}


async def test_one_silence_is_told_and_the_rest_goes_on(room: Room, tenant: str) -> None:
    tenants = [f"{tenant}_{number}" for number in range(4)]
    for each in tenants:
        subscription_id = await bought(room, each)
        room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card", deliver=False)
    path = f"/v1/subscriptions/{subscription_id}"
    room.sandbox.set("faults", kind="status", status=502, times=1, method="GET", path=path)

    answer = await sync(room, key=tenant)
    await room.reconcile()

    [alert] = [each for each in answer.alerts if each.key == "subscriptions.sync.provider_silent"]
    assert (alert.severity, alert.evidence["silences"]) == (alert_pb2.ALERT_SEVERITY_WARNING, "1")
    plans = [(await room.current(each)).plan_code for each in tenants]
    assert plans == ["pro", "pro", "pro", "free"]
    await sync(room, tenants[-1])
    assert (await room.current(tenants[-1])).plan_code == "pro"


async def test_a_run_without_time_goes_on_where_it_stopped(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await bought(room, f"{tenant}_{number}")
    room.change("DELETE FROM walks")
    monkeypatch.setattr(known, "PAGE", 1)
    whole = (await sync(room, key=f"{tenant}:whole")).compared
    has_time = sync_run.Run.has_time

    def until_one_is_compared(run: sync_run.Run, share: float = 0.8) -> bool:
        run.finished = run.finished and run.compared == 0
        return run.compared == 0 and has_time(run, share)

    monkeypatch.setattr(sync_run.Run, "has_time", until_one_is_compared)
    first = await sync(room, key=f"{tenant}:1")
    [place] = room.rows("SELECT place FROM walks WHERE name = 'sync.known'")
    second = await sync(room, key=f"{tenant}:2")
    [further] = room.rows("SELECT place FROM walks WHERE name = 'sync.known'")
    monkeypatch.undo()

    assert "subscriptions.sync.unfinished" in {each.key for each in first.alerts}
    assert (first.compared, second.compared) == (1, 1)
    assert further["place"] > place["place"] > ""
    assert (await sync(room, key=f"{tenant}:3")).compared == whole, "round to where it had begun"


async def test_without_keys_nothing_is_compared_and_that_is_told(
    room: Room, database: Database, tenant: str
) -> None:
    razorpay = Razorpay(api_url=f"http://127.0.0.1:{free_port()}", key_id="", key_secret="")
    async with (
        serving(database, room.ledger.address, razorpay, MovableClock()) as (address, _, _),
        open_channel(address, SecretStr(SECRETS["room_secret"])) as channel,
    ):
        answer = await pb_grpc.SubscriptionsMaintenanceServiceStub(channel).SyncWithProvider(
            pb.SyncWithProviderRequest(idempotency_key="job:sync_provider:keyless")
        )

    assert (answer.compared, [alert.key for alert in answer.alerts]) == (
        0,
        ["subscriptions.sync.not_configured"],
    )
    async with open_channel(room.address, SecretStr(SECRETS["operator_secret"])) as channel:
        with pytest.raises(PermissionDenied):
            await pb_grpc.SubscriptionsMaintenanceServiceStub(channel).SyncWithProvider(
                pb.SyncWithProviderRequest(idempotency_key="job:sync_provider:operator")
            )


def test_a_window_of_the_lists_overlaps_the_one_before() -> None:
    assert timedelta(0) < strangers.OVERLAP < strangers.WINDOW
