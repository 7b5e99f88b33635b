"""To a dearer plan: pending until paid, never two live, the rest of the old period goes back as quoted."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from billing.ledger.v1 import ledger_pb2
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from google.protobuf import duration_pb2

from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import (
    BUSINESS_PAISE,
    PRO_PAISE,
    STARTER_PAISE,
    Life,
    moment,
    refused,
)

QUOTE_VALID = timedelta(minutes=30)


async def verify(life: Life, subscription_id: str, payment_id: str, intent_id: str) -> int:
    signed = life.room.sandbox.set(
        "checkout_signature", payment_id=payment_id, subscription_id=subscription_id
    )
    answer = await life.room.product.VerifyPayment(
        pb.VerifyPaymentRequest(
            tenant_id=life.tenant,
            idempotency_key=f"verify:{payment_id}",
            intent_id=intent_id,
            payment_id=payment_id,
            signature=signed["razorpay_signature"],
        )
    )
    return int(answer.status)


def payment_in(deliveries: list[dict[str, Any]]) -> str:
    [payment_id] = {
        delivery["parsed"]["payload"]["payment"]["entity"]["id"]
        for delivery in deliveries
        if "payment" in delivery["parsed"]["payload"]
    }
    return str(payment_id)


def share(whole: int, start: Any, end: Any, since: Any) -> int:
    """The part for the time after a moment, by whole seconds, rounded down."""
    return whole * int((end - since).total_seconds()) // int((end - start).total_seconds())


@pytest.mark.parametrize("first", ["webhook", "verify"])
async def test_an_upgrade_gives_back_the_rest_of_the_old_period_exactly_as_quoted(
    room: Room, tenant: str, travel: Travel, first: str
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("starter")
    [paid] = life.payments()
    travel.forward(days=11, hours=5)
    await life.spend(400)

    quote = await life.preview("pro")

    at = moment(quote.expires_at) - QUOTE_VALID
    assert quote.refund_paise == share(STARTER_PAISE, paid["period_start"], paid["period_end"], at)
    assert quote.credits_revoked == share(3_000, paid["period_start"], paid["period_end"], at)
    assert (quote.kind, quote.plan_code) == (pb.CHANGE_KIND_UPGRADE, "pro")
    assert (quote.amount_paise, quote.tax_paise, quote.total_paise) == (199_900, 35_982, PRO_PAISE)
    assert quote.credits_granted == 15_000
    assert not quote.HasField("effective_at")

    begun = await life.change("pro", token=quote.quote_token)
    new = begun.checkout.subscription_id
    assert begun.quote == quote
    assert (begun.pending_change.kind, begun.pending_change.subscription_id) == (pb.CHANGE_KIND_UPGRADE, new)
    assert begun.checkout.total_paise == PRO_PAISE
    # Nothing has happened: the modal may be closed.
    await life.assert_stands("starter", razorpay_subscription_id=old, pending_kind="upgrade")
    assert life.at_provider() == {old: "active", new: "created"}
    assert await life.credits() == 2_600

    travel.forward(hours=20)  # the customer takes a day to pay what was quoted
    told = room.sandbox.act(f"subscriptions/{new}/pay", method="card")
    payment_id = payment_in(told)
    if first == "webhook":
        await life.tell(told)
    assert await verify(life, new, payment_id, begun.checkout.intent_id) == pb.VERIFY_STATUS_VERIFIED
    await life.tell(told)
    await life.hear()
    await life.reconcile()

    await life.assert_stands(
        "pro", razorpay_subscription_id=new, pending_kind=None, cancel_at_period_end=False
    )
    assert life.at_provider() == {old: "cancelled", new: "active"}
    assert life.refunded(paid["id"]) == [quote.refund_paise]
    [refund] = life.refunds()
    assert (refund["kind"], refund["status"], refund["amount_paise"]) == (
        "proration",
        "processed",
        quote.refund_paise,
    )
    [revoked] = life.revocations()
    assert (revoked["cause"], revoked["credits"]) == ("proration", quote.credits_revoked)
    # 400 were spent of the share that stays.
    assert await life.credits() == 15_000 + 3_000 - 400 - quote.credits_revoked
    assert life.credit_notes() == [quote.refund_paise]
    assert life.captured() == len(life.payments()) == 2
    assert [audit["actor_id"] for audit in life.audits("upgrade.begun")] == ["product"]
    assert life.findings() == []

    # Whatever the provider tells of that refund afterwards takes nothing again.
    await life.hear("refund.created")
    await life.hear()
    await life.reconcile()
    assert len(life.revocations()) == len(life.refunds()) == 1


async def test_credits_that_were_spent_are_taken_of_the_new_ones_and_held_ones_when_they_return(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("starter")
    travel.forward(days=6)
    await life.spend(2_500)
    held = await room.ledger.service.PlaceHold(
        ledger_pb2.PlaceHoldRequest(
            tenant_id=tenant,
            idempotency_key="hold",
            credits=300,
            reason="work",
            ttl=duration_pb2.Duration(seconds=3_600),
        )
    )
    quote = await life.preview("pro")
    assert quote.credits_revoked > 2_000

    begun = await life.change("pro", token=quote.quote_token)
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    await life.reconcile()

    # 3,000 less what was spent and what is held are taken at once; the held ones are claimed.
    spent = quote.credits_revoked - 200 - 300
    assert await life.credits() == 15_000 - spent
    assert [each["amount_paise"] for each in life.refunds()] == [quote.refund_paise]
    # What comes back is what was claimed.
    await room.ledger.service.VoidHold(
        ledger_pb2.VoidHoldRequest(tenant_id=tenant, idempotency_key="void", hold_id=held.hold.id)
    )
    assert await life.credits() == 15_000 - spent
    await life.assert_stands("pro")


async def test_closing_the_modal_changes_nothing_and_leaves_the_way_free(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    old = await life.subscribe("starter")
    begun = await life.change("pro")
    await life.act(begun.checkout.subscription_id, "fail")
    await life.assert_stands("starter", razorpay_subscription_id=old)

    async with refused("CHANGE_PENDING", kind="upgrade"):
        await life.preview("business")
    async with refused("CHANGE_PENDING", kind="upgrade"):
        await life.change("business", key="other")
    async with refused("CHANGE_PENDING", kind="upgrade"):
        await life.switch("yearly")
    undone = await life.undo()
    again = await life.undo()

    assert undone.cancelled == again.cancelled == begun.pending_change
    assert (undone.replayed, again.replayed) == (False, True)
    assert life.at_provider() == {old: "active", begun.checkout.subscription_id: "cancelled"}
    await life.assert_stands("starter", pending_kind=None, pending_plan_id=None, cancel_at_period_end=False)
    async with refused("NO_PENDING_CHANGE"):
        await life.undo("later")
    async with refused("CHECKOUT_CLOSED"):
        await life.change("pro")
    assert (
        len([row for row in life.audits("subscription.changed") if "cancelled" in row["metadata"]["reason"]])
        == 1
    )


async def test_paid_in_the_second_in_which_it_was_undone_it_stays_paid(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    old = await life.subscribe("starter")
    begun = await life.change("pro")
    new = begun.checkout.subscription_id
    told = room.sandbox.act(f"subscriptions/{new}/pay", method="card")

    await life.undo()
    await life.tell(told)
    await life.reconcile()

    await life.assert_stands("pro", razorpay_subscription_id=new)
    assert life.at_provider() == {old: "cancelled", new: "active"}
    assert len(life.refunds()) == 1


async def test_an_upgrade_from_a_trial_ends_it_and_refunds_nothing(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("starter", trial=True)
    await life.assert_stands("starter", "trialing")
    travel.forward(days=3)
    quote = await life.preview("pro")
    assert (quote.kind, quote.refund_paise, quote.credits_revoked) == (pb.CHANGE_KIND_UPGRADE, 0, 0)

    begun = await life.change("pro", token=quote.quote_token)
    await life.assert_stands("starter", "trialing")
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    await life.pass_time(days=20)

    await life.assert_stands("pro", has_used_trial=True, trial_end=None)
    assert life.at_provider() == {old: "cancelled", begun.checkout.subscription_id: "active"}
    assert (life.captured(), life.refunds()) == (1, [])
    assert await life.credits() == 15_000  # the trial's have expired


async def test_an_upgrade_may_change_the_cycle_too(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("starter", "yearly")
    [paid] = life.payments()
    travel.forward(days=40)
    quote = await life.preview("pro", "monthly")
    assert quote.kind == pb.CHANGE_KIND_UPGRADE
    assert PRO_PAISE < quote.refund_paise < paid["amount_paise"]

    begun = await life.change("pro", "monthly", token=quote.quote_token)
    new = begun.checkout.subscription_id
    await life.act(new, "pay", method="upi")
    await life.reconcile()

    await life.assert_stands("pro", billing_cycle="monthly")
    assert life.at_provider() == {old: "cancelled", new: "active"}
    assert life.refunded(paid["id"]) == [quote.refund_paise]
    assert await life.credits() == 15_000 + 36_000 - quote.credits_revoked

    yearly = await life.preview("business", "yearly")
    begun = await life.change("business", "yearly", key="up", token=yearly.quote_token)
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    await life.reconcile()
    await life.assert_stands("business", billing_cycle="yearly")
    assert life.living() == [begun.checkout.subscription_id]
    assert life.payments()[-1]["amount_paise"] == yearly.total_paise == 5_898_820


async def test_a_renewal_that_slips_through_after_an_upgrade_goes_back_in_full(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("starter")
    [first] = life.payments()
    room.sandbox.set(
        "faults", kind="status", status=502, method="POST", path="/v1/subscriptions/*/cancel", times=8
    )
    quote = await life.preview("pro")
    begun = await life.change("pro", token=quote.quote_token)
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    assert old in life.living()  # the provider does not take the cancellation
    await life.assert_cancel_is_owed(old)

    travel.forward(days=32)
    await life.act(old, "charge")
    room.sandbox.http.delete("/_sandbox/faults")
    await life.pass_time(hours=5, tick=False)

    renewal = life.payments()[-1]
    assert renewal["razorpay_subscription_id"] == old
    assert life.refunded(renewal["id"]) == [STARTER_PAISE]
    assert life.refunded(first["id"]) == [quote.refund_paise]
    assert life.at_provider()[old] == "cancelled"
    [taken] = [row for row in life.revocations() if renewal["id"] in row["grant_reference_id"]]
    assert taken["credits"] == 3_000
    assert life.row()["plan_id"] == "pro"
    assert life.open_tasks() == []


async def test_eight_calls_with_one_key_make_one_subscription(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    old = await life.subscribe("starter")
    quote = await life.preview("pro")

    answers = await asyncio.gather(
        *(life.change("pro", token=quote.quote_token) for _ in range(8)), return_exceptions=True
    )
    refusals = {getattr(each, "reason", None) for each in answers if isinstance(each, BaseException)}
    assert refusals <= {"CONFLICT"}
    last = await life.change("pro", token=quote.quote_token)

    assert last.replayed
    made = {each.checkout.subscription_id for each in answers if not isinstance(each, BaseException)}
    assert made <= {last.checkout.subscription_id}
    assert life.at_provider() == {old: "active", last.checkout.subscription_id: "created"}


async def test_eight_calls_with_eight_keys_leave_one_to_pay(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    old = await life.subscribe("starter")

    answers = await asyncio.gather(
        *(life.change("pro" if number % 2 else "business", key=f"k{number}") for number in range(8)),
        return_exceptions=True,
    )
    await life.reconcile()

    refusals = {getattr(each, "reason", None) for each in answers if isinstance(each, BaseException)}
    assert refusals <= {"CONFLICT", "CHANGE_PENDING"}
    pending = life.row()["pending_razorpay_subscription_id"]
    assert sorted(life.living()) == sorted([old, pending])
    await life.act(pending, "pay", method="card")
    await life.reconcile()
    assert life.living() == [pending]
    assert len(life.refunds()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop"},
        {"kind": "status", "status": 502, "work_done": True},
        {"kind": "status", "status": 502},
        {"kind": "status", "status": 429},
    ],
)
async def test_a_lost_answer_never_makes_a_second_subscription(
    room: Room, tenant: str, travel: Travel, fault: dict[str, Any]
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("starter")
    quote = await life.preview("pro")
    room.sandbox.set("faults", method="POST", path="/v1/subscriptions", exact=True, **fault)

    async with refused("PROVIDER_UNAVAILABLE"):
        await life.change("pro", token=quote.quote_token)
    await life.assert_stands("starter", razorpay_subscription_id=old)
    # The quote has run out, and yet it was given to this key.
    travel.forward(hours=2)
    begun = await life.change("pro", token=quote.quote_token)

    assert (begun.replayed, begun.quote) == (True, quote)
    assert life.at_provider() == {old: "active", begun.checkout.subscription_id: "created"}
    assert life.row()["pending_razorpay_subscription_id"] == begun.checkout.subscription_id


async def test_a_key_names_one_intention(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    await life.subscribe("starter", key="bought")

    async with refused("IDEMPOTENCY_KEY_REUSED", field="kind"):
        await life.change("pro", key="bought")
    await life.change("pro", key="change")
    async with refused("IDEMPOTENCY_KEY_REUSED", field="plan_code"):
        await life.change("business", key="change")
    async with refused("IDEMPOTENCY_KEY_REUSED", field="cycle"):
        await life.change("pro", "yearly", key="change")
    async with refused("IDEMPOTENCY_KEY_REUSED", field="kind"):
        await room.checkout(tenant, plan="pro", key="change")
    await life.undo()
    async with refused("IDEMPOTENCY_KEY_REUSED", field="kind"):
        await life.switch("yearly", key="change")
    assert len(life.living()) == 1


async def test_without_a_subscription_there_is_nothing_to_change(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    async with refused("UNKNOWN_TENANT"):
        await life.preview("pro")
    await room.provision(tenant)
    for call in (life.preview("pro"), life.change("pro"), life.switch("yearly")):
        async with refused("NO_SUBSCRIPTION", plan_code="free"):
            await call
    await life.buy("pro", key="buy")
    async with refused("ALREADY_SUBSCRIBED", plan_code="pro", cycle="monthly"):
        await life.change("pro")
    async with refused("ALREADY_SUBSCRIBED"):
        await life.switch("monthly")
    async with refused("UNKNOWN_PLAN", plan_code="gold"):
        await life.preview("gold")
    async with refused("SUBSCRIPTION_EXISTS"):
        await room.checkout(tenant, plan="business", key="again")
    assert life.row()["pending_kind"] is None


async def test_an_operator_promotes_what_was_paid_and_nothing_else(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    old = await life.subscribe("pro")
    async with refused("NO_PENDING_CHANGE"):
        await life.promote()
    begun = await life.change("business")
    new = begun.checkout.subscription_id
    async with refused("WRONG_STATUS", status="created"):
        await life.promote()
    await life.assert_stands("pro", pending_kind="upgrade")

    room.sandbox.act(f"subscriptions/{new}/pay", method="card")  # and every webhook is lost
    promoted, again = await life.promote(), await life.promote()
    await life.reconcile()

    assert (promoted.plan_code, promoted.cycle) == ("business", catalog_pb2.BILLING_CYCLE_MONTHLY)
    assert (promoted.replayed, again.replayed) == (False, True)
    assert {task.task_type for task in promoted.tasks} >= {"cancel_provider_subscription", "grant_credits"}
    assert life.at_provider() == {old: "cancelled", new: "active"}
    await life.assert_stands("business", pending_kind=None)
    assert life.payments()[-1]["amount_paise"] == BUSINESS_PAISE
    assert life.captured() == 2
    [audit] = life.audits("change.promoted")
    assert (audit["actor_type"], audit["actor_id"], audit["metadata"]["reason"]) == (
        "operator",
        "asha@example.com",
        "webhooks lost",
    )
    assert audit["metadata"]["before"]["subscription_id"] == old
    assert audit["metadata"]["after"] == {"plan_id": "business", "subscription_id": new}


async def test_what_renews_between_the_quote_and_the_payment_goes_back_as_well(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("starter")
    [first] = life.payments()
    await life.pass_until(first["period_end"], hours=-6)
    quote = await life.preview("pro")
    begun = await life.change("pro", token=quote.quote_token)
    await life.pass_until(first["period_end"], hours=1)
    renewal = life.payments()[-1]
    assert renewal["razorpay_subscription_id"] == old

    await life.act(begun.checkout.subscription_id, "pay", method="card")
    await life.hear()

    [known] = room.rows(
        "SELECT started_at FROM provider_subscriptions WHERE id = %s", begun.checkout.subscription_id
    )
    rest = share(STARTER_PAISE, renewal["period_start"], renewal["period_end"], known["started_at"])
    assert life.refunded(first["id"]) == [quote.refund_paise]
    assert life.refunded(renewal["id"]) == [rest]
    assert STARTER_PAISE * 0.99 < rest < STARTER_PAISE
    await life.assert_stands("pro", razorpay_subscription_id=begun.checkout.subscription_id)
    assert life.living() == [begun.checkout.subscription_id]
    assert len(life.revocations()) == 2


async def test_a_quote_that_nobody_paid_within_a_day_can_be_paid_no_more(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    old = await life.subscribe("starter")
    begun = await life.change("pro")
    new = begun.checkout.subscription_id
    async with refused("CHANGE_PENDING"):
        await life.change("business", key="sooner")
    await life.pass_time(hours=24.1)
    assert life.at_provider() == {old: "active", new: "expired"}
    assert life.row()["pending_kind"] == "upgrade", "nobody tells of it"

    await life.pass_time(hours=0.2)
    await life.reconcile()

    await life.assert_stands("starter", pending_kind=None, razorpay_subscription_id=old)
    async with refused("CHECKOUT_CLOSED", status="expired"):
        await life.change("pro")
    assert (await life.change("pro", key="anew")).checkout.subscription_id not in (old, new)


async def test_promoting_asks_a_provider_that_does_not_answer_again(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    await life.subscribe("starter")
    begun = await life.change("pro")
    new = begun.checkout.subscription_id
    room.sandbox.act(f"subscriptions/{new}/pay", method="card")
    room.sandbox.set("faults", kind="status", status=503, method="GET", path="/v1/subscriptions")
    async with refused("PROVIDER_UNAVAILABLE"):
        await life.promote()
    promoted = await asyncio.gather(*(life.promote() for _ in range(4)), return_exceptions=True)
    await life.reconcile()

    assert {getattr(each, "reason", "") for each in promoted if isinstance(each, BaseException)} <= {
        "NO_PENDING_CHANGE"
    }
    assert len(life.audits("change.promoted")) == 1
    await life.assert_stands("pro", razorpay_subscription_id=new)
    assert (life.captured(), len(life.payments()), len(life.refunds())) == (2, 2, 1)
