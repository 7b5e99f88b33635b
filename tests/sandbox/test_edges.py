"""The corners of a subscription's life and of its money, as Razorpay has them."""

import contextlib
import io
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from razorpay.errors import BadRequestError

from sandbox.errors import Refusal
from sandbox.state import charges, due, refunds, subscriptions
from tests.sandbox.conftest import Builder
from tests.sandbox.test_lifecycle import Life, ist, life

__all__ = ["life"]

SETUP_FEE = {"item": {"name": "Setup", "amount": 50_000, "currency": "INR"}}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The SDK prints its troubles."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def paid(life: Life, **override: Any) -> str:
    subscription_id = life.subscribe(**override)
    charges.pay(life.world, subscription_id, method="upi")
    life.events()
    return subscription_id


def test_without_a_cycle_there_is_no_end_of_it_to_cancel_at(a: Builder, sdk: Any) -> None:
    for subscription_id in (a.subscription(), a.trial()):
        before = sdk.subscription.fetch(subscription_id)

        with pytest.raises(BadRequestError, match="no billing cycle is going on"):
            sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": True})

        assert sdk.subscription.fetch(subscription_id) == before
        ended = sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": False})
        assert ended["status"] == "cancelled"


def test_a_wish_to_end_can_be_repeated_and_not_be_taken_back(a: Builder, sdk: Any) -> None:
    subscription_id = a.paid_subscription()
    before = sdk.subscription.fetch(subscription_id)

    answers = [sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": 1}) for _ in range(2)]

    assert answers == [before, before]
    with pytest.raises(BadRequestError, match="No Pending update"):
        sdk.subscription.cancel_scheduled_changes(subscription_id)
    with pytest.raises(BadRequestError, match="No Pending update"):
        sdk.subscription.pending_update(subscription_id)


def test_a_wish_to_end_is_kept_through_failures(life: Life) -> None:
    subscription_id = paid(life)
    due.plan_outcomes(life.world, subscription_id, ["fail", "fail", "fail", "fail"])
    life.world.commit()
    life.clock.move_to(ist(2026, 11, 15))
    life.tick()
    subscriptions.cancel(life.world, subscription_id, at_cycle_end=True)
    life.events()

    life.clock.move_to(ist(2026, 12, 14))

    assert life.tick()[-2:] == ["subscription.halted", "subscription.cancelled"]
    assert life.entity(subscription_id)["paid_count"] == 1


def test_a_link_that_is_too_old_expires_without_a_word(life: Life) -> None:
    subscription_id = life.subscribe(expire_by=ist(2026, 10, 20))
    life.clock.move_to(ist(2026, 10, 20))

    assert life.tick() == []

    assert life.entity(subscription_id)["status"] == "expired"
    with pytest.raises(Refusal, match="expired"):
        charges.pay(life.world, subscription_id, method="card")
    with pytest.raises(Refusal, match="not cancellable in expired status"):
        subscriptions.cancel(life.world, subscription_id, at_cycle_end=False)


def test_the_final_cycle_ends_by_itself(life: Life) -> None:
    subscription_id = paid(life, total_count=2)
    charges.fail(life.world, subscription_id)

    with pytest.raises(Refusal, match="final cycle"):
        subscriptions.cancel(life.world, subscription_id, at_cycle_end=True)


def test_a_pause_is_neither_billed_nor_made_up_for(life: Life) -> None:
    subscription_id = paid(life)
    life.clock.move_to(ist(2026, 10, 20))
    subscriptions.pause(life.world, subscription_id)
    assert life.events() == ["subscription.paused"]
    life.clock.move_to(ist(2027, 1, 20))
    assert life.tick() == []

    subscriptions.resume(life.world, subscription_id)
    life.events()

    resumed = life.entity(subscription_id)
    assert (resumed["status"], resumed["charge_at"]) == ("active", ist(2027, 2, 14))
    assert (resumed["paid_count"], resumed["remaining_count"]) == (1, 8)
    life.clock.move_to(ist(2027, 2, 14))
    assert life.tick().count("subscription.charged") == 1
    renewed = life.entity(subscription_id)
    assert (renewed["current_start"], renewed["current_end"]) == (ist(2027, 2, 14), ist(2027, 3, 14))


def test_a_pause_within_a_cycle_changes_nothing(life: Life) -> None:
    subscription_id = paid(life)
    before = dict(life.entity(subscription_id))

    subscriptions.pause(life.world, subscription_id)
    subscriptions.resume(life.world, subscription_id)
    life.events()

    assert life.entity(subscription_id) == before


def test_a_pause_that_outlasts_all_cycles_completes(life: Life) -> None:
    subscription_id = paid(life, total_count=2)
    subscriptions.pause(life.world, subscription_id)
    life.events()
    life.clock.move_to(ist(2027, 6, 1))

    subscriptions.resume(life.world, subscription_id)

    assert life.events() == ["subscription.resumed", "subscription.completed"]
    assert life.tick() == []


def test_a_late_bank_takes_a_day_longer(life: Life) -> None:
    subscription_id = paid(life)
    due.plan_outcomes(life.world, subscription_id, ["late", "succeed"])
    life.world.commit()

    life.clock.move_to(ist(2026, 11, 14))
    assert life.tick() == []
    assert life.entity(subscription_id)["charge_at"] == ist(2026, 11, 14)
    life.clock.move_to(ist(2026, 11, 15))

    assert life.tick()[-1] == "subscription.charged"
    assert life.entity(subscription_id)["current_start"] == ist(2026, 11, 14)


def test_a_mandate_cannot_be_set_up_after_its_start(life: Life) -> None:
    subscription_id = life.subscribe(start_at=ist(2026, 10, 28))
    life.clock.move_to(ist(2026, 10, 28))

    with pytest.raises(Refusal, match="start time is past"):
        charges.authenticate(life.world, subscription_id, method="upi")


def test_a_mandate_for_later_is_charged_at_its_start_and_not_before(life: Life) -> None:
    start_at = ist(2026, 11, 14)
    subscription_id = life.subscribe(start_at=start_at)
    charges.authenticate(life.world, subscription_id, method="card")
    life.events()

    life.clock.move_to(start_at - 1)
    assert life.tick() == []
    life.clock.move_to(start_at)

    assert life.tick()[-2:] == ["subscription.activated", "subscription.charged"]
    assert life.entity(subscription_id)["current_start"] == start_at


def test_an_amount_upfront_is_on_the_first_invoice_and_only_there(a: Builder, sdk: Any) -> None:
    subscription_id = a.paid_subscription(addons=[SETUP_FEE])
    a.sandbox.act(f"subscriptions/{subscription_id}/charge")

    renewal, first = sdk.invoice.all({"subscription_id": subscription_id})["items"]

    lines = [(line["type"], line["amount"]) for line in first["line_items"]]
    assert lines == [("plan", 235_882), ("addon", 50_000)]
    assert (first["amount"], renewal["amount"]) == (285_882, 235_882)
    assert sdk.payment.fetch(first["payment_id"])["amount"] == 285_882


def test_an_amount_upfront_of_a_trial_is_real_money(a: Builder, sdk: Any) -> None:
    start_at = int(time.time()) + 86_400
    subscription_id = a.subscription(start_at=start_at, addons=[SETUP_FEE])

    told = a.sandbox.act(f"subscriptions/{subscription_id}/authenticate", method="card", token_paise=500)

    [invoice] = sdk.invoice.all({"subscription_id": subscription_id})["items"]
    assert [each["event"] for each in told][-2:] == ["invoice.paid", "subscription.authenticated"]
    assert (invoice["amount"], invoice["status"]) == (50_000, "paid")
    assert sdk.payment.fetch(invoice["payment_id"])["amount_refunded"] == 0
    assert sdk.subscription.fetch(subscription_id)["paid_count"] == 0


@pytest.mark.parametrize(("method", "international"), [("upi", False), ("card", False)])
def test_addons_are_refused_where_edits_are(a: Builder, sdk: Any, method: str, international: bool) -> None:
    subscription_id = a.paid_subscription(method=method, international=international)

    with pytest.raises(BadRequestError, match="UPI or domestic card"):
        sdk.subscription.createAddon(subscription_id, SETUP_FEE)


def test_an_addon_of_an_international_card_is_on_the_next_invoice(a: Builder, sdk: Any) -> None:
    subscription_id = a.paid_subscription(international=True)

    addon = sdk.subscription.createAddon(subscription_id, SETUP_FEE | {"quantity": 2})
    a.sandbox.act(f"subscriptions/{subscription_id}/charge")

    assert (addon["entity"], addon["subscription_id"]) == ("addon", subscription_id)
    newest = sdk.invoice.all({"subscription_id": subscription_id})["items"][0]
    assert newest["amount"] == 235_882 + 2 * 50_000


def test_some_customers_stay_unknown(a: Builder, sdk: Any) -> None:
    subscription_id = a.subscription()

    told = a.sandbox.act(f"subscriptions/{subscription_id}/pay", method="upi", anonymous=True)

    payment = told[0]["parsed"]["payload"]["payment"]["entity"]
    assert sdk.subscription.fetch(subscription_id)["customer_id"] is None
    assert "customer_id" not in payment
    assert (payment["email"], payment["contact"]) == ("void@razorpay.com", "9000000001")


def test_an_offer_can_be_taken_off(a: Builder, sdk: Any) -> None:
    offer_id = "offer_JHD834hjbxzhd3"
    subscription_id = a.subscription(offer_id=offer_id)

    sdk.subscription.delete_offer(subscription_id, offer_id)

    assert sdk.subscription.fetch(subscription_id)["offer_id"] is None
    with pytest.raises(BadRequestError, match="not linked"):
        sdk.subscription.delete_offer(subscription_id, offer_id)


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_pausing_and_resuming_happen_now(a: Builder, sdk: Any, verb: str) -> None:
    with pytest.raises(BadRequestError, match=f"selected {verb} at is invalid"):
        getattr(sdk.subscription, verb)(a.paid_subscription(), {f"{verb}_at": "cycle_end"})


def test_old_payments_are_not_refunded(life: Life) -> None:
    paid(life)
    payment_id = life.world.all("payment")[0].entity["id"]
    life.clock.at += timedelta(days=184)

    with pytest.raises(Refusal, match="6 months old"):
        refunds.create_refund(life.world, payment_id, {})
    life.world.rollback()
    refunds.set_window(life.world, 0)
    refund, _ = refunds.create_refund(life.world, payment_id, {})

    assert refund.entity["amount"] == 235_882


def test_many_refunds_of_one_payment_never_exceed_it(a: Builder, sdk: Any) -> None:
    _, payment_id = a.paid_order()

    made = [sdk.payment.refund(payment_id, {"amount": 50_000, "notes": {"turn": turn}}) for turn in "123"]

    with pytest.raises(BadRequestError, match="total refund amount"):
        sdk.payment.refund(payment_id, {"amount": 16_001})
    with pytest.raises(BadRequestError, match=r"at least INR 1\.00"):
        sdk.payment.refund(payment_id, {"amount": 99})
    listed = sdk.payment.fetch_multiple_refund(payment_id)["items"]
    assert [each["id"] for each in listed] == [each["id"] for each in reversed(made)]
    assert [each["notes"] for each in listed] == [{"turn": "3"}, {"turn": "2"}, {"turn": "1"}]
    assert sdk.payment.fetch_refund_id(payment_id, made[0]["id"])["amount"] == 50_000
    assert sdk.refund.edit(made[0]["id"], {"notes": {"why": "ticket"}})["notes"] == {"why": "ticket"}
    payment = sdk.payment.fetch(payment_id)
    assert (payment["refund_status"], payment["amount_refunded"]) == ("partial", 150_000)
    assert sdk.order.fetch(payment["order_id"])["status"] == "paid"


def test_an_instant_refund_may_become_a_normal_one(a: Builder, sdk: Any) -> None:
    _, payment_id = a.paid_order()
    refund = sdk.payment.refund(payment_id, {"speed": "optimum"})

    (told,) = a.sandbox.act(f"refunds/{refund['id']}/speed_changed")

    assert (refund["speed_requested"], refund["speed_processed"]) == ("optimum", "instant")
    assert told["event"] == "refund.speed_changed"
    assert told["parsed"]["payload"]["created_at"] == told["parsed"]["created_at"]
    assert told["parsed"]["payload"]["refund"]["entity"]["speed_processed"] == "normal"


def test_a_capture_names_the_currency_of_the_payment(a: Builder, sdk: Any) -> None:
    told = a.sandbox.act(f"orders/{a.order(payment_capture=False)}/pay", method="card")
    payment = told[0]["parsed"]["payload"]["payment"]["entity"]

    with pytest.raises(BadRequestError, match="currency"):
        sdk.payment.capture(payment["id"], 166_000, {"currency": "USD"})

    assert sdk.payment.fetchCardDetails(payment["id"]) == payment["card"]
    assert sdk.order.edit(payment["order_id"], {"notes": {"a": "b"}})["notes"] == {"a": "b"}
    assert sdk.payment.edit(payment["id"], {"notes": {"c": "d"}})["notes"] == {"c": "d"}


def opened(a: Builder, **details: Any) -> dict[str, Any]:
    _, payment_id = a.paid_order()
    told = a.sandbox.act(f"payments/{payment_id}/dispute", **details)
    dispute: dict[str, Any] = told[0]["parsed"]["payload"]["dispute"]["entity"]
    return dispute


def test_a_dispute_is_contested_questioned_and_won_and_comes_back(a: Builder, sdk: Any) -> None:
    dispute = opened(a)
    proof = {"billing_proof": ["doc_EFtmUsbwpXwBH9"], "summary": "they used it"}

    draft = sdk.dispute.contest(dispute["id"], proof | {"action": "draft"})
    submitted = sdk.dispute.contest(dispute["id"], proof | {"action": "submit"})
    (more,) = a.sandbox.act(f"disputes/{dispute['id']}/action_required")
    open_again = sdk.dispute.fetch(dispute["id"])
    (won,) = a.sandbox.act(f"disputes/{dispute['id']}/won")
    (back,) = a.sandbox.act(f"payments/{dispute['payment_id']}/dispute", phase="pre_arbitration")

    assert [each["status"] for each in (draft, submitted, open_again)] == ["open", "under_review", "open"]
    assert submitted["evidence"]["billing_proof"] == ["doc_EFtmUsbwpXwBH9"]
    # The evidence stands beside the entity too.
    assert more["event"] == "payment.dispute.action_required"
    assert more["parsed"]["payload"]["dispute"]["evidence"]["summary"] == "they used it"
    assert won["parsed"]["payload"]["dispute"]["entity"]["amount_deducted"] == 0
    returned = back["parsed"]["payload"]["dispute"]["entity"]
    assert (returned["phase"], returned["status"]) == ("pre_arbitration", "open")
    with pytest.raises(BadRequestError, match="already won"):
        sdk.dispute.accept(dispute["id"])


def test_an_accepted_dispute_is_lost(a: Builder, sdk: Any) -> None:
    dispute = opened(a, amount=40_000, reason_code="fraudulent")

    accepted = sdk.dispute.accept(dispute["id"])

    assert (accepted["status"], accepted["amount_deducted"]) == ("lost", 40_000)
    assert accepted["reason_code"] == "fraudulent"
    listed = sdk.dispute.all({"payment_id": dispute["payment_id"], "status": "lost"})["items"]
    assert [each["id"] for each in listed] == [dispute["id"]]
    assert sdk.dispute.all({"payment_id": dispute["payment_id"], "status": "open"})["items"] == []


def test_only_a_fraud_dispute_is_closed(a: Builder, sdk: Any) -> None:
    chargeback, fraud = opened(a), opened(a, phase="fraud")

    assert "fraud phase" in a.sandbox.refusal(f"disputes/{chargeback['id']}/closed")
    a.sandbox.act(f"disputes/{fraud['id']}/closed")

    assert sdk.dispute.fetch(fraud["id"])["status"] == "closed"
    assert sdk.dispute.fetch(fraud["id"])["amount_deducted"] == 0
    assert sdk.dispute.fetch(chargeback["id"])["status"] == "open"
    assert "phase must be" in a.sandbox.refusal(f"payments/{fraud['payment_id']}/dispute", phase="war")
