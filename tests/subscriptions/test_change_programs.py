"""Random lives of one tenant: whatever is asked, lost and paid, nobody is charged twice and all books agree."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.errors import BillingError
from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import Life

STEPS = 22
# What a caller may be told; anything else is a fault of ours.
REFUSALS = frozenset(
    {
        "ALREADY_SUBSCRIBED",
        "CHANGE_PENDING",
        "CHECKOUT_CLOSED",
        "NO_PENDING_CHANGE",
        "NO_SUBSCRIPTION",
        "PROVIDER_REFUSED",
        "PROVIDER_UNAVAILABLE",
        "QUOTE_STALE",
        "REFUND_EXCEEDS_PAYMENT",
        "SUBSCRIPTION_EXISTS",
        "WRONG_STATUS",
    }
)
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "drop"},
    {"kind": "status", "status": 502},
    {"kind": "status", "status": 502, "work_done": True},
    {"kind": "status", "status": 429},
)


class Program:
    """One life, drawn from a seed."""

    def __init__(self, life: Life, seed: int) -> None:
        self.life, self.dice, self.keys = life, random.Random(seed), 0
        self.told: list[str] = []
        self.steps: tuple[Callable[[], Awaitable[Any]], ...] = (
            self.change,
            self.change,
            self.complete,
            self.complete,
            self.complete,
            self.checkout,
            self.checkout,
            self.wait,
            self.wait,
            self.wait,
            self.wait,
            self.wait,
            self.undo,
            self.cancel,
            self.pause,
            self.resume,
            self.refund,
            self.app,
            self.spend,
        )

    def key(self) -> str:
        self.keys += 1
        return f"k{self.keys}"

    async def step(self) -> None:
        """Something happens; a caller whose answer is lost repeats, as callers do."""
        what = self.dice.choice(self.steps)
        self.told.append(what.__name__)
        if self.dice.random() < 0.3:
            fault = self.dice.choice(FAULTS)
            self.life.room.sandbox.set("faults", method="POST", path="/v1", **fault)
            self.told[-1] += f" {fault}"
        await what()
        if self.life.row()["razorpay_subscription_id"] is None:  # lives on free are short of events
            await self.checkout()
            await self.complete()

    async def ask(self, call: Callable[[], Awaitable[Any]]) -> None:
        for _ in range(3):
            try:
                await call()
            except BillingError as refusal:
                assert refusal.reason in REFUSALS, refusal
                if refusal.reason != "PROVIDER_UNAVAILABLE":
                    return
                await self.life.pass_time(hours=0.1)
            else:
                return

    async def change(self) -> None:
        plan = self.dice.choices(["starter", "pro", "business", "free"], [3, 3, 3, 1])[0]
        cycle, key = self.dice.choice(["monthly", "monthly", "yearly"]), self.key()
        await self.ask(lambda: self.life.change(plan, cycle, key=key))

    async def checkout(self) -> None:
        plan, cycle = self.dice.choice(["starter", "pro"]), self.dice.choice(["monthly", "yearly"])
        trial, key = self.dice.random() < 0.5, self.key()
        await self.ask(
            lambda: self.life.room.checkout(self.life.tenant, plan=plan, cycle=cycle, key=key, trial=trial)
        )

    async def complete(self) -> None:
        """The customer sets up or pays what waits; webhooks come twice and in any order."""
        waiting = [each for each, status in self.life.at_provider().items() if status == "created"]
        if not waiting:
            return
        subscription_id = self.dice.choice(waiting)
        start = self.life.provider(subscription_id)["start_at"]
        told = self.life.room.sandbox.act(
            f"subscriptions/{subscription_id}/{'authenticate' if start else 'pay'}", method="card"
        )
        told += self.dice.sample(told, len(told) // 2)
        self.dice.shuffle(told)
        await self.life.tell(told)

    async def wait(self) -> None:
        living = [each for each, status in self.life.at_provider().items() if status == "active"]
        if living and self.dice.random() < 0.3:
            self.life.room.sandbox.act(f"subscriptions/{living[0]}/outcomes", outcomes=["fail", "fail"])
        for _ in range(self.dice.randint(4, 24)):
            await self.life.pass_time(hours=self.dice.choice([6, 24, 40]))

    async def undo(self) -> None:
        key = self.key()
        await self.ask(lambda: self.life.undo(key))

    async def cancel(self) -> None:
        mode, key = self.dice.choices(["now", "at_period_end"], [1, 4])[0], self.key()
        await self.ask(lambda: self.life.cancel(mode, key=key))

    async def pause(self) -> None:
        key = self.key()
        await self.ask(lambda: self.life.pause(key))

    async def resume(self) -> None:
        key = self.key()
        await self.ask(lambda: self.life.resume(key))

    async def refund(self) -> None:
        payments = self.life.payments()
        if not payments or self.dice.random() < 0.5:
            return
        payment, key = self.dice.choice(payments), self.key()
        amount = self.dice.choice([None, 100, payment["amount_paise"] // 3])
        await self.ask(lambda: self.life.refund(payment["id"], amount, key=key))

    async def app(self) -> None:
        """The customer cancels in the UPI app."""
        may = [
            each
            for each, status in self.life.at_provider().items()
            if status in ("active", "authenticated", "paused", "pending", "halted")
        ]
        if may and self.dice.random() < 0.5:
            await self.life.act(self.dice.choice(may), "cancel")

    async def spend(self) -> None:
        available = await self.life.credits()
        if available:
            await self.life.spend(self.dice.randint(1, available), key=self.key())

    async def settle(self) -> None:
        """All is told and done that can be."""
        self.life.room.sandbox.http.delete("/_sandbox/faults")
        for _ in range(3):
            await self.life.pass_time(hours=2)
        await self.life.hear()
        await self.life.reconcile()

    async def assert_sound(self) -> None:
        life = self.life
        row, told = life.row(), self.told
        await life.assert_stands(row["plan_id"], row["status"])
        # Nothing lives at the provider but what we rely on, and what waits to follow it.
        ours = {row["razorpay_subscription_id"], row["pending_razorpay_subscription_id"]}
        assert set(life.living()) <= ours, (told, life.at_provider(), row)
        payments, refunds = life.payments(), life.refunds()
        assert len(payments) == life.captured(), told
        for payment in payments:
            given = [each for each in refunds if each["payment_id"] == payment["id"]]
            done = sorted(each["amount_paise"] for each in given if each["status"] == "processed")
            assert life.refunded(payment["id"]) == done, (told, given)
            assert sum(done) <= payment["amount_paise"], told
        granted = {
            grant["reference_id"]: grant["credits"]
            for grant in life.room.rows("SELECT * FROM credit_grants WHERE tenant_id = %s", life.tenant)
        }
        taken: dict[str, int] = {}
        for each in life.revocations():
            if each["restored_at"] is None:
                taken[each["grant_reference_id"]] = taken.get(each["grant_reference_id"], 0) + each["credits"]
        assert all(credits <= granted[reference] for reference, credits in taken.items()), told
        assert await life.credits() >= 0


@pytest.mark.parametrize("seed", range(4))
async def test_any_life_ends_with_one_plan_and_books_that_agree(
    room: Room, tenant: str, travel: Travel, seed: int
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("starter", trial=seed % 2 == 0)
    program = Program(life, seed)
    for _ in range(STEPS):
        await program.step()
        await program.settle()
        await program.assert_sound()
