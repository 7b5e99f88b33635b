"""Money that banks ask back: lost takes as a refund does, won gives back, nothing is taken twice."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import PRO_PAISE, Life, refused, selling, with_plan
from tests.subscriptions.test_refunds import CREDITS, due, grant_due, paid


def opened(room: Room, payment_id: str, **body: Any) -> tuple[str, list[dict[str, Any]]]:
    told = room.sandbox.act(f"payments/{payment_id}/dispute", **body)
    return told[0]["parsed"]["payload"]["dispute"]["entity"]["id"], told


def settled(room: Room, dispute_id: str, outcome: str) -> list[dict[str, Any]]:
    return room.sandbox.act(f"disputes/{dispute_id}/{outcome}")


def won_after_all(room: Room, lost: list[dict[str, Any]], **of: Any) -> list[dict[str, Any]]:
    """The bank thought again about a dispute that it had decided."""
    payload = lost[-1]["parsed"]["payload"]
    dispute = payload["dispute"]["entity"] | {"status": "won", "amount_deducted": 0} | of
    return room.sandbox.act(
        "events",
        event="payment.dispute.won",
        payload={"payment": payload["payment"]["entity"], "dispute": dispute},
    )


async def test_a_dispute_takes_nothing_until_it_is_lost(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    dispute_id, told = opened(room, payment_id)
    await life.tell(told)
    await life.tell(settled(room, dispute_id, "under_review"))
    assert (await life.credits(), life.findings()) == (CREDITS, [])

    lost = settled(room, dispute_id, "lost")
    await life.tell([*lost, *lost, *told])

    assert (await life.credits(), life.findings()) == (0, ["dispute_lost"])
    [row] = room.rows("SELECT * FROM billing_disputes WHERE tenant_id = %s", tenant)
    assert (row["status"], row["amount_deducted_paise"], row["credits_revoked"]) == (
        "lost",
        PRO_PAISE,
        CREDITS,
    )
    [taken] = life.revocations()
    assert taken["reference_id"] == f"razorpay:{dispute_id}"
    assert room.sandbox.sdk.dispute.fetch(dispute_id)["status"] == "lost"
    await life.assert_stands("pro")


async def test_a_dispute_that_is_won_changes_nothing(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    dispute_id, told = opened(room, payment_id, amount=100_000)
    await life.tell([*settled(room, dispute_id, "won"), *told])
    assert (await life.credits(), life.revocations(), life.findings()) == (CREDITS, [], [])


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_a_part_lost_and_a_part_refunded_take_their_shares_in_any_order(
    room: Room, tenant: str, order: tuple[int, ...]
) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    dispute_id, told = opened(room, payment_id, amount=77_777)
    told += settled(room, dispute_id, "lost")
    other_id, more = opened(room, payment_id, amount=10_001)
    more += settled(room, other_id, "lost")
    refund = room.sandbox.act(f"payments/{payment_id}/refund", amount=50_005)
    refund_id = refund[0]["parsed"]["payload"]["refund"]["entity"]["id"]
    refund += room.sandbox.act(f"refunds/{refund_id}/process")

    for number in order:
        await life.tell([told, more, refund][number])

    assert await life.credits() == CREDITS - due(77_777 + 10_001 + 50_005)
    assert len(life.revocations()) == 3


@pytest.mark.parametrize("first", ["refund", "dispute"])
async def test_refunded_and_lost_in_full_takes_the_credits_once(room: Room, tenant: str, first: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    dispute_id, told = opened(room, payment_id)
    if first == "refund":
        await life.refund(payment_id)
        await life.hear()
        await life.tell([*told, *settled(room, dispute_id, "lost")])
    else:
        await life.tell([*told, *settled(room, dispute_id, "lost")])
        dashboard = room.sandbox.act(f"payments/{payment_id}/refund")
        refund_id = dashboard[0]["parsed"]["payload"]["refund"]["entity"]["id"]
        await life.tell([*dashboard, *room.sandbox.act(f"refunds/{refund_id}/process")])

    assert await life.credits() == 0
    assert sum(row["credits"] for row in life.revocations()) == CREDITS
    pack = await room.buy_credits(tenant, pack="small")
    await life.tell(room.sandbox.act(f"orders/{pack.order_id}/pay", method="upi"))
    assert await life.credits() == 500


async def test_won_after_it_was_lost_gives_back_what_was_taken(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    await life.spend(4_000)
    dispute_id, told = opened(room, payment_id)
    lost = settled(room, dispute_id, "lost")
    await life.tell([*told, *lost])
    assert await life.credits() == 0

    won = won_after_all(room, lost)
    await life.tell([*won, *won, *lost])

    assert await life.credits() == CREDITS - 4_000
    [row] = life.revocations()
    assert row["restored_at"] is not None
    # A refund afterwards takes as if there had been no dispute.
    await life.refund(payment_id, PRO_PAISE // 2)
    await life.hear()
    assert await life.credits() == CREDITS - 4_000 - due(PRO_PAISE // 2)


async def test_won_before_we_hear_that_it_was_lost_takes_nothing(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    dispute_id, told = opened(room, payment_id)
    lost = settled(room, dispute_id, "lost")
    await life.tell([*won_after_all(room, lost), *lost, *told])
    assert (await life.credits(), life.revocations()) == (CREDITS, [])


async def test_lost_again_in_a_later_phase_takes_again(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    dispute_id, told = opened(room, payment_id)
    lost = settled(room, dispute_id, "lost")
    await life.tell([*told, *lost, *won_after_all(room, lost)])
    assert await life.credits() == CREDITS

    payload = lost[-1]["parsed"]["payload"]
    again = room.sandbox.act(
        "events",
        event="payment.dispute.lost",
        payload={
            "payment": payload["payment"]["entity"],
            "dispute": payload["dispute"]["entity"] | {"phase": "arbitration"},
        },
    )
    await life.tell([*again, *again])
    await life.reconcile()

    assert await life.credits() == 0
    assert [row["restored_at"] is None for row in life.revocations()] == [False, True]
    assert life.open_tasks() == []


async def test_what_comes_back_after_it_expired_lives_thirty_days(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    payment_id = life.payments()[0]["id"]
    dispute_id, told = opened(room, payment_id)
    lost = settled(room, dispute_id, "lost")
    await life.tell([*told, *lost])
    await life.cancel()
    await life.pass_time(days=60)
    assert (await life.credits(), life.at_provider()) == (0, {sub: "cancelled"})

    await life.tell(won_after_all(room, lost))

    assert await life.credits() == CREDITS
    travel.forward(days=29)
    assert await life.credits() == CREDITS
    travel.forward(days=1.1)
    assert await life.credits() == 0


async def test_a_dispute_about_a_payment_that_is_told_later_waits_for_it(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    await room.provision(tenant)
    begun = await room.checkout(tenant)
    charge = room.sandbox.act(f"subscriptions/{begun.checkout.subscription_id}/pay", method="card")
    [payment_id] = {
        delivery["parsed"]["payload"]["payment"]["entity"]["id"]
        for delivery in charge
        if delivery["event"] == "subscription.charged"
    }
    dispute_id, told = opened(room, payment_id, amount=100_000)
    await life.tell([*settled(room, dispute_id, "lost"), *told])
    [row] = room.rows("SELECT tenant_id FROM billing_disputes WHERE id = %s", dispute_id)
    assert row["tenant_id"] is None

    await life.tell(charge)

    assert await life.credits() == CREDITS - due(100_000)
    [row] = room.rows("SELECT tenant_id FROM billing_disputes WHERE id = %s", dispute_id)
    assert row["tenant_id"] == tenant


async def test_a_lost_dispute_takes_of_each_month_of_a_dripping_year(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    async with selling(room, with_plan("pro", credit_cadence="monthly")):
        payment_id = await paid(life, "pro", "yearly")
        await grant_due(room, "1")
        dispute_id, told = opened(room, payment_id)
        lost = settled(room, dispute_id, "lost")
        await life.tell([*told, *lost])
        assert await life.credits() == 0
        travel.forward(days=33)
        await grant_due(room, "2")
        assert await life.credits() == 0
        await life.tell(won_after_all(room, lost))
        await grant_due(room, "3")
        # The first month is over, with thirty days for what came back; the second is due.
        assert await life.credits() == 2 * CREDITS
    assert [row["reference_id"] for row in life.revocations()] == [f"razorpay:{dispute_id}:m1"]


async def test_a_pack_that_was_paid_twice_is_granted_once_and_a_person_is_told(
    room: Room, tenant: str
) -> None:
    life = Life(room, tenant)
    await room.provision(tenant)
    pack = await room.buy_credits(tenant, pack="small")
    told = room.sandbox.act(f"orders/{pack.order_id}/pay", method="upi")
    await life.tell(told)
    [order_paid] = [delivery for delivery in told if delivery["event"] == "order.paid"]
    payload = {name: part["entity"] for name, part in order_paid["parsed"]["payload"].items()}
    payload["payment"] = payload["payment"] | {"id": "pay_Twice000000001"}
    twice = room.sandbox.act("events", event="order.paid", payload=payload)
    await life.tell([*twice, *twice])

    assert (await life.credits(), life.findings()) == (500, ["purchase_paid_twice"])
    assert len(life.payments()) == 1


async def test_what_is_disputed_is_not_refunded_as_well(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    await life.subscribe("pro")
    [payment] = life.payments()
    await life.tell(room.sandbox.act(f"payments/{payment['id']}/dispute", amount=200_000))

    async with refused("REFUND_EXCEEDS_PAYMENT"):
        await life.refund(payment["id"], key="all", amount=payment["amount_paise"])
    rest = await life.refund(payment["id"], key="rest")

    assert rest.amount_paise == payment["amount_paise"] - 200_000
