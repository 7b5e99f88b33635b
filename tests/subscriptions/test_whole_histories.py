"""Whole lives at the provider, told in any order, several times and late, end in one state: generated, not listed."""

import json
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.subscriptions.rules.events import PaymentEvent, ProviderDispute
from services.subscriptions.rules.purchases import Intent
from tests.subscriptions.builders import (
    START,
    a_known,
    a_payment,
    a_purchase,
    an_event,
    first_charge,
)
from tests.subscriptions.histories.books import TENANT, Books
from tests.subscriptions.histories.life import Told, as_event
from tests.subscriptions.histories.programs import BOUGHT, Step, live, programs, promises, told_again

PAYLOADS = Path(__file__).resolve().parents[1] / "payloads" / "razorpay"
TWO_MONTHS: list[Step] = [("checkout", "pro", "monthly", False, 2, False), ("pay", 0, "card")]
_settings = settings(
    max_examples=1_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def nothing_is_left_of_what_was_given_back(books: Books) -> None:
    """A payment that was refunded in full, or lost in full, leaves none of its credits.

    Where a change of plan gave a part back, money and credits were both rounded down: one credit may stay.
    """
    for payment in books.payments.values():
        gone = [r for r in books.refunds.values() if r.payment_id == payment.id and r.status == "processed"]
        lost = [d for d in books.disputes.values() if d.payment_id == payment.id and d.status == "lost"]
        total = sum(r.amount_paise for r in gone) + sum(d.amount_deducted_paise for d in lost)
        rounded = any(r.payment_id == payment.id and r.kind == "proration" for r in books.refunds.values())
        if total >= payment.amount_paise:
            for grant in books.granted_of(payment.id):
                assert grant.credits - books.taken_of(grant.reference_id) <= (1 if rounded else 0)


def test_a_life_ends_in_one_state_however_it_is_told() -> None:
    told: Counter[str] = Counter()

    @_settings
    @example([*BOUGHT, ("pause", 0), ("resume", 0), ("end at period end",), ("wait", 24 * 40)], 1)
    @example([*BOUGHT, ("fail until halted", 0), ("pay", 0, "card"), ("customer cancels", 0, False)], 2)
    @example([*TWO_MONTHS, ("pay", 0, "card"), ("refund there", 0, 1.0, "fail"), ("refund here", 0, 0.5)], 3)
    @example([*BOUGHT, ("dispute", 0, 1.0, "chargeback", ("under_review", "lost"))], 4)
    @example([*BOUGHT, ("refund there", 0, 0.5, "process"), ("dispute", 0, 0.5, "fraud", ("won",))], 5)
    @example(
        [("pack", "medium", True, True), *BOUGHT, ("change", "business", "monthly"), ("pay", 0, "upi")], 6
    )
    @given(programs(), st.integers(0, 2**32))
    def however(program: list[Step], seed: int) -> None:
        life = live(program)
        life.books.settle(life.now)

        shuffled = told_again(life.log, life.now, random.Random(seed), promises)

        expected, found = life.books.state(life.now), shuffled.state(life.now)
        differing = [name for name in expected if found[name] != expected[name]]
        assert {name: found[name] for name in differing} == {name: expected[name] for name in differing}
        nothing_is_left_of_what_was_given_back(shuffled)
        told.update(item.event.event_type for item in life.log if isinstance(item, Told))

    however()

    # `subscription.updated` has no act of ours, and no room of ours changes subscriptions in place.
    assert {event for event, _ in payloads()} - {"subscription.updated"} <= set(told)


def payloads() -> list[tuple[str, bytes]]:
    """Every sample body, by event, in the order in which they say they happened."""
    bodies = [file.read_bytes() for file in sorted(PAYLOADS.glob("*.json"))]
    found = [(json.loads(body), body) for body in bodies]
    found.sort(key=lambda pair: pair[0]["created_at"])
    return [(document["event"], body) for document, body in found]


def an_intent(intent_id: str) -> Intent:
    return Intent(
        id=intent_id,
        tenant_id=TENANT,
        idempotency_key="buy",
        kind="checkout",
        plan_id="pro",
        billing_cycle="monthly",
        with_trial=False,
        amount_paise=199_900,
        tax_paise=35_982,
        currency="INR",
        first_charge_at=None,
        provider="razorpay",
        provider_plan_id="plan_I3ITN5dX2VKlqj",
        provider_subscription_id=None,
        attempted_at=None,
        created_at=START,
    )


END = START + timedelta(days=400)
SAMPLES = [as_event(body, END) for _, body in payloads()]
SUBSCRIPTIONS = sorted({event.subscription.id for event in SAMPLES if event.subscription})


def a_tenant_with(subscription_id: str) -> Books:
    """A tenant who began this subscription of the samples, and each of their orders."""
    books = Books()
    plan = next(
        e.subscription.provider_plan_id
        for e in SAMPLES
        if e.subscription and e.subscription.id == subscription_id
    )
    books.known[subscription_id] = a_known(id=subscription_id, provider_plan_id=plan)
    books.intents["int_1"] = an_intent("int_1")
    for event in SAMPLES:
        if event.order is not None and event.payment is not None and not event.payment.invoice_id:
            books.purchases[event.order.id] = a_purchase(
                provider_order_id=event.order.id, amount_paise=event.payment.amount_paise
            )
    return books


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SUBSCRIPTIONS), st.randoms(use_true_random=False))
def test_the_samples_of_the_provider_end_in_one_state_however_they_come(
    subscription_id: str, chance: random.Random
) -> None:
    shuffled = [event for event in SAMPLES for _ in range(chance.randint(1, 3))]
    chance.shuffle(shuffled)
    in_order, found = a_tenant_with(subscription_id), a_tenant_with(subscription_id)

    for event in SAMPLES:
        in_order.apply(event, END)
    for event in shuffled:
        found.apply(event, END)

    assert found.state(END) == in_order.state(END)
    assert in_order.payments
    nothing_is_left_of_what_was_given_back(found)


def a_dispute(status: str, phase: str, after_seconds: float) -> PaymentEvent:
    paise = a_payment().amount_paise
    told = ProviderDispute(
        "disp_1", a_payment().id, paise, paise if status == "lost" else 0, "INR", status, phase
    )
    return an_event(f"payment.dispute.{status}", after_seconds=after_seconds, dispute=told)


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_dispute_that_was_won_and_is_lost_in_a_later_phase_takes_in_any_order(
    chance: random.Random,
) -> None:
    told = [
        *first_charge(),
        a_dispute("lost", "chargeback", 100),
        a_dispute("won", "chargeback", 200),
        a_dispute("lost", "pre_arbitration", 300),
    ]
    told += chance.choices(told, k=4)
    chance.shuffle(told)
    books = Books(known={a_known().id: a_known()}, intents={"int_1": an_intent("int_1")})

    for event in told:
        books.apply(event, START + timedelta(days=1))

    [grant] = books.grants.values()
    assert books.taken_of(grant.reference_id) == grant.credits
