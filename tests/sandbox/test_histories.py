"""Whatever customers, banks, merchants and time do, and in which order: the books stay right and a restart agrees."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import Refusal
from sandbox.state import addons, catalogue, changes, charges, due, payments, refunds, subscriptions
from sandbox.state.world import Journal, World

ACTS = {
    "pay": lambda world, sub: charges.pay(world, sub, method="card", international=True),
    "charge": lambda world, sub: charges.pay(world, sub),
    "fail": lambda world, sub: charges.fail(world, sub),
    "authenticate": lambda world, sub: charges.authenticate(world, sub, method="card", international=True),
    "pause": lambda world, sub: subscriptions.pause(world, sub),
    "resume": lambda world, sub: subscriptions.resume(world, sub),
    "cancel": lambda world, sub: subscriptions.cancel(world, sub, at_cycle_end=False),
    "cancel at end": lambda world, sub: subscriptions.cancel(world, sub, at_cycle_end=True),
    "more": lambda world, sub: changes.update(world, sub, {"quantity": 3}),
    "fewer": lambda world, sub: changes.update(world, sub, {"quantity": 1}),
    "more later": lambda world, sub: changes.update(
        world, sub, {"quantity": 2, "schedule_change_at": "cycle_end"}
    ),
    "late": lambda world, sub: due.plan_outcomes(world, sub, ["late", "fail", "late"]),
    "addon": lambda world, sub: addons.create(
        world, sub, {"item": {"name": "Seats", "amount": 900, "currency": "INR"}}
    ),
    "forget change": lambda world, sub: changes.forget_scheduled(world, sub),
    "unlucky": lambda world, sub: due.set_habits(world, fail_share=0.5, seed=3),
    "refund": lambda world, sub: refunds.create_refund(
        world, world.all("payment")[-1].entity["id"], {"amount": 100}
    ),
    "order": lambda world, sub: payments.pay_order(
        world, payments.create_order(world, {"amount": 500, "currency": "INR"}).entity["id"], method="upi"
    ),
}
steps = st.one_of(
    st.sampled_from(sorted(ACTS)),
    st.integers(min_value=1, max_value=70 * 24).map(lambda hours: timedelta(hours=hours)),
)


def dump(world: World) -> dict[str, list[tuple[dict, dict]]]:
    kinds = ("plan", "customer", "subscription", "order", "payment", "invoice", "refund")
    return {kind: [(record.entity, record.inner) for record in world.all(kind)] for kind in kinds}


def check_books(world: World) -> None:
    for record in world.all("subscription"):
        entity = record.entity
        invoices = [each.entity for each in world.all("invoice")]
        paid_cycles = {each["billing_start"] for each in invoices if each["status"] == "paid"}
        assert entity["paid_count"] == len(paid_cycles)
        assert entity["paid_count"] <= entity["total_count"] - entity["remaining_count"]
        assert 0 <= entity["remaining_count"] <= entity["total_count"]
        assert entity["auth_attempts"] <= charges.ATTEMPTS
        if entity["status"] in subscriptions.ENDED:
            assert entity["charge_at"] is None
            assert entity["ended_at"]
    settled = [each.entity for each in world.all("payment") if each.entity["captured"]]
    orders = [each.entity for each in world.all("order") if each.entity["status"] == "paid"]
    assert sorted(each["order_id"] for each in settled) == sorted(each["id"] for each in orders)
    for payment in settled:
        given_back = [
            each.entity["amount"]
            for each in world.all("refund")
            if each.entity["payment_id"] == payment["id"] and each.entity["status"] != "failed"
        ]
        assert payment["amount_refunded"] == sum(given_back) <= payment["amount"]


@settings(max_examples=60, deadline=None)
@given(history=st.lists(steps, max_size=30), trial=st.booleans(), cycles=st.integers(1, 4))
def test_any_history_keeps_the_books(history: list[str | timedelta], trial: bool, cycles: int) -> None:
    at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        world = World(lambda: at, account_id="acc", journal=Journal(path))
        item = {"name": "Pro", "amount": 235_882, "currency": "INR"}
        plan = catalogue.create_plan(world, {"period": "monthly", "interval": 1, "item": item})
        request = {"plan_id": plan.entity["id"], "total_count": cycles}
        if trial:
            request["start_at"] = int((at + timedelta(days=14)).timestamp())
        subscription_id = subscriptions.create(world, request).entity["id"]
        world.commit()
        ended = None

        for step in history:
            before = dump(world)
            if isinstance(step, timedelta):
                at += step
                for waiting in due.due(world):
                    due.step(world, waiting)
                    world.commit()
            elif step != "refund" or world.all("payment"):
                try:
                    ACTS[step](world, subscription_id)
                    world.commit()
                except Refusal:
                    world.rollback()
                    assert dump(world) == before
            check_books(world)
            status = world.get("subscription", subscription_id).entity["status"]
            assert ended in (None, status)
            ended = status if status in subscriptions.ENDED else None

        world.close()
        again = World(lambda: at, account_id="acc", journal=Journal(path))
        assert dump(again) == dump(world)
        again.close()
