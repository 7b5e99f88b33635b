"""Every fact that creates, takes back or restores credits: what it is called, where it goes, how much, until when, once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from billing.ledger.v1 import ledger_funding_pb2, types_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as maintenance_pb

from services.subscriptions.rules.due import current_month
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import PRO_PAISE, Life, moment, selling, with_plan

GRACE = timedelta(hours=48)
Deliveries = list[dict[str, Any]]


@dataclass(frozen=True)
class Expected:
    """One lot: its reference, bucket, credits, and the end of its life."""

    reference: str
    bucket: str
    credits: int
    expires_at: Any


@dataclass(frozen=True)
class Fact:
    """A fact that creates credits, how it comes about, and what the table says of it."""

    name: str
    happens: Callable[[Life, AsyncExitStack], Awaitable[Deliveries]]
    expected: Callable[[Life], Expected]


async def lots(life: Life) -> dict[str, Any]:
    """Every lot of the tenant in the ledger, by its reference."""
    answer = await life.room.ledger.funding.ListGrants(
        ledger_funding_pb2.ListGrantsRequest(tenant_id=life.tenant, page_size=100)
    )
    return {lot.reference_id: lot for lot in answer.grants}


def keys(life: Life) -> list[str]:
    """The keys under which the ledger was asked."""
    found = life.room.rows(
        "SELECT idempotency_key FROM billing_reconciliation_queue WHERE tenant_id = %s AND counterpart = 'ledger'"
        " AND task_type <> 'push_entitlements' AND completed_at IS NOT NULL ORDER BY position",
        life.tenant,
    )
    return [row["idempotency_key"] for row in found]


async def due(life: Life, name: str) -> None:
    await life.room.maintenance.GrantDueCredits(
        maintenance_pb.GrantDueCreditsRequest(idempotency_key=f"job:grant_due_credits:{life.tenant}:{name}")
    )


async def a_monthly_cycle(life: Life, _: AsyncExitStack) -> Deliveries:
    return await bought(life, "monthly")


async def a_year(life: Life, _: AsyncExitStack) -> Deliveries:
    return await bought(life, "yearly")


async def bought(life: Life, cycle: str) -> Deliveries:
    await life.room.provision(life.tenant)
    subscription_id = (await life.room.checkout(life.tenant, cycle=cycle)).checkout.subscription_id
    return await life.act(subscription_id, "pay", method="card")


async def a_dripping_year(life: Life, stack: AsyncExitStack) -> Deliveries:
    await stack.enter_async_context(selling(life.room, with_plan("pro", credit_cadence="monthly")))
    told = await bought(life, "yearly")
    await due(life, "first")
    return told


async def a_trial(life: Life, _: AsyncExitStack) -> Deliveries:
    await life.room.provision(life.tenant)
    begun = await life.room.checkout(life.tenant, trial=True)
    return await life.act(begun.checkout.subscription_id, "authenticate", method="card", token_paise=500)


async def a_free_month(life: Life, _: AsyncExitStack) -> Deliveries:
    await life.room.provision(life.tenant)
    await due(life, "first")
    return []


async def a_pack(life: Life, _: AsyncExitStack) -> Deliveries:
    await life.room.provision(life.tenant)
    order = await life.room.buy_credits(life.tenant)
    told = life.room.sandbox.act(f"orders/{order.order_id}/pay", method="upi")
    await life.tell(told)
    return told


def paid(life: Life) -> str:
    [payment] = life.payments()
    return f"razorpay:{payment['id']}"


def period_end(life: Life) -> Any:
    return life.row()["current_period_end"] + GRACE


def first_month(life: Life) -> Expected:
    [grant] = life.room.rows("SELECT * FROM credit_grants WHERE tenant_id = %s", life.tenant)
    [payment] = life.payments()
    assert grant["period_start"] == payment["period_start"]
    return Expected(f"{paid(life)}:m1", "subscription", 15_000, grant["period_end"] + GRACE)


def a_months_credits(life: Life) -> Expected:
    month = current_month(life.room.clock())
    return Expected(f"free:{life.tenant}:{month.name}", "subscription", 100, month.end)


FACTS = [
    Fact("monthly cycle", a_monthly_cycle, lambda life: Expected(paid(life), "subscription", 15_000, period_end(life))),
    Fact("year at once", a_year, lambda life: Expected(paid(life), "subscription", 12 * 15_000, period_end(life))),
    Fact("month of a year", a_dripping_year, first_month),
    Fact(
        "trial",
        a_trial,
        lambda life: Expected(
            f"trial:{life.row()['razorpay_subscription_id']}", "subscription", 500, life.row()["trial_end"]
        ),
    ),
    Fact("free month", a_free_month, a_months_credits),
    Fact("pack", a_pack, lambda life: Expected(paid(life), "permanent", 2_200, None)),
]  # fmt: skip


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
async def test_a_fact_creates_its_credits_once(room: Room, tenant: str, fact: Fact) -> None:
    life = Life(room, tenant)
    async with AsyncExitStack() as stack:
        told = await fact.happens(life, stack)
        expected = fact.expected(life)
        # Whoever tells of it again, or looks for it again, creates nothing.
        await life.tell(told)
        if not told or "month" in fact.name:
            await due(life, "again")
        await life.reconcile()

    found = await lots(life)
    assert list(found) == [expected.reference]
    lot = found[expected.reference]
    assert types_pb2.Bucket.Name(lot.bucket) == f"BUCKET_{expected.bucket.upper()}"
    assert (lot.granted, lot.remaining) == (expected.credits, expected.credits)
    assert (moment(lot.expires_at) if lot.HasField("expires_at") else None) == expected.expires_at
    assert keys(life) == [f"grant:{expected.reference}"]


def entity(deliveries: Deliveries, kind: str) -> dict[str, Any]:
    """What a delivery says of a refund, a dispute or a payment."""
    found: dict[str, Any] = next(
        d["parsed"]["payload"][kind]["entity"] for d in deliveries if kind in d["parsed"]["payload"]
    )
    return found


async def paid_and_taken_back(life: Life, cause: str, share: float) -> tuple[Deliveries, Deliveries, str]:
    """A paid month of pro, and money of it that went back: what was told of each, nothing delivered yet."""
    await life.room.provision(life.tenant)
    subscription_id = (await life.room.checkout(life.tenant)).checkout.subscription_id
    sandbox = life.room.sandbox
    charge = sandbox.act(f"subscriptions/{subscription_id}/pay", method="card", deliver=False)
    payment_id = entity(charge, "payment")["id"]
    amount = int(PRO_PAISE * share)
    if cause == "refund":
        back = sandbox.act(f"payments/{payment_id}/refund", amount=amount, deliver=False)
        refund_id = entity(back, "refund")["id"]
        return charge, [*back, *sandbox.act(f"refunds/{refund_id}/process", deliver=False)], refund_id
    back = sandbox.act(f"payments/{payment_id}/dispute", amount=amount, deliver=False)
    dispute_id = entity(back, "dispute")["id"]
    return charge, [*back, *sandbox.act(f"disputes/{dispute_id}/lost", deliver=False)], dispute_id


@pytest.mark.parametrize("early", [False, True], ids=["after its grant", "before its grant"])
@pytest.mark.parametrize("share", [1 / 3, 1.0], ids=["part", "all"])
@pytest.mark.parametrize("cause", ["refund", "dispute"])
async def test_money_that_goes_back_takes_its_credits_once(
    room: Room, tenant: str, cause: str, share: float, early: bool
) -> None:
    life = Life(room, tenant)
    charge, back, cause_id = await paid_and_taken_back(life, cause, share)

    await life.tell([*back, *back, *charge] if early else [*charge, *back, *back])
    await life.tell([*charge, *back])
    await life.reconcile()

    taken = 15_000 * int(PRO_PAISE * share) // PRO_PAISE
    [revocation] = life.revocations()
    assert (revocation["reference_id"], revocation["grant_reference_id"]) == (
        f"razorpay:{cause_id}",
        paid(life),
    )
    assert (revocation["cause"], revocation["credits"]) == (cause, taken)
    assert keys(life) == [f"grant:{paid(life)}", f"revoke:razorpay:{cause_id}"]
    assert (await lots(life))[paid(life)].remaining == 15_000 - taken


@pytest.mark.parametrize("share", [1 / 3, 1.0], ids=["part", "all"])
async def test_a_dispute_that_is_won_after_it_took_gives_back_once(
    room: Room, tenant: str, share: float
) -> None:
    life = Life(room, tenant)
    charge, back, dispute_id = await paid_and_taken_back(life, "dispute", share)
    await life.tell([*charge, *back])
    assert await life.credits() < 15_000
    document = back[-1]["parsed"]
    won = as_won(back[-1])

    await life.tell([won, won, *back])
    await life.reconcile()

    assert document["event"] == "payment.dispute.lost"
    assert keys(life)[-1] == f"restore:razorpay:{dispute_id}"
    assert keys(life).count(f"restore:razorpay:{dispute_id}") == 1
    assert await life.credits() == 15_000


def as_won(lost: dict[str, Any]) -> dict[str, Any]:
    """The bank decided the other way in the end; the sandbox's disputes are lost for good."""
    body = lost["body"].replace(b"payment.dispute.lost", b"payment.dispute.won")
    body = body.replace(b'"status":"lost"', b'"status":"won"')
    return {**lost, "body": body, "event_id": "evt_won"}


