"""A subscription's life: what is charged, when cycles end, which events tell of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandbox import cycles
from sandbox.errors import Refusal
from sandbox.state import catalogue, charges, due, subscriptions
from sandbox.state.world import World
from tests.sandbox.conftest import Builder

SEVEN = [
    "payment.authorized",
    "payment.captured",
    "order.paid",
    "invoice.paid",
    "subscription.authenticated",
    "subscription.activated",
    "subscription.charged",
]


def ist(*when: int) -> int:
    return int(datetime(*when, tzinfo=cycles.IST).timestamp())  # type: ignore[misc]


@dataclass
class MovableClock:
    """Time that stands still until it is moved."""

    at: datetime

    def __call__(self) -> datetime:
        return self.at

    def move_to(self, second: int) -> None:
        self.at = datetime.fromtimestamp(second, UTC)


@dataclass
class Life:
    """One world, its clock, and a monthly plan."""

    world: World
    clock: MovableClock
    plan_id: str

    def subscribe(self, **override: Any) -> str:
        request = {"plan_id": self.plan_id, "total_count": 12} | override
        subscription_id: str = subscriptions.create(self.world, request).entity["id"]
        self.world.commit()
        return subscription_id

    def events(self) -> list[str]:
        names = [event.name for event in self.world.events()]
        self.world.commit()
        return names

    def tick(self) -> list[str]:
        names = []
        while waiting := due.due(self.world):
            for subscription_id in waiting:
                due.step(self.world, subscription_id)
                names += self.events()
        return names

    def entity(self, subscription_id: str) -> dict[str, Any]:
        return self.world.get("subscription", subscription_id).entity


@pytest.fixture
def life() -> Iterator[Life]:
    clock = MovableClock(datetime(2026, 10, 14, 5, 54, 43, tzinfo=UTC))
    world = World(clock, account_id="acc_0123456789abcd")
    plan = catalogue.create_plan(
        world,
        {
            "period": "monthly",
            "interval": 1,
            "item": {"name": "Pro Monthly", "amount": 235_882, "currency": "INR"},
        },
    )
    world.commit()
    yield Life(world, clock, plan.entity["id"])
    world.close()


def test_a_first_charge_tells_seven_things_about_one_payment(a: Builder, sdk: Any) -> None:
    subscription_id = a.subscription(quantity=2)

    deliveries = a.sandbox.act(f"subscriptions/{subscription_id}/pay", method="upi", deliver=False)

    payments = [
        delivery["parsed"]["payload"]["payment"]["entity"]
        for delivery in deliveries
        if "payment" in delivery["parsed"]["payload"]
    ]
    assert [delivery["event"] for delivery in deliveries] == SEVEN
    assert len({payment["id"] for payment in payments}) == 1
    assert len({delivery["event_id"] for delivery in deliveries}) == 7
    assert [payment["captured"] for payment in payments] == [False, True, True, True, True, "1"]
    assert {payment["amount"] for payment in payments} == {2 * 235_882}
    assert all(payment["notes"] == [] and payment["invoice_id"] for payment in payments)
    assert sdk.payment.fetch(payments[0]["id"])["captured"] is True
    with_notes = deliveries[-1]["parsed"]["payload"]["subscription"]["entity"]
    assert with_notes["notes"] == {"tenant_id": "tn_01", "plan_code": "pro"}
    assert sdk.subscription.fetch(subscription_id)["status"] == "active"


def test_the_first_cycle_starts_at_its_second_and_ends_at_midnight_in_india(life: Life) -> None:
    subscription_id = life.subscribe(total_count=120)

    charges.pay(life.world, subscription_id, method="card")
    entity = life.world.get("subscription", subscription_id).entity

    # The numbers of the sample charged event.
    assert (entity["current_start"], entity["current_end"]) == (1_791_957_283, 1_794_594_600)
    assert (entity["charge_at"], entity["end_at"]) == (1_794_594_600, 2_107_535_400)
    assert (entity["paid_count"], entity["remaining_count"]) == (1, 119)


@pytest.mark.parametrize(
    ("start", "period", "count", "end"),
    [
        (ist(2026, 1, 31, 12), "monthly", 1, ist(2026, 2, 28)),
        (ist(2026, 1, 31, 12), "monthly", 2, ist(2026, 3, 31)),
        (ist(2028, 2, 29, 0, 1), "yearly", 1, ist(2029, 2, 28)),
        (ist(2026, 12, 31, 23, 59), "monthly", 1, ist(2027, 1, 31)),
        # Already tomorrow in India while it is still today in London.
        (int(datetime(2026, 3, 31, 18, 30, tzinfo=UTC).timestamp()), "monthly", 1, ist(2026, 5, 1)),
        (ist(2026, 10, 1, 9), "quarterly", 1, ist(2027, 1, 1)),
        (ist(2026, 10, 1, 9), "weekly", 2, ist(2026, 10, 15)),
        (ist(2026, 10, 1, 9), "daily", 7, ist(2026, 10, 8)),
    ],
)
def test_cycles_end_at_midnight_in_india_and_do_not_drift(
    start: int, period: str, count: int, end: int
) -> None:
    assert cycles.boundary(start, period, 1, count) == end


def test_renewals_come_when_due_and_the_last_one_completes(life: Life) -> None:
    subscription_id = life.subscribe(total_count=3)
    charges.pay(life.world, subscription_id, method="card")
    life.events()

    told = []
    for boundary in (ist(2026, 11, 14), ist(2026, 12, 14)):
        life.clock.move_to(boundary - 1)
        assert life.tick() == []
        life.clock.move_to(boundary)
        told.append(life.tick())

    renewal = [
        "payment.authorized",
        "payment.captured",
        "order.paid",
        "invoice.paid",
        "subscription.charged",
    ]
    entity = life.entity(subscription_id)
    assert told == [renewal, [*renewal, "subscription.completed"]]
    assert (entity["status"], entity["paid_count"], entity["remaining_count"]) == ("completed", 3, 0)
    assert (entity["current_start"], entity["current_end"]) == (ist(2026, 12, 14), ist(2027, 1, 14))
    with pytest.raises(Refusal, match="completed"):
        charges.pay(life.world, subscription_id)


def test_a_trial_charges_nothing_until_it_ends(life: Life) -> None:
    start_at = ist(2026, 10, 28)
    subscription_id = life.subscribe(start_at=start_at)

    with pytest.raises(Refusal, match="authenticate"):
        charges.pay(life.world, subscription_id)
    charges.authenticate(life.world, subscription_id, method="upi")
    told = life.events()
    life.clock.move_to(start_at)
    at_end = life.tick()

    entity = life.entity(subscription_id)
    assert told == ["subscription.authenticated"]
    assert at_end[-2:] == ["subscription.activated", "subscription.charged"]
    assert (entity["current_start"], entity["current_end"]) == (start_at, ist(2026, 11, 28))
    assert (entity["status"], entity["paid_count"]) == ("active", 1)


def test_a_trials_token_payment_comes_back_by_itself(life: Life) -> None:
    subscription_id = life.subscribe(start_at=ist(2026, 10, 28))

    charges.authenticate(life.world, subscription_id, method="card", token_paise=500)
    events = life.world.events()

    assert [event.name for event in events] == [
        "payment.authorized",
        "payment.captured",
        "order.paid",
        "refund.created",
        "refund.processed",
        "subscription.authenticated",
    ]
    assert {event.payload["payment"]["amount"] for event in events[:5]} == {500}
    assert events[4].payload["payment"]["status"] == "refunded"


def test_a_trial_nobody_authorised_expires_without_a_word(life: Life) -> None:
    subscription_id = life.subscribe(start_at=ist(2026, 10, 28))

    life.clock.move_to(ist(2026, 10, 28))

    assert life.tick() == []
    assert life.entity(subscription_id)["status"] == "expired"


def test_four_failed_days_halt_a_subscription(life: Life) -> None:
    subscription_id = life.subscribe()
    charges.pay(life.world, subscription_id, method="card")
    life.events()
    due.plan_outcomes(life.world, subscription_id, ["fail"] * 4)
    life.world.commit()

    told, seen = [], []
    for day in range(14, 18):
        life.clock.move_to(ist(2026, 11, day))
        told.append(life.tick())
        entity = life.entity(subscription_id)
        seen.append((entity["status"], entity["auth_attempts"], entity["charge_at"]))

    failed = ["payment.failed", "subscription.pending"]
    assert told == [failed, failed, failed, ["payment.failed", "subscription.halted"]]
    assert seen == [
        ("pending", 1, ist(2026, 11, 15)),
        ("pending", 2, ist(2026, 11, 16)),
        ("pending", 3, ist(2026, 11, 17)),
        ("halted", 4, ist(2026, 12, 14)),
    ]
    # The unpaid invoice that was issued is not among the remaining ones.
    assert life.entity(subscription_id)["remaining_count"] == 10


def test_a_halted_subscription_is_billed_and_not_charged_until_a_new_card(life: Life) -> None:
    subscription_id = life.subscribe()
    charges.pay(life.world, subscription_id, method="card")
    life.events()
    for _ in range(4):
        charges.fail(life.world, subscription_id)
    life.events()

    life.clock.move_to(ist(2026, 12, 14))
    assert life.tick() == []
    charges.pay(life.world, subscription_id, method="card")
    told = life.events()

    entity = life.entity(subscription_id)
    invoices = [invoice.entity["status"] for invoice in life.world.all("invoice")]
    assert told[-2:] == ["subscription.charged", "subscription.activated"]
    assert invoices == ["paid", "issued", "paid"]
    assert (entity["status"], entity["auth_attempts"], entity["paid_count"]) == ("active", 0, 2)
    assert entity["current_start"] == ist(2026, 12, 14)


def test_a_wish_to_cancel_at_the_cycles_end_comes_true_then(life: Life) -> None:
    subscription_id = life.subscribe()
    charges.pay(life.world, subscription_id, method="card")
    subscriptions.cancel(life.world, subscription_id, at_cycle_end=True)
    life.events()

    life.clock.move_to(ist(2026, 11, 14) - 1)
    assert life.tick() == []
    life.clock.move_to(ist(2026, 11, 14))

    assert life.tick() == ["subscription.cancelled"]
    assert life.entity(subscription_id)["status"] == "cancelled"
    assert [invoice.entity["status"] for invoice in life.world.all("invoice")] == ["paid"]


def test_a_year_passes_at_once(life: Life) -> None:
    subscription_id = life.subscribe(total_count=120)
    charges.pay(life.world, subscription_id, method="upi")
    life.events()

    life.clock.at += timedelta(days=365)
    told = life.tick()

    assert told.count("subscription.charged") == 12
    assert life.entity(subscription_id)["paid_count"] == 13


def test_a_change_now_charges_the_rest_of_the_period_by_an_invoice_of_its_own(a: Builder, sdk: Any) -> None:
    subscription_id = a.paid_subscription(international=True)
    before = sdk.subscription.fetch(subscription_id)

    after = sdk.subscription.edit(subscription_id, {"quantity": 2})

    invoices = sdk.invoice.all({"subscription_id": subscription_id})["items"]
    assert after["quantity"] == 2
    assert (after["current_start"], after["current_end"]) == (before["current_start"], before["current_end"])
    assert [invoice["status"] for invoice in invoices] == ["paid", "paid"]
    assert 0.99 * 235_882 <= invoices[0]["amount"] <= 235_882
    assert sdk.subscription.fetch(subscription_id)["paid_count"] == 1


def test_a_failed_payment_may_come_back_under_its_id(a: Builder, sdk: Any) -> None:
    order_id = a.order()
    failed = a.sandbox.act(f"orders/{order_id}/fail", method="upi")
    payment_id = failed[0]["parsed"]["payload"]["payment"]["entity"]["id"]

    late = a.sandbox.act(f"orders/{order_id}/pay", payment_id=payment_id)

    assert [delivery["event"] for delivery in failed] == ["payment.failed"]
    assert [delivery["event"] for delivery in late] == [
        "payment.authorized",
        "payment.captured",
        "order.paid",
    ]
    assert {delivery["parsed"]["payload"]["payment"]["entity"]["id"] for delivery in late} == {payment_id}
    assert sdk.payment.fetch(payment_id)["error_code"] is None
    assert "already paid" in a.sandbox.refusal(f"orders/{order_id}/pay", method="upi")


def test_a_lost_dispute_takes_the_money_once(a: Builder, sdk: Any) -> None:
    _, payment_id = a.paid_order()
    opened = a.sandbox.act(f"payments/{payment_id}/dispute", amount=100_000)
    dispute_id = opened[0]["parsed"]["payload"]["dispute"]["entity"]["id"]

    lost = a.sandbox.act(f"disputes/{dispute_id}/lost")

    assert lost[0]["event"] == "payment.dispute.lost"
    assert sdk.dispute.fetch(dispute_id)["amount_deducted"] == 100_000
    assert "already lost" in a.sandbox.refusal(f"disputes/{dispute_id}/won")


def test_a_refused_act_leaves_no_trace(a: Builder, sdk: Any) -> None:
    subscription_id = a.trial()
    before = sdk.subscription.fetch(subscription_id)
    count = len(a.sandbox.http.get("/_sandbox/deliveries").json())

    message = a.sandbox.refusal(f"subscriptions/{subscription_id}/authenticate", method="card")

    assert message == "The subscription is already authenticated"
    assert sdk.subscription.fetch(subscription_id) == before
    assert len(a.sandbox.http.get("/_sandbox/deliveries").json()) == count
