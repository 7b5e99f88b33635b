"""Twins live the same life at the provider; one hears of it in order, the other anyhow: in the end they have the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from billing.ledger.v1 import ledger_pb2
from google.protobuf.duration_pb2 import Duration

from tests.subscriptions.conftest import Room
from tests.subscriptions.life import Life
from tests.subscriptions.test_funding_table import Deliveries, as_won, entity, lots

SEEDS = range(15)
HELD, SPENT = 4_000, 5_000


@dataclass
class Twin:
    """One tenant, and what happened at the provider since it was last told anything."""

    life: Life
    chance: random.Random
    subscription_id: str = ""
    payments: list[str] = field(default_factory=list)
    untold: Deliveries = field(default_factory=list)

    def happens(self, path: str, **body: Any) -> Deliveries:
        """An act at the provider of which nobody hears yet."""
        told = self.life.room.sandbox.act(path, deliver=False, **body)
        self.untold += told
        return told

    def pays(self, what: str = "charge") -> None:
        told = self.happens(f"subscriptions/{self.subscription_id}/{what}", method="card")
        self.payments.append(entity(told, "payment")["id"])

    def fails_and_recovers(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            self.happens(f"subscriptions/{self.subscription_id}/fail")
        if self.chance.random() < 0.7:
            self.pays()
        else:
            self.ends = True

    ends: bool = False

    def pauses(self) -> None:
        self.happens(f"subscriptions/{self.subscription_id}/pause")
        self.happens(f"subscriptions/{self.subscription_id}/resume")

    def refunds(self) -> None:
        payment = self.life.room.sandbox.sdk.payment.fetch(self.chance.choice(self.payments))
        left = payment["amount"] - payment["amount_refunded"]
        amount = self.chance.choice([left, left // 3, left // 2])
        if amount < 100:
            return
        told = self.happens(f"payments/{payment['id']}/refund", amount=amount)
        outcome = self.chance.choice(["process", "process", "fail"])
        self.happens(f"refunds/{entity(told, 'refund')['id']}/{outcome}")

    def disputes(self) -> None:
        payment = self.life.room.sandbox.sdk.payment.fetch(self.chance.choice(self.payments))
        share = self.chance.choice([1, 2, 3])
        told = self.happens(f"payments/{payment['id']}/dispute", amount=payment["amount"] // share)
        dispute_id = entity(told, "dispute")["id"]
        if self.chance.random() < 0.5:
            self.happens(f"disputes/{dispute_id}/under_review")
        lost = self.happens(f"disputes/{dispute_id}/{self.chance.choice(['lost', 'lost', 'won'])}")
        if lost[-1]["event"] == "payment.dispute.lost" and self.chance.random() < 0.4:
            self.untold.append(as_won(lost[-1]))

    async def buys_a_pack(self) -> None:
        order = await self.life.room.buy_credits(self.life.tenant, key=f"pack-{len(self.payments)}")
        told = self.happens(f"orders/{order.order_id}/pay", method="upi")
        self.payments.append(entity(told, "payment")["id"])

    async def is_told(self, order: Callable[[Deliveries], Deliveries]) -> None:
        told, self.untold = order(self.untold), []
        await self.life.tell(told)


async def lives(twin: Twin, order: Callable[[Deliveries], Deliveries]) -> None:
    """A first month, part of it held and part of it spent; then anything; then what was held and spent comes back."""
    room, tenant = twin.life.room, twin.life.tenant
    await room.provision(tenant)
    twin.subscription_id = (await room.checkout(tenant)).checkout.subscription_id
    twin.pays("pay")
    await twin.is_told(order)
    assert await twin.life.credits() == 15_000
    hold = await room.ledger.service.PlaceHold(
        ledger_pb2.PlaceHoldRequest(
            tenant_id=tenant,
            idempotency_key="hold",
            credits=HELD,
            reason="blog.draft",
            ttl=Duration(seconds=600),
        )
    )
    debit = await room.ledger.service.Debit(
        ledger_pb2.DebitRequest(
            tenant_id=tenant, idempotency_key="debit", credits=SPENT, reason="blog.publish"
        )
    )
    for _ in range(twin.chance.randint(3, 7)):
        steps = ["pays", "fails_and_recovers", "pauses", "refunds", "refunds", "disputes", "disputes", "pack"]
        step = twin.chance.choice(steps)
        if step == "pack":
            await twin.buys_a_pack()
        elif not twin.ends or step in ("refunds", "disputes"):
            getattr(twin, step)()
    await twin.is_told(order)
    await room.ledger.service.VoidHold(
        ledger_pb2.VoidHoldRequest(tenant_id=tenant, idempotency_key="void", hold_id=hold.hold.id)
    )
    await room.ledger.service.RefundDebit(
        ledger_pb2.RefundDebitRequest(
            tenant_id=tenant,
            idempotency_key="back",
            transaction_id=debit.transaction.id,
            reason="blog.unpublish",
        )
    )
    await twin.life.reconcile()


async def what_it_has(twin: Twin) -> dict[str, Any]:
    """All that must be the same, without names and moments. Payments are told apart by their place in the life."""
    life, room = twin.life, twin.life.room
    place = {f"razorpay:{payment_id}": number for number, payment_id in enumerate(twin.payments)}
    taken: dict[int, int] = {}
    for each in life.revocations():
        if each["restored_at"] is None:
            number = place[each["grant_reference_id"]]
            taken[number] = taken.get(number, 0) + each["credits"]
    row = life.row()
    same = ("plan_id", "status", "cancel_at_period_end", "pending_kind", "entitlements")
    whether = ("past_due_since", "current_period_end", "razorpay_subscription_id")
    known = room.rows(
        "SELECT status, paid_count, auth_attempts, authorised, failing_paid_count FROM provider_subscriptions"
        " WHERE tenant_id = %s",
        life.tenant,
    )
    documents = room.rows(
        "SELECT kind, count(*) AS number, sum(total_paise) AS total FROM invoices WHERE tenant_id = %s"
        " GROUP BY kind ORDER BY kind",
        life.tenant,
    )
    return {
        "row": {name: row[name] for name in same} | {name: row[name] is not None for name in whether},
        "known": known,
        "grants": sorted((place[reference], lot.granted) for reference, lot in (await lots(life)).items()),
        "remaining": sorted(
            (place[reference], lot.remaining) for reference, lot in (await lots(life)).items()
        ),
        "taken": taken,
        "payments": sorted(
            (p["amount_paise"], p["amount_refunded_paise"], p["status"]) for p in life.payments()
        ),
        "refunds": sorted((r["amount_paise"], r["status"]) for r in life.refunds()),
        "documents": documents,
        "balance": await room.balance(life.tenant),
        "at the provider": sorted(life.at_provider().values()),
        "owed": life.open_tasks(),
    }


@pytest.mark.parametrize("seed", SEEDS)
async def test_twins_end_with_the_same(room: Room, tenant: str, seed: int) -> None:
    manner = random.Random(f"manner {seed}")

    def anyhow(told: Deliveries) -> Deliveries:
        shuffled = [delivery for delivery in told for _ in range(manner.choice([1, 1, 2]))]
        manner.shuffle(shuffled)
        return shuffled

    one = Twin(Life(room, f"{tenant}-one"), random.Random(seed))
    other = Twin(Life(room, f"{tenant}-other"), random.Random(seed))
    await lives(one, lambda told: told)
    await lives(other, anyhow)

    expected, found = await what_it_has(one), await what_it_has(other)
    assert found == expected
    left = sum(granted for _, granted in expected["grants"]) - sum(expected["taken"].values())
    assert sum(expected["balance"].values()) == left
    assert expected["owed"] == []