@pytest.mark.parametrize("cause", ["refund", "dispute"])
async def test_several_parts_take_together_what_one_would(room: Room, tenant: str, cause: str) -> None:
    life = Life(room, tenant)
    charge, back, _ = await paid_and_taken_back(life, cause, 1 / 3)
    payment_id = entity(charge, "payment")["id"]
    rest = room.sandbox.act(f"payments/{payment_id}/refund", deliver=False)
    rest += room.sandbox.act(f"refunds/{entity(rest, 'refund')['id']}/process", deliver=False)

    await life.tell([*rest, *charge, *back, *rest])
    await life.reconcile()

    assert sum(each["credits"] for each in life.revocations()) == 15_000
    assert (await lots(life))[paid(life)].remaining == 0
    assert len(life.revocations()) == (2 if cause == "refund" else 1)


async def test_what_never_funds_creates_nothing(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    await room.provision(tenant)
    begun = await room.checkout(tenant, trial=True)
    token = room.sandbox.act(
        f"subscriptions/{begun.checkout.subscription_id}/authenticate", method="card", token_paise=500
    )
    order = await room.buy_credits(tenant)
    authorised = room.sandbox.act(f"orders/{order.order_id}/pay", method="upi", deliver=False)[:1]
    assert authorised[0]["event"] == "payment.authorized"

    await life.tell([*authorised, *(d for d in token if not d["event"].startswith("subscription."))])

    assert {d["event"] for d in token} >= {"payment.captured", "order.paid", "refund.processed"}
    assert await lots(life) == {}


@pytest.mark.parametrize("told", ["payment.captured", "order.paid", "invoice.paid", "subscription.activated"])
async def test_what_speaks_of_a_subscriptions_money_without_charging_funds_nothing(
    room: Room, tenant: str, told: str
) -> None:
    life = Life(room, tenant)
    charge, _, _ = await paid_and_taken_back(life, "refund", 0.5)

    await life.tell([d for d in charge if d["event"] == told] * 2)

    assert await lots(life) == {}
