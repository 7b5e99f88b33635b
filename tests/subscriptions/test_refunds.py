"""Money that goes back: once per key, never more than was paid, and the credits that it bought go with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from billing.ledger.v1 import ledger_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as maintenance_pb
from google.protobuf import duration_pb2

from services.subscriptions.rules.catalog import Catalog
from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import PRO_PAISE, STARTER_PAISE, Life, refused, selling, with_plan

LOST: list[dict[str, Any]] = [
    {"kind": "drop"},
    {"kind": "status", "status": 502, "work_done": True},
    {"kind": "status", "status": 502},
    {"kind": "status", "status": 429},
]
CREDITS = 15_000


async def paid(life: Life, plan: str = "pro", cycle: str = "monthly") -> str:
    await life.subscribe(plan, cycle)
    payment_id: str = life.payments()[-1]["id"]
    return payment_id


def due(paise: int) -> int:
    """Credits that refunds of so many paise in all take of a month of pro."""
    return CREDITS * min(PRO_PAISE, paise) // PRO_PAISE


async def test_refunds_in_parts_take_their_share_and_never_more_than_was_paid(
    room: Room, tenant: str
) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    parts, gone = [33_333, 100, 70_001], 0
    for number, amount in enumerate(parts):
        answer = await life.refund(payment_id, amount, key=f"k{number}")
        assert (answer.amount_paise, answer.replayed) == (amount, False)
        assert answer.credits_to_revoke == due(gone + amount) - due(gone)
        assert answer.provider_refund_id.startswith("rfnd_")
        await life.hear()
        gone += amount
        assert await life.credits() == CREDITS - due(gone)
    async with refused("REFUND_EXCEEDS_PAYMENT", captured_paise=str(PRO_PAISE), refunded_paise=str(gone)):
        await life.refund(payment_id, PRO_PAISE - gone + 1, key="too much")

    rest = await life.refund(payment_id, key="rest")
    await life.hear()
    await life.hear()
    async with refused("REFUND_EXCEEDS_PAYMENT"):
        await life.refund(payment_id, key="nothing left")
    async with refused("REFUND_EXCEEDS_PAYMENT"):
        await life.refund(payment_id, 100, key="nothing left either")

    assert rest.amount_paise == PRO_PAISE - gone
    assert sum(life.refunded(payment_id)) == PRO_PAISE
    assert (await life.credits(), len(life.refunds())) == (0, 4)
    assert sum(row["credits"] for row in life.revocations()) == CREDITS
    assert life.payments()[0]["status"] == "refunded"
    assert sorted(life.credit_notes()) == sorted([*parts, PRO_PAISE - gone])
    assert {row["status"] for row in life.refunds()} == {"processed"}
    # Money back ends nothing: that is another decision.
    await life.assert_stands("pro")
    audits = life.audits("payment.refunded")
    assert [audit["actor_id"] for audit in audits] == ["asha@example.com"] * 4
    assert {audit["actor_type"] for audit in audits} == {"operator"}
    assert audits[0]["metadata"]["reason"] == "goodwill"
    given_back = [audit["metadata"]["before"]["given_back_paise"] for audit in audits]
    assert given_back[0] == 0
    assert given_back[1:] == [audit["metadata"]["after"]["given_back_paise"] for audit in audits][:-1]
    assert {(audit["resource_type"], audit["resource_id"]) for audit in audits} == {("payment", payment_id)}
    assert life.findings() == []


async def test_a_key_refunds_once(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)

    answers = await asyncio.gather(*(life.refund(payment_id, 50_000) for _ in range(6)))
    async with refused("IDEMPOTENCY_KEY_REUSED", field="amount_paise"):
        await life.refund(payment_id, 50_001)
    async with refused("IDEMPOTENCY_KEY_REUSED", field="amount_paise"):
        await life.refund(payment_id)

    assert len({answer.refund_id for answer in answers}) == 1
    assert [answer.replayed for answer in answers].count(False) == 1
    assert life.refunded(payment_id) == [50_000]


async def test_refunds_at_once_never_exceed_the_payment(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)

    answers = await asyncio.gather(
        *(life.refund(payment_id, 60_000, key=f"k{number}") for number in range(8)), return_exceptions=True
    )
    await life.reconcile()

    refusals = [each for each in answers if isinstance(each, BaseException)]
    assert [getattr(each, "reason", each) for each in refusals] == ["REFUND_EXCEEDS_PAYMENT"] * 5
    assert life.refunded(payment_id) == [60_000] * 3


async def test_only_the_tenants_own_payments_are_refunded(room: Room, tenant: str) -> None:
    theirs, ours = Life(room, f"{tenant}-a"), Life(room, f"{tenant}-b")
    payment_id = await paid(theirs)
    await ours.subscribe("pro")

    for unknown in (payment_id, "pay_" + "A" * 14):
        async with refused("UNKNOWN_PAYMENT", payment_id=unknown):
            await ours.refund(unknown)
    async with refused("UNKNOWN_TENANT"):
        await ours.refund(payment_id, tenant=f"{tenant}-c")
    assert theirs.refunded(payment_id) == []


@pytest.mark.parametrize("fault", LOST)
async def test_a_lost_answer_refunds_once(
    room: Room, tenant: str, travel: Travel, fault: dict[str, Any]
) -> None:
    life = Life(room, tenant, travel)
    payment_id = await paid(life)
    room.sandbox.set("faults", method="POST", path="/v1/payments/*/refund", times=2, **fault)

    answer = await life.refund(payment_id, 50_000)
    again = await life.refund(payment_id, 50_000)
    assert (answer.status, answer.provider_refund_id, again.replayed) == ("pending", "", True)
    # What is on its way counts.
    async with refused("REFUND_EXCEEDS_PAYMENT", refunded_paise="50000"):
        await life.refund(payment_id, PRO_PAISE - 49_999, key="more")
    await life.pass_time(hours=5, tick=False)
    await life.pass_time(hours=5, tick=False)
    await life.hear()
    await life.reconcile()

    assert life.refunded(payment_id) == [50_000]
    [refund] = life.refunds()
    assert refund["status"] == "processed"
    assert (await life.credits(), life.credit_notes()) == (CREDITS - due(50_000), [50_000])
    assert life.open_tasks() == []
    again = await life.refund(payment_id, 50_000)
    assert (again.status, again.provider_refund_id) == ("processed", refund["provider_refund_id"])


async def test_the_webhook_may_come_before_the_lost_answer_is_asked_for_again(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    payment_id = await paid(life)
    room.sandbox.set("faults", kind="drop", method="POST", path="/v1/payments/*/refund")
    await life.refund(payment_id, 50_000)

    await life.hear()
    [refund] = life.refunds()
    assert refund["status"] == "processed"
    await life.pass_time(hours=5, tick=False)

    assert (life.refunded(payment_id), len(life.refunds()), len(life.revocations())) == ([50_000], 1, 1)
    assert await life.credits() == CREDITS - due(50_000)


async def test_a_refund_that_fails_at_the_bank_takes_nothing_and_may_be_tried_again(
    room: Room, tenant: str
) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    room.sandbox.set("faults", kind="hold_refunds")
    answer = await life.refund(payment_id)
    await life.hear("refund.created")
    assert answer.status == "pending"
    assert (await life.credits(), life.credit_notes()) == (CREDITS, [])

    await life.tell(room.sandbox.act(f"refunds/{answer.provider_refund_id}/fail"))

    assert [row["status"] for row in life.refunds()] == ["failed"]
    assert (await life.credits(), life.credit_notes(), life.findings()) == (CREDITS, [], ["refund_failed"])
    # Too late for a word of before.
    await life.hear("refund.created")
    assert [row["status"] for row in life.refunds()] == ["failed"]
    second = await life.refund(payment_id, key="again")
    await life.tell(room.sandbox.act(f"refunds/{second.provider_refund_id}/process"))
    assert (await life.credits(), life.credit_notes()) == (0, [PRO_PAISE])


async def test_a_refund_made_in_the_providers_dashboard_counts_as_ours(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    told = room.sandbox.act(f"payments/{payment_id}/refund", amount=40_000)
    [refund_id] = {delivery["parsed"]["payload"]["refund"]["entity"]["id"] for delivery in told}
    done = room.sandbox.act(f"refunds/{refund_id}/process")

    await life.tell([*done, *told, *done])

    assert (await life.credits(), life.credit_notes()) == (CREDITS - due(40_000), [40_000])
    assert [row["provider_refund_id"] for row in life.refunds()] == [refund_id]
    async with refused("REFUND_EXCEEDS_PAYMENT", refunded_paise="40000"):
        await life.refund(payment_id, PRO_PAISE - 39_999)
    answer = await life.refund(payment_id, key="rest")
    await life.hear()
    assert (answer.amount_paise, await life.credits()) == (PRO_PAISE - 40_000, 0)


@pytest.mark.parametrize("amount", [PRO_PAISE, 50_000])
async def test_a_refund_that_is_told_before_its_charge_takes_after_it_was_granted(
    room: Room, tenant: str, amount: int
) -> None:
    life = Life(room, tenant)
    await room.provision(tenant)
    begun = await room.checkout(tenant)
    charge = room.sandbox.act(f"subscriptions/{begun.checkout.subscription_id}/pay", method="card")
    [payment_id] = {
        delivery["parsed"]["payload"]["payment"]["entity"]["id"]
        for delivery in charge
        if delivery["event"] == "subscription.charged"
    }
    told = room.sandbox.act(f"payments/{payment_id}/refund", amount=amount)
    refund_id = told[0]["parsed"]["payload"]["refund"]["entity"]["id"]
    told += room.sandbox.act(f"refunds/{refund_id}/process")

    await life.tell(list(reversed(told)))
    assert (life.payments(), await life.credits()) == ([], 0)
    await life.tell(charge)
    await life.tell(told)

    assert await life.credits() == CREDITS - due(amount)
    assert (len(life.refunds()), life.credit_notes()) == (1, [amount])
    await life.assert_stands("pro")
    granted = room.rows(
        "SELECT task_type FROM billing_reconciliation_queue WHERE tenant_id = %s AND counterpart = 'ledger'"
        " ORDER BY position",
        tenant,
    )
    names = [row["task_type"] for row in granted]
    assert names.index("grant_credits") < names.index("revoke_grant")


async def test_what_was_spent_or_is_held_is_taken_when_it_comes_back(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    payment_id = await paid(life)
    await life.spend(10_000)
    held = await room.ledger.service.PlaceHold(
        ledger_pb2.PlaceHoldRequest(
            tenant_id=tenant,
            idempotency_key="hold",
            credits=3_000,
            reason="work",
            ttl=duration_pb2.Duration(seconds=3_600),
        )
    )
    answer = await life.refund(payment_id)
    await life.hear()
    assert (answer.credits_to_revoke, await life.credits()) == (CREDITS, 0)

    await room.ledger.service.VoidHold(
        ledger_pb2.VoidHoldRequest(tenant_id=tenant, idempotency_key="void", hold_id=held.hold.id)
    )
    assert await life.credits() == 0
    # Never below zero: what others bring is not taken.
    pack = await room.buy_credits(tenant, pack="small")
    await life.tell(room.sandbox.act(f"orders/{pack.order_id}/pay", method="upi"))
    assert await life.credits() == 500


async def test_a_pack_is_refunded_from_its_own_credits(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    await life.subscribe("pro")
    pack = await room.buy_credits(tenant, pack="small")
    await life.tell(room.sandbox.act(f"orders/{pack.order_id}/pay", method="upi"))
    [bought] = [row for row in life.payments() if row["purpose"] == "credit_pack"]

    answer = await life.refund(bought["id"], 20_750)
    await life.hear()

    assert (answer.credits_to_revoke, bought["amount_paise"]) == (250, 41_500)
    assert await room.balance(tenant) == {"subscription": CREDITS, "permanent": 250}


async def test_after_the_proration_of_an_upgrade_the_rest_is_refunded_and_taken_once(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    first = await paid(life, "starter")
    travel.forward(days=10)
    quote = await life.preview("pro")
    begun = await life.change("pro", token=quote.quote_token)
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    await life.hear()

    async with refused("REFUND_EXCEEDS_PAYMENT", refunded_paise=str(quote.refund_paise)):
        await life.refund(first, STARTER_PAISE)
    answer = await life.refund(first, key="rest")
    await life.hear()

    assert answer.amount_paise == STARTER_PAISE - quote.refund_paise
    assert sum(life.refunded(first)) == STARTER_PAISE
    by_cause = {row["cause"]: row["credits"] for row in life.revocations()}
    assert by_cause["proration"] == quote.credits_revoked
    assert sum(by_cause.values()) <= 3_000
    assert await life.credits() >= CREDITS
    assert sorted(life.credit_notes()) == sorted([quote.refund_paise, answer.amount_paise])


async def test_a_refund_before_an_upgrade_leaves_less_to_give_back(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    first = await paid(life, "starter")
    await life.refund(first, STARTER_PAISE - 5_000)
    await life.hear()
    travel.forward(days=3)
    quote = await life.preview("pro")
    assert quote.refund_paise == 5_000
    begun = await life.change("pro", token=quote.quote_token)
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    await life.hear()

    assert sum(life.refunded(first)) == STARTER_PAISE
    assert sum(row["credits"] for row in life.revocations()) <= 3_000
    assert await life.credits() == CREDITS + 3_000 - sum(row["credits"] for row in life.revocations())


async def test_a_proration_that_the_bank_refuses_gives_its_credits_back(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    await paid(life, "starter")
    travel.forward(days=10)
    quote = await life.preview("pro")
    assert quote.credits_revoked > 0
    room.sandbox.set("faults", kind="hold_refunds")
    begun = await life.change("pro", token=quote.quote_token)
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    [refund] = life.refunds()
    assert await life.credits() == CREDITS + 3_000 - quote.credits_revoked

    await life.tell(room.sandbox.act(f"refunds/{refund['provider_refund_id']}/fail"))
    await life.reconcile()

    assert await life.credits() == CREDITS + 3_000
    assert life.findings() == ["refund_failed"]


async def grant_due(room: Room, key: str) -> None:
    await room.maintenance.GrantDueCredits(
        maintenance_pb.GrantDueCreditsRequest(idempotency_key=f"job:grant_due_credits:{key}")
    )


def dripping() -> Catalog:
    return with_plan("pro", credit_cadence="monthly")


async def test_an_upgrade_out_of_a_dripping_year_takes_what_is_left_of_this_month(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    async with selling(room, dripping()):
        payment_id = await paid(life, "pro", "yearly")
        await grant_due(room, "1")
        travel.forward(days=40)
        await grant_due(room, "2")
        quote = await life.preview("business")
        assert 0 < quote.credits_revoked < CREDITS  # only of the month that runs
        begun = await life.change("business", token=quote.quote_token)
        await life.act(begun.checkout.subscription_id, "pay", method="card")
        await life.hear()

        assert life.refunded(payment_id) == [quote.refund_paise]
        assert sum(row["credits"] for row in life.revocations()) == quote.credits_revoked
        before = await life.credits()
        await grant_due(room, "3")
        assert await life.credits() == before
        await life.pass_time(days=35, tick=False)
        await grant_due(room, "4")
    months = room.rows("SELECT 1 FROM credit_grants WHERE tenant_id = %s AND kind = 'plan.month'", tenant)
    assert len(months) == 2


async def test_a_refund_of_a_dripping_year_takes_of_each_month_and_stops_those_to_come(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    async with selling(room, dripping()):
        payment_id = await paid(life, "pro", "yearly")
        await grant_due(room, "1")
        half = await life.refund(payment_id, life.payments()[0]["amount_paise"] // 2)
        await life.hear()
        assert (half.credits_to_revoke, await life.credits()) == (7_500, 7_500)
        travel.forward(days=33)
        await grant_due(room, "2")
        assert await life.credits() == 7_500  # the first month has expired, of the second half is owed
        rest = await life.refund(payment_id, key="rest")
        await life.hear()
        travel.forward(days=33)
        await grant_due(room, "3")
    assert rest.credits_to_revoke == 15_000
    assert await life.credits() == 0
    references = [row["reference_id"] for row in life.revocations()]
    assert len(references) == len(set(references)) == 4
    assert {reference.rsplit(":", 1)[1] for reference in references} == {"m1", "m2"}


async def test_what_banks_take_back_no_more_is_refused_for_good_and_takes_no_credits(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    payment_id = await paid(life, "pro", "yearly")
    travel.forward(days=190)
    before = await life.credits()

    answer = await life.refund(payment_id, 50_000)

    assert (answer.status, answer.provider_refund_id) == ("failed", "")
    assert (await life.credits(), life.refunded(payment_id), life.credit_notes()) == (before, [], [])
    assert life.findings() == ["refund_failed"]
    assert life.open_tasks() == []
    quote = await life.preview("business")
    assert (quote.refund_paise, quote.credits_revoked) == (0, 0)
    begun = await life.change("business", token=quote.quote_token)
    await life.act(begun.checkout.subscription_id, "pay", method="card")
    await life.reconcile()
    await life.assert_stands("business")
    assert await life.credits() == before + 50_000
    assert life.findings() == ["refund_failed", "unused_not_refundable"]
