"""To a cheaper plan or another cycle: authorised now, begun when what is paid is over, undone until it was told."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.subscriptions.catalogue import load_catalog
from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import PRO_PAISE, STARTER_PAISE, Life, moment, refused, selling, with_plan

LEAD = timedelta(hours=48)


async def test_a_downgrade_that_was_authorised_follows_what_is_paid(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    travel.forward(days=9)
    quote = await life.preview("starter")
    assert (quote.kind, quote.total_paise, quote.refund_paise) == (pb.CHANGE_KIND_DOWNGRADE, 0, 0)
    assert (quote.credits_granted, quote.credits_revoked) == (3_000, 0)
    assert moment(quote.effective_at) == end

    begun = await life.change("starter", token=quote.quote_token)
    new = begun.checkout.subscription_id
    assert moment(begun.checkout.first_charge_at) == moment(begun.pending_change.effective_at) == end
    assert life.provider(new)["start_at"] == int(end.timestamp())
    await life.act(new, "authenticate", method="card")
    await life.assert_stands("pro", razorpay_subscription_id=old, cancel_at_period_end=True)
    assert life.at_provider() == {old: "active", new: "authenticated"}

    await life.pass_until(end - LEAD, hours=-1)
    await life.undo_is_possible()
    await life.pass_until(end - LEAD, hours=0.1)
    # The provider knows, and shows it nowhere.
    assert life.at_provider() == {old: "active", new: "authenticated"}
    async with refused("WRONG_STATUS", status="ending"):
        await life.undo()
    await life.assert_stands("pro")

    await life.pass_until(end, hours=1)
    await life.assert_stands(
        "starter",
        razorpay_subscription_id=new,
        pending_kind=None,
        cancel_at_period_end=False,
        billing_cycle="monthly",
    )
    assert life.at_provider() == {old: "cancelled", new: "active"}
    assert [payment["amount_paise"] for payment in life.payments()] == [PRO_PAISE, STARTER_PAISE]
    assert (life.captured(), life.refunds(), life.revocations()) == (2, [], [])
    await life.pass_time(days=3)
    assert await life.credits() == 3_000
    assert life.findings() == []


async def test_between_the_end_and_the_first_charge_the_new_plan_holds(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    begun = await life.change("starter")
    new = begun.checkout.subscription_id
    await life.act(new, "authenticate", method="upi")
    await life.pass_until(end, hours=-20)

    await life.pass_until(end, hours=1, tick=False)  # banks take a day or more

    await life.assert_stands("starter", razorpay_subscription_id=new)
    assert old not in life.living()
    async with refused("WRONG_STATUS"):
        await life.pause()  # the provider would cancel what it has not charged yet
    assert life.living() == [new]
    await life.pass_time(hours=30)
    await life.assert_stands("starter", razorpay_subscription_id=new)
    assert life.captured() == 2


async def test_a_downgrade_that_nobody_authorised_ends_on_free(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    begun = await life.change("starter")
    new = begun.checkout.subscription_id

    await life.pass_until(end, hours=-1)
    await life.assert_stands("pro", pending_kind="downgrade")
    await life.pass_until(end, hours=0.5)

    await life.assert_stands("free", "canceled", razorpay_subscription_id=None, pending_kind=None)
    assert life.at_provider() == {old: "cancelled", new: "expired"}
    await life.pass_time(days=40)
    assert life.captured() == 1
    await life.assert_stands("free", "canceled")


@pytest.mark.parametrize("authorised", [True, False])
async def test_a_downgrade_is_undone_before_the_provider_knows(
    room: Room, tenant: str, travel: Travel, authorised: bool
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    begun = await life.change("starter")
    new = begun.checkout.subscription_id
    if authorised:
        await life.act(new, "authenticate", method="card")

    undone = await life.undo()

    assert undone.cancelled.kind == pb.CHANGE_KIND_DOWNGRADE
    await life.assert_stands("pro", cancel_at_period_end=False, pending_kind=None)
    assert life.at_provider() == {old: "active", new: "cancelled"}
    await life.pass_until(end, hours=2)
    await life.assert_stands("pro", razorpay_subscription_id=old)
    assert (life.captured(), life.living()) == (2, [old])


@pytest.mark.parametrize(("before", "after"), [("monthly", "yearly"), ("yearly", "monthly")])
async def test_a_switch_of_cycle_begins_with_the_next_period(
    room: Room, tenant: str, travel: Travel, before: str, after: str
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("starter", before)
    end = life.row()["current_period_end"]
    quote = await life.preview("starter", after)
    assert (quote.kind, quote.total_paise, quote.credits_revoked) == (pb.CHANGE_KIND_CYCLE_SWITCH, 0, 0)

    begun = await life.switch(after, token=quote.quote_token)
    new = begun.checkout.subscription_id
    assert begun.quote == quote
    assert begun.pending_change.cycle == catalog_pb2.BillingCycle.Value(f"BILLING_CYCLE_{after.upper()}")
    await life.act(new, "authenticate", method="card")
    await life.pass_until(end, hours=-24)
    await life.pass_until(end, hours=1)

    await life.assert_stands("starter", billing_cycle=after, razorpay_subscription_id=new)
    assert life.at_provider() == {old: "cancelled", new: "active"}
    amounts = {"monthly": STARTER_PAISE, "yearly": 588_820}
    assert [payment["amount_paise"] for payment in life.payments()] == [amounts[before], amounts[after]]
    credits = {"monthly": 3_000, "yearly": 36_000}
    await life.pass_time(days=3)  # those of the old period end with it, and its grace
    assert await life.credits() == credits[after]


async def test_a_trial_is_downgraded_at_its_end_without_a_charge_of_the_old_plan(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro", trial=True)
    end = life.row()["trial_end"]
    begun = await life.change("starter")
    new = begun.checkout.subscription_id
    assert moment(begun.checkout.first_charge_at) == end
    await life.act(new, "authenticate", method="card")

    await life.pass_until(end, hours=-1)
    await life.assert_stands("pro", "trialing")
    assert life.at_provider() == {old: "cancelled", new: "authenticated"}
    await life.pass_until(end, hours=1)

    await life.assert_stands("starter", razorpay_subscription_id=new)
    assert [payment["amount_paise"] for payment in life.payments()] == [STARTER_PAISE]


async def test_the_first_charge_of_a_downgrade_may_fail(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    begun = await life.change("starter")
    new = begun.checkout.subscription_id
    await life.act(new, "authenticate", method="card")
    room.sandbox.act(f"subscriptions/{new}/outcomes", outcomes=["fail"])
    await life.pass_until(end, hours=-24)
    await life.pass_until(end, hours=1)

    await life.assert_stands("starter", "past_due", razorpay_subscription_id=new)
    assert old not in life.living()
    await life.pass_time(days=1.1)
    await life.assert_stands("starter", past_due_since=None)
    assert life.captured() == 2


async def test_too_late_in_the_period_a_change_waits_for_the_renewal(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("pro")
    end = life.row()["current_period_end"]
    await life.pass_until(end, hours=-0.5)
    async with refused("WRONG_STATUS"):
        await life.preview("starter")
    async with refused("WRONG_STATUS"):
        await life.switch("yearly")
    assert life.row()["pending_kind"] is None


async def test_a_quote_holds_until_something_changes(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("starter")
    quote = await life.preview("pro")
    await life.spend(1_000)  # what is left over does not change what was quoted
    async with refused("QUOTE_STALE"):
        await life.change("business", token=quote.quote_token)
    async with refused("QUOTE_STALE"):
        await life.change("pro", "yearly", token=quote.quote_token)
    travel.forward(hours=0.51)
    async with refused("QUOTE_STALE", cause="expired"):
        await life.change("pro", token=quote.quote_token)

    quote = await life.preview("pro")
    [payment] = life.payments()
    await life.refund(payment["id"], 10_000)
    async with refused("QUOTE_STALE"):
        await life.change("pro", token=quote.quote_token)

    await life.pass_until(life.row()["current_period_end"], hours=-0.1)
    quote = await life.preview("pro")
    await life.pass_time(hours=0.2)  # renewed
    assert len(life.payments()) == 2
    async with refused("QUOTE_STALE"):
        await life.change("pro", token=quote.quote_token)
    assert life.at_provider() == {sub: "active"}
    await life.assert_stands("starter", pending_kind=None)

    quote = await life.preview("pro")
    assert (await life.change("pro", token=quote.quote_token)).quote == quote


async def test_a_quote_ends_with_the_catalogue_and_a_begun_change_keeps_its_price(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("starter")
    old = await life.preview("pro")
    async with selling(room, with_plan("pro", price_monthly_paise=249_900)):
        async with refused("QUOTE_STALE"):
            await life.change("pro", token=old.quote_token)
        quote = await life.preview("pro")
        assert quote.catalog_version != old.catalog_version
        room.sandbox.set(
            "faults", kind="status", status=502, method="POST", path="/v1/subscriptions", exact=True
        )
        async with refused("PROVIDER_UNAVAILABLE"):
            await life.change("pro", token=quote.quote_token)
    travel.forward(hours=1)

    begun = await life.change("pro", token=quote.quote_token)

    assert begun.quote == quote
    assert begun.checkout.total_paise == quote.total_paise == 249_900 + 44_982
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    assert life.payments()[-1]["amount_paise"] == quote.total_paise


async def test_who_has_a_plan_that_is_no_longer_sold_goes_down_from_it_as_others_do(
    room: Room, tenant: str
) -> None:
    life = Life(room, tenant)
    await life.subscribe("pro")
    catalog = load_catalog()
    rest = {code: plan for code, plan in catalog.plans.items() if code != "pro"}
    async with selling(room, replace(catalog, plans=rest)):
        assert (await life.preview("starter")).kind == pb.CHANGE_KIND_DOWNGRADE
        assert (await life.preview("business")).kind == pb.CHANGE_KIND_UPGRADE
        async with refused("UNKNOWN_PLAN", plan_code="pro"):
            await life.switch("yearly")


def forged(**of: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(of).encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "é" * 40,
        "bnVsbA==",
        "WyJhIl0=",
        base64.urlsafe_b64encode(b"[" * 1_200).decode(),
        forged(quoted_at="2026-11-20T10:00:00", digest="a" * 64),
        forged(quoted_at="0001-01-01T00:00:00+14:00", digest="a"),
        forged(quoted_at="9999-12-31T23:59:59-14:00", digest="a"),
        forged(quoted_at=5, digest="a"),
        forged(digest="a"),
    ],
)
async def test_a_forged_token_is_no_quote(room: Room, tenant: str, token: str) -> None:
    life = Life(room, tenant)
    await life.subscribe("starter")
    async with refused("QUOTE_STALE"):
        await life.change("pro", token=token)
    assert life.row()["pending_kind"] is None


@pytest.mark.parametrize("digest", ["a" * 64, "ä", "\ud800", 7, None])
async def test_a_token_of_this_moment_needs_our_signature(room: Room, tenant: str, digest: Any) -> None:
    life = Life(room, tenant)
    await life.subscribe("starter")
    quote = await life.preview("pro")
    told = json.loads(base64.urlsafe_b64decode(quote.quote_token))
    async with refused("QUOTE_STALE"):
        await life.change("pro", token=forged(quoted_at=told["quoted_at"], digest=digest))
    later = forged(**told | {"quoted_at": told["quoted_at"].replace(":", ":", 1)[:-6] + "+05:30"})
    async with refused("QUOTE_STALE"):
        await life.change("pro", token=later)
    assert len(life.living()) == 1


async def test_another_tenants_quote_is_none_of_ours(room: Room, tenant: str) -> None:
    theirs, ours = Life(room, f"{tenant}-a"), Life(room, f"{tenant}-b")
    await theirs.subscribe("starter")
    await ours.subscribe("starter")
    quote = await theirs.preview("pro")
    async with refused("QUOTE_STALE"):
        await ours.change("pro", token=quote.quote_token)


async def test_two_different_changes_at_once_leave_one(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    end = life.row()["current_period_end"]

    await asyncio.gather(
        life.change("business", key="up"), life.change("starter", key="down"), return_exceptions=True
    )
    await life.reconcile()

    row = life.row()
    pending = row["pending_razorpay_subscription_id"]
    assert sorted(life.living()) == sorted([old, pending])
    assert row["cancel_at_period_end"] == (row["pending_kind"] == "downgrade")
    await life.undo()
    await life.pass_until(end, hours=2)
    await life.assert_stands("pro", razorpay_subscription_id=old)
    assert life.living() == [old]


@pytest.mark.parametrize("undo", [True, False])
async def test_a_successor_that_the_customer_cancels_leaves_the_scheduled_end(
    room: Room, tenant: str, travel: Travel, undo: bool
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    begun = await life.change("starter")
    new = begun.checkout.subscription_id
    await life.act(new, "authenticate", method="upi")
    await life.act(new, "cancel")
    await life.assert_stands("pro", pending_kind="cancellation", cancel_at_period_end=True)

    if undo:
        await life.undo()
    await life.pass_until(end, hours=-20)
    await life.pass_until(end, hours=1)

    if undo:
        await life.assert_stands("pro", razorpay_subscription_id=old)
        assert life.at_provider() == {old: "active", new: "cancelled"}
    else:
        await life.assert_stands("free", "canceled")
        assert life.at_provider() == {old: "cancelled", new: "cancelled"}
    assert life.captured() == 1 + undo


async def test_a_downgrade_survives_that_the_customer_cancels_the_old_mandate(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro", method="upi")
    end = life.row()["current_period_end"]
    begun = await life.change("starter")
    new = begun.checkout.subscription_id
    await life.act(new, "authenticate", method="upi")
    await life.act(old, "cancel")
    await life.assert_stands("pro", pending_kind="downgrade", razorpay_subscription_id=old)

    await life.pass_until(end, hours=-0.01)
    await life.assert_stands("pro")
    await life.pass_until(end, hours=1)

    await life.assert_stands("starter", razorpay_subscription_id=new)
    assert (life.captured(), life.refunds()) == (2, [])


async def test_a_renewal_that_slips_in_beside_the_successor_goes_back_in_full(
    room: Room, tenant: str, travel: Travel
) -> None:
    """The provider was away from two days before the end until after it."""
    life = Life(room, tenant, travel)
    old = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    begun = await life.change("starter")
    new = begun.checkout.subscription_id
    await life.act(new, "authenticate", method="card")
    room.sandbox.set(
        "faults", kind="status", status=502, method="POST", path="/v1/subscriptions/*/cancel", times=50
    )
    await life.pass_until(end, hours=-24)
    await life.pass_until(end, hours=1)
    renewal = [row for row in life.payments() if row["razorpay_subscription_id"] == old][-1]
    room.sandbox.http.delete("/_sandbox/faults")
    await life.pass_time(hours=5)
    await life.pass_time(hours=5)

    await life.assert_stands("starter", razorpay_subscription_id=new)
    assert life.at_provider() == {old: "cancelled", new: "active"}
    assert renewal["amount_paise"] == PRO_PAISE
    assert life.refunded(renewal["id"]) == [PRO_PAISE]
    assert sum(row["credits"] for row in life.revocations()) == 15_000
    await life.pass_time(days=3)
    assert await life.credits() == 3_000
