"""Nobody gets credits for money that comes back, however plans are ended, begun and changed."""

from __future__ import annotations

from typing import Any

import pytest
from billing.subscriptions.v1 import payment_events_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb

from services.subscriptions.rules.tasks import ATTEMPTS_MAX
from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import Room, event
from tests.subscriptions.life import Life, refused


@pytest.mark.parametrize("after", ["starter", "business"])
async def test_what_was_ended_at_once_is_not_given_back_by_what_is_bought_after_it(
    room: Room, tenant: str, travel: Travel, after: str
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("pro", "yearly")
    await life.spend(await life.credits())
    await life.pass_time(days=1)
    await life.cancel()

    await life.buy(after, key="again")

    assert life.refunds() == []
    await life.assert_stands(after)


async def test_trial_credits_come_once_however_many_trials_were_begun_before_we_heard(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    await room.provision(tenant)
    first = await room.checkout(tenant, trial=True, key="first")
    told = room.sandbox.act(f"subscriptions/{first.checkout.subscription_id}/authenticate", method="card")
    await life.buy(trial=True, key="second")

    await life.tell(told)

    granted = room.rows("SELECT kind FROM credit_grants WHERE tenant_id = %s AND kind = 'trial'", tenant)
    assert len(granted) == 1


async def test_a_change_that_the_provider_was_not_asked_for_in_time_is_asked_for_anew(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("starter")
    room.sandbox.set("faults", kind="status", status=503, method="POST", path="/v1/subscriptions", exact=True)
    async with refused("PROVIDER_UNAVAILABLE"):
        await life.change("pro")
    await life.pass_time(days=20)

    async with refused("QUOTE_STALE", cause="expired"):
        await life.change("pro")

    begun = await life.change("pro", key="anew")
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    [refund] = life.refunds()
    assert refund["amount_paise"] < 58_882 * 12 // 30
    await life.assert_stands("pro")


@pytest.mark.parametrize("told", [{"amount": 0, "currency": "INR"}, {"amount": 100, "currency": "USD"}])
async def test_a_charge_of_nothing_or_of_other_money_brings_no_credits(
    room: Room, tenant: str, travel: Travel, told: dict[str, Any]
) -> None:
    life = Life(room, tenant, travel)
    subscription_id = await life.subscribe("pro")
    payment_id = f"pay_{tenant[-12:]}zz"
    charge = payment_events_pb2.ProviderPayment(
        id=payment_id, status="captured", captured=True, invoice_id="inv_strange", **told
    )
    snapshot = payment_events_pb2.ProviderSubscription(id=subscription_id, status="active", paid_count=2)
    refund = payment_events_pb2.ProviderRefund(
        id=f"rfnd_{tenant[-12:]}", payment_id=payment_id, amount=100, currency="INR", status="processed"
    )

    answer = await room.events.ApplyPaymentEvent(
        event(event_type="subscription.charged", subscription=snapshot, payment=charge)
    )
    await room.events.ApplyPaymentEvent(event(event_type="refund.processed", refund=refund))

    assert answer.reason == "amount_mismatch"
    assert len(life.payments()) == 1
    assert life.findings() == ["charge_amount_mismatch"]
    assert await life.credits() == 15_000


BEST_CREDITS_PER_RUPEE = 600_000 / 58_988.20  # business for a year, tax included


@pytest.mark.parametrize(
    ("first", "cycle", "then"),
    [("starter", "yearly", "pro"), ("pro", "yearly", "business"), ("starter", "monthly", "pro")],
)
async def test_what_was_spent_of_the_time_that_is_given_back_is_paid_for(
    room: Room, tenant: str, travel: Travel, first: str, cycle: str, then: str
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe(first, cycle)
    bought = await life.credits()
    await life.spend(bought)

    quote = await life.preview(then)
    begun = await life.change(then, key="then", token=quote.quote_token)
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    await life.reconcile()
    await life.hear()

    paid = sum(payment["amount_paise"] for payment in life.payments())
    back = sum(refund["amount_paise"] for refund in life.refunds() if refund["status"] == "processed")
    left = await life.credits()
    # Spent before the quote, it is in the quote: nothing of the old lot is left to take.
    assert (back, left) == (quote.refund_paise, quote.credits_granted - quote.credits_revoked)
    assert (bought + left) / ((paid - back) / 100) <= BEST_CREDITS_PER_RUPEE
    assert life.open_tasks() == []
    # And nothing of it is decided anew by what comes later.
    await life.reconcile()
    assert back == sum(each["amount_paise"] for each in life.refunds() if each["status"] == "processed")


async def test_money_of_a_change_goes_back_when_a_person_has_settled_its_credits(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("starter")
    await life.pass_time(days=1, tick=False)
    begun = await life.change("pro")
    # The ledger holds no such grant, and will not however often it is asked.
    room.change("UPDATE credit_grants SET reference_id = reference_id || 'x' WHERE tenant_id = %s", tenant)
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    for _ in range(ATTEMPTS_MAX):
        await life.pass_time(hours=5, tick=False)
    [given_up] = room.rows(
        "SELECT id, task_type FROM billing_reconciliation_queue"
        " WHERE tenant_id = %s AND abandoned_at IS NOT NULL",
        tenant,
    )
    assert given_up["task_type"] == "revoke_grant"

    await room.admin.ResolveReconciliationTask(
        admin_pb.ResolveReconciliationTaskRequest(
            task_id=given_up["id"], idempotency_key="settled", actor="asha@example.com", reason="by hand"
        )
    )

    [refund] = life.refunds()
    assert refund["amount_paise"] == begun.quote.refund_paise
    assert life.refunded(refund["payment_id"]) == [refund["amount_paise"]]
    assert life.open_tasks() == []


async def test_a_refund_that_is_refused_does_not_cover_up_the_one_before_it(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("pro")
    await life.pass_time(days=31)
    room.sandbox.set(
        "faults", kind="refuse", description="Not now", method="POST", path="/v1/payments/", times=2
    )

    answers = [await life.refund(payment["id"], key=payment["id"]) for payment in life.payments()]

    assert [answer.status for answer in answers] == ["failed", "failed"]
    [finding] = room.rows(
        "SELECT observed FROM billing_integrity_reports WHERE tenant_id = %s AND check_type = 'refund_failed'",
        tenant,
    )
    first, second = life.payments()
    assert finding["observed"]["paymentId"] == second["id"]
    assert [each["paymentId"] for each in finding["observed"]["earlier"]] == [first["id"]]
