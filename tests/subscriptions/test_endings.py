"""What ends: at the end of what is paid, now, in the customer's own app, or by a new purchase."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import POSTS, PRO_PAISE, STARTER_PAISE, Life, moment, refused

LEAD = timedelta(hours=48)


async def test_at_the_end_of_the_period_free_begins_and_nothing_is_charged(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    end = life.row()["current_period_end"]

    ended, again = await life.cancel("at_period_end"), await life.cancel("at_period_end")

    assert (ended.status, moment(ended.effective_at)) == (pb.SUBSCRIPTION_STATUS_ACTIVE, end)
    assert (ended.replayed, again.replayed, again.effective_at) == (False, True, ended.effective_at)
    other = await life.cancel("at_period_end", key="other", reason="asked twice")
    assert other.effective_at == ended.effective_at
    now = await life.assert_stands("pro", cancel_at_period_end=True, pending_kind="cancellation")
    assert (now.pending_change.kind, now.pending_change.plan_code) == (pb.CHANGE_KIND_CANCELLATION, "free")
    assert moment(now.pending_change.effective_at) == end
    async with refused("CHANGE_PENDING", kind="cancellation"):
        await life.preview("business")

    await life.pass_until(end - LEAD, hours=-0.1)
    await life.undo_is_possible()
    await life.pass_until(end - LEAD, hours=0.1)
    async with refused("WRONG_STATUS", status="ending"):
        await life.undo()
    assert life.at_provider() == {sub: "active"}
    await life.pass_until(end, hours=-0.01)
    await life.assert_stands("pro")
    # Exactly at the end, whether or not the provider has said so.
    await life.pass_until(end, hours=0.001, tick=False)
    await life.assert_stands(
        "free", "canceled", razorpay_subscription_id=None, pending_kind=None, current_period_end=None
    )
    assert life.at_provider() == {sub: "cancelled"}
    await life.pass_time(days=35)
    assert (life.captured(), life.refunds(), await life.credits()) == (1, [], 0)
    changed = [row["metadata"] for row in life.audits("subscription.changed")]
    assert [row["reason"] for row in changed if row["after"].get("cancel_at_period_end")] == ["too dear"]


async def test_an_end_that_is_undone_in_time_renews(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    await life.cancel("at_period_end")
    await life.pass_until(end - LEAD, hours=-0.1)

    undone = await life.undo()

    assert undone.cancelled.kind == pb.CHANGE_KIND_CANCELLATION
    await life.assert_stands("pro", cancel_at_period_end=False, pending_kind=None)
    await life.pass_until(end, hours=2)
    await life.assert_stands("pro", razorpay_subscription_id=sub)
    assert life.captured() == 2
    # A new end of the next period is a new one, with a task of its own.
    await life.cancel("at_period_end", key="next")
    await life.pass_until(life.row()["current_period_end"], hours=-24)
    await life.pass_until(life.row()["current_period_end"], hours=1)
    await life.assert_stands("free", "canceled")
    assert life.captured() == 2


async def test_changing_to_free_is_cancelling(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("pro")
    end = life.row()["current_period_end"]
    quote = await life.preview("free", "unspecified")
    assert (quote.kind, quote.total_paise, quote.refund_paise) == (pb.CHANGE_KIND_CANCELLATION, 0, 0)
    begun = await life.change("free", token=(await life.preview("free")).quote_token)
    again = await life.change("free", token=begun.quote.quote_token)
    assert not begun.HasField("checkout")
    assert (begun.pending_change.kind, again.replayed) == (pb.CHANGE_KIND_CANCELLATION, True)
    await life.pass_until(end, hours=-20)
    await life.pass_until(end, hours=1)
    await life.assert_stands("free", "canceled")
    assert life.captured() == 1


@pytest.mark.parametrize("lost", [{"kind": "drop"}, {"kind": "status", "status": 502}])
async def test_now_is_now_whatever_the_provider_answers(
    room: Room, tenant: str, travel: Travel, lost: dict[str, Any]
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    room.sandbox.set("faults", method="POST", path="/v1/subscriptions/*/cancel", times=2, **lost)

    ended, again = await life.cancel(), await life.cancel()

    assert (ended.status, again.replayed) == (pb.SUBSCRIPTION_STATUS_CANCELED, True)
    assert await life.posts() == POSTS["free"]
    async with refused("IDEMPOTENCY_KEY_REUSED", field="mode"):
        await life.cancel("at_period_end")
    async with refused("NO_SUBSCRIPTION"):
        await life.cancel(key="other")
    await life.pass_time(hours=2)
    await life.pass_time(hours=2)
    await life.assert_stands("free", "canceled")
    assert life.at_provider() == {sub: "cancelled"}
    assert (life.refunds(), await life.credits()) == ([], 15_000)  # nothing is refunded, nothing taken

    # And back again.
    new = await life.buy("starter", key="again")
    await life.assert_stands("starter", razorpay_subscription_id=new)
    assert life.living() == [new]


async def test_now_takes_a_pending_change_along(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    begun = await life.change("starter")
    new = begun.checkout.subscription_id
    await life.act(new, "authenticate", method="card")
    async with refused("CHANGE_PENDING", kind="downgrade"):
        await life.cancel("at_period_end", key="later")

    await life.cancel()
    await life.reconcile()

    await life.assert_stands("free", "canceled", pending_kind=None)
    assert life.at_provider() == {old: "cancelled", new: "cancelled"}
    await life.pass_time(days=40)
    assert life.captured() == 1


@pytest.mark.parametrize("mode", ["now", "at_period_end"])
async def test_while_a_charge_fails_there_is_nothing_to_run_out(
    room: Room, tenant: str, travel: Travel, mode: str
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    await life.pass_until(life.row()["current_period_end"], hours=1, tick=False)
    await life.act(sub, "fail")
    await life.assert_stands("pro", "past_due")
    async with refused("WRONG_STATUS", status="past_due"):
        await life.change("business")
    async with refused("WRONG_STATUS", status="past_due"):
        await life.preview("free")  # a period that is not paid has no end to wait for

    ended = await life.cancel(mode)

    assert ended.status == pb.SUBSCRIPTION_STATUS_CANCELED
    await life.reconcile()
    await life.assert_stands("free", "canceled", past_due_since=None)
    assert life.at_provider() == {sub: "cancelled"}
    await life.pass_time(days=10)
    assert life.captured() == 1


@pytest.mark.parametrize("mode", ["now", "at_period_end"])
async def test_a_trial_that_is_cancelled_never_charges(
    room: Room, tenant: str, travel: Travel, mode: str
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro", trial=True)
    end = life.row()["trial_end"]
    assert await life.credits() == 500

    ended = await life.cancel(mode)

    if mode == "now":
        assert ended.status == pb.SUBSCRIPTION_STATUS_CANCELED
        await life.assert_stands("free", "canceled", has_used_trial=True)
    else:
        assert (ended.status, moment(ended.effective_at)) == (pb.SUBSCRIPTION_STATUS_TRIALING, end)
        await life.pass_until(end, hours=-40)
        # Cancelled there outright; here the plan stays to the end of the trial.
        assert life.at_provider() == {sub: "cancelled"}
        await life.assert_stands("pro", "trialing")
        await life.pass_until(end, hours=-0.01)
        await life.assert_stands("pro", "trialing")
        await life.pass_until(end, hours=0.01)
        await life.assert_stands("free", "canceled", trial_end=None, has_used_trial=True)
    await life.pass_time(days=40)
    assert (life.captured(), life.payments(), life.living()) == (0, [], [])
    begun = await room.checkout(tenant, plan="pro", key="second trial", trial=True)
    assert not begun.checkout.HasField("first_charge_at")


async def test_cancelled_in_the_customers_app_what_is_paid_is_kept_to_its_end(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro", method="upi")
    end = life.row()["current_period_end"]
    travel.forward(days=7)
    await life.act(sub, "cancel")

    await life.assert_stands("pro", cancel_at_period_end=True, current_period_end=end, pending_kind=None)
    async with refused("WRONG_STATUS", status="ended"):
        await life.change("business")
    async with refused("WRONG_STATUS", status="ended"):
        await life.pause()
    async with refused("NO_PENDING_CHANGE"):
        await life.undo()
    ended = await life.cancel("at_period_end")
    assert moment(ended.effective_at) == end
    await life.pass_until(end, hours=-0.01)
    await life.assert_stands("pro")
    await life.pass_until(end, hours=0.01)
    await life.assert_stands("free", "canceled")
    assert life.captured() == 1


async def test_a_checkout_after_that_starts_when_the_paid_period_is_over(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro", method="upi")
    end = life.row()["current_period_end"]
    travel.forward(days=7)
    await life.act(old, "cancel")

    new = await life.buy("starter", key="follow", method="upi")

    assert life.provider(new)["start_at"] == int(end.timestamp())
    await life.assert_stands("pro", razorpay_subscription_id=old)
    await life.pass_until(end, hours=-0.01)
    await life.assert_stands("pro")
    await life.pass_until(end, hours=1)
    await life.assert_stands("starter", razorpay_subscription_id=new, cancel_at_period_end=False)
    assert [payment["amount_paise"] for payment in life.payments()] == [PRO_PAISE, STARTER_PAISE]
    assert (life.refunds(), life.captured()) == ([], 2)


async def test_after_the_provider_was_told_a_checkout_follows_too(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    await life.cancel("at_period_end")
    async with refused("ALREADY_SUBSCRIBED"):
        await life.buy("pro", key="too early")
    await life.pass_until(end, hours=-30)

    new = await life.buy("pro", key="stay after all")

    await life.assert_stands("pro", razorpay_subscription_id=old)
    await life.pass_until(end, hours=1)
    await life.assert_stands("pro", razorpay_subscription_id=new, cancel_at_period_end=False)
    assert life.at_provider() == {old: "cancelled", new: "active"}
    assert (life.captured(), life.refunds()) == (2, [])
    assert await life.credits() == 30_000  # those of the old period outlive it by two days
    await life.pass_time(days=2.1)
    assert await life.credits() == 15_000


async def test_who_comes_back_from_free_buys_as_anybody(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro", trial=True)
    await life.cancel()
    await life.pass_time(days=30)

    new = await life.buy("pro", "yearly", key="again", trial=True)

    await life.assert_stands("pro", razorpay_subscription_id=new, billing_cycle="yearly", trial_end=None)
    assert life.at_provider() == {old: "cancelled", new: "active"}
    assert await life.credits() == 12 * 15_000


async def test_a_checkout_while_past_due_replaces_what_fails(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    await life.pass_until(life.row()["current_period_end"], hours=1, tick=False)
    await life.act(old, "fail")
    await life.assert_stands("pro", "past_due")

    new = await life.buy("pro", key="with another card")
    await life.reconcile()

    await life.assert_stands("pro", razorpay_subscription_id=new, past_due_since=None)
    assert life.at_provider() == {old: "cancelled", new: "active"}
    assert (life.captured(), life.refunds()) == (2, [])


async def test_a_charge_of_what_was_cancelled_now_gives_what_it_paid_for(
    room: Room, tenant: str, travel: Travel
) -> None:
    """The bank had begun it before we cancelled, and told of it after."""
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    await life.pass_until(life.row()["current_period_end"], hours=1, tick=False)
    late = room.sandbox.act(f"subscriptions/{sub}/charge")
    await life.cancel()
    await life.assert_stands("free", "canceled")

    await life.tell(late)
    await life.reconcile()

    await life.assert_stands("pro", cancel_at_period_end=True)
    assert life.at_provider() == {sub: "cancelled"}
    end = life.payments()[-1]["period_end"]
    await life.pass_until(end, hours=0.1)
    await life.assert_stands("free", "canceled")
    assert life.captured() == len(life.payments()) == 2


async def test_a_charge_that_we_hear_of_after_its_period_is_found_and_its_credits_live(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    first_end = life.row()["current_period_end"]
    await life.pass_until(first_end, hours=1, tick=False)
    late = room.sandbox.act(f"subscriptions/{sub}/charge")
    await life.pass_time(days=33, tick=False)

    await life.tell(late)
    await life.reconcile()

    assert life.findings() == ["late_charge"]
    assert await life.credits() == 15_000
    payment = life.payments()[-1]
    [grant] = room.rows("SELECT * FROM credit_grants WHERE payment_id = %s", payment["id"])
    assert grant["expires_at"] - room.clock() > timedelta(days=27)
    assert payment["period_end"] < room.clock()


async def test_a_renewal_that_slips_in_before_a_scheduled_end_is_the_last(
    room: Room, tenant: str, travel: Travel
) -> None:
    """The provider was away when it had to be told: what it charged is kept to its end, and no more follows."""
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    await life.cancel("at_period_end")
    room.sandbox.set(
        "faults", kind="status", status=502, method="POST", path="/v1/subscriptions/*/cancel", times=50
    )
    await life.pass_until(end, hours=-24)
    await life.pass_until(end, hours=1)
    room.sandbox.http.delete("/_sandbox/faults")
    await life.pass_time(hours=5)
    await life.pass_time(hours=5)

    renewal = life.payments()[-1]
    [told] = room.rows(
        "SELECT severity, observed FROM billing_integrity_reports"
        " WHERE tenant_id = %s AND check_type = 'charged_after_scheduled_end'",
        tenant,
    )
    assert (told["severity"], told["observed"]["paymentId"]) == ("critical", renewal["id"])
    await life.assert_stands(
        "pro",
        cancel_at_period_end=True,
        current_period_end=renewal["period_end"],
        pending_effective_at=renewal["period_end"],
    )
    await life.pass_until(renewal["period_end"], hours=1)
    await life.assert_stands("free", "canceled")
    assert (life.at_provider(), life.captured()) == ({sub: "cancelled"}, 2)
