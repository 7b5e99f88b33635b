"""Any order, duplication or delay of one history ends in the same state: generated, not listed."""

from collections.abc import Callable
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from services.subscriptions.rules.events import PaymentEvent
from services.subscriptions.rules.fence import KnownSubscription
from tests.subscriptions.builders import (
    MONTH,
    START,
    a_known,
    a_payment,
    a_purchase,
    a_snapshot,
    an_event,
    first_charge,
)
from tests.subscriptions.world import after

DAY = 86_400.0
SECOND_CYCLE = {"current_start": START + MONTH, "current_end": START + 2 * MONTH}


def renewal_that_fails_first() -> list[PaymentEvent]:
    """Charged, failed twice in the next cycle, paid at last; and one pending that comes very late."""
    failing = {"status": "pending", "paid_count": 1, **SECOND_CYCLE}
    return [
        *first_charge(),
        an_event(
            "subscription.pending",
            after_seconds=30 * DAY,
            subscription=a_snapshot(auth_attempts=1, **failing),
        ),
        an_event(
            "payment.failed",
            after_seconds=30 * DAY,
            payment=a_payment(id="pay_second00000000", status="failed", captured=False),
        ),
        an_event(
            "subscription.pending",
            after_seconds=31 * DAY,
            subscription=a_snapshot(auth_attempts=2, **failing),
        ),
        an_event(
            "subscription.charged",
            after_seconds=32 * DAY,
            subscription=a_snapshot(paid_count=2, **SECOND_CYCLE),
            payment=a_payment(id="pay_second00000000", order_id="order_2", invoice_id="inv_2"),
        ),
    ]


def still_failing() -> list[PaymentEvent]:
    """Everything but the payment that would have mended it, and the end of the retries."""
    halted = a_snapshot(status="halted", auth_attempts=4, paid_count=1, **SECOND_CYCLE)
    return [
        *renewal_that_fails_first()[:-1],
        an_event("subscription.halted", after_seconds=33 * DAY, subscription=halted),
    ]


def cancelled_with_a_late_charge() -> list[PaymentEvent]:
    ended = a_snapshot(status="cancelled", charge_at=None, ended_at=START + timedelta(days=31), paid_count=1)
    return [
        *first_charge(),
        an_event("subscription.cancelled", after_seconds=31 * DAY, subscription=ended),
        an_event(
            "subscription.charged",
            after_seconds=30.5 * DAY,
            subscription=a_snapshot(paid_count=2, **SECOND_CYCLE),
            payment=a_payment(id="pay_second00000000", order_id="order_2", invoice_id="inv_2"),
        ),
    ]


def paused_and_resumed() -> list[PaymentEvent]:
    paused = a_snapshot(status="paused", charge_at=None, current_start=None, current_end=None)
    return [
        *first_charge(),
        an_event("subscription.paused", after_seconds=3 * DAY, subscription=paused),
        an_event("subscription.resumed", after_seconds=5 * DAY, subscription=a_snapshot()),
    ]


def a_bought_pack() -> list[PaymentEvent]:
    paid = a_payment(
        id="pay_OIl7rDXiUDXRnT", amount_paise=166_000, order_id="order_lfvo2q0jPHvotD", invoice_id=""
    )
    failed = a_payment(
        id="pay_OIl7rDXiUDXRnT",
        amount_paise=166_000,
        order_id="order_lfvo2q0jPHvotD",
        invoice_id="",
        status="failed",
        captured=False,
    )
    return [
        an_event("payment.failed", payment=failed),
        an_event("payment.captured", after_seconds=2, payment=paid),
        an_event("order.paid", after_seconds=2, payment=paid),
        *first_charge(),
    ]


HISTORIES: dict[Callable[[], list[PaymentEvent]], tuple[int, str, str]] = {
    first_charge: (1, "pro", "active"),
    renewal_that_fails_first: (2, "pro", "active"),
    still_failing: (1, "pro", "past_due"),
    cancelled_with_a_late_charge: (2, "pro", "active"),
    paused_and_resumed: (1, "pro", "active"),
    a_bought_pack: (2, "pro", "active"),
}


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Callable[[], list[PaymentEvent]], list[PaymentEvent]]:
    """A history, each event once to three times, in any order."""
    history = draw(st.sampled_from(list(HISTORIES)))
    events = history()
    copies = [event for event in events for _ in range(draw(st.integers(1, 3)))]
    return history, draw(st.permutations(copies))


@settings(max_examples=400, deadline=None)
@given(arrivals())
def test_any_order_and_any_duplicates_end_in_one_state(
    arrived: tuple[Callable[[], list[PaymentEvent]], list[PaymentEvent]],
) -> None:
    history, events = arrived
    grants, plan, status = HISTORIES[history]

    inorder = after(history(), [a_known()], a_purchase())
    shuffled = after(events, [a_known()], a_purchase())

    assert shuffled.state() == inorder.state()
    assert shuffled.grant_tasks == len(shuffled.grants) == grants
    assert (shuffled.row.plan_id, shuffled.row.status) == (plan, status)


def test_the_clock_of_past_due_starts_at_the_first_failure_of_the_cycle() -> None:
    row = after(list(reversed(still_failing())), [a_known()]).row

    assert row.past_due_since == START + timedelta(days=30)


@st.composite
def two_purchases(draw: st.DrawFn) -> list[PaymentEvent]:
    """Starter is live, Pro was bought on top and paid; both have their events."""
    starter = [
        an_event(
            event.event_type,
            after_seconds=index,
            subscription=(
                event.subscription and a_snapshot(**{**vars(event.subscription), "id": "sub_starter0000000"})
            ),
            payment=(event.payment and a_payment(**{**vars(event.payment), "id": "pay_starter0000000"})),
        )
        for index, event in enumerate(first_charge())
    ]
    return draw(st.permutations([*starter, *first_charge(), *first_charge()]))


@settings(max_examples=200, deadline=None)
@given(two_purchases())
def test_the_newest_paid_purchase_is_live_and_the_older_one_is_cancelled(events: list[PaymentEvent]) -> None:
    known: list[KnownSubscription] = [
        a_known(
            id="sub_starter0000000",
            intent_id="int_0",
            plan_id="starter",
            purchased_at=START - timedelta(days=3),
        ),
        a_known(),
    ]

    world = after(events, known)

    assert (world.row.plan_id, world.row.razorpay_subscription_id) == ("pro", "sub_IBCxfQBRsELuA7")
    assert world.row.pending_plan_id is None
    assert world.cancelled == {"sub_starter0000000"}
    assert sorted(grant.credits for grant in world.grants.values()) == [3_000, 15_000]
