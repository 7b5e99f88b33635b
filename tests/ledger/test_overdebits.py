"""What debits took too much is given back: each by itself, once whatever the calls, audited, never more than was taken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import types_pb2 as types

from services.ledger.actions import overdebits
from shared import errors
from tests.ledger.builders import a_batch, a_debit, a_grant, a_refund, in_days
from tests.ledger.conftest import RunningLedger, Travel, available
from tests.ledger.tampering import Hand, verify_one

Item = tuple[str, str, int]


def a_request(
    *items: Item, key: str = "T-9", should_cost: int = 0, **changes: str
) -> admin_pb.RefundOverdebitsRequest:
    values = {"actor": "asha", "reason": "T-9: charged 5 instead of 3", **changes}
    return admin_pb.RefundOverdebitsRequest(
        idempotency_key=key,
        overdebits=[
            admin_pb.Overdebit(
                tenant_id=tenant, transaction_id=transaction, credits=credits, should_cost=should_cost
            )
            for tenant, transaction, credits in items
        ],
        **values,
    )


async def refund(
    ledger: RunningLedger, *items: Item, key: str = "T-9", should_cost: int = 0, **changes: str
) -> Sequence[admin_pb.OverdebitResult]:
    request = a_request(*items, key=key, should_cost=should_cost, **changes)
    return (await ledger.admin.RefundOverdebits(request)).results


async def overdebited(ledger: RunningLedger, tenant: str, count: int = 1, credits: int = 5) -> list[str]:
    """The tenant's debits, with as many credits left again."""
    await ledger.funding.GrantCredits(a_grant(tenant, 2 * count * credits))
    answer = await ledger.service.BatchDebit(a_batch(*(a_debit(tenant, credits) for _ in range(count))))
    return [each.debit.transaction.id for each in answer.results]


def audited(hand: Hand, tenant: str) -> list[dict[str, object]]:
    return hand.look(
        "SELECT actor_id, request_id, metadata FROM billing_audit_log"
        " WHERE tenant_id = %s AND action = 'refund_overdebit' ORDER BY metadata -> 'after' ->> 'transactionId'",
        tenant,
    )


async def test_each_is_given_back_by_itself_and_audited(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    other = f"{tenant}-other"
    first, second = await overdebited(ledger, tenant, 2)
    (third,) = await overdebited(ledger, other)

    results = await refund(ledger, (tenant, first, 2), (other, third, 2), (tenant, second, 5))

    assert [each.transaction_id for each in results] == [first, third, second]
    assert [each.refund.transaction.amount for each in results] == [2, 2, 5]
    assert [each.refund.refundable for each in results] == [3, 3, 0]
    booked = results[0].refund.transaction
    assert (booked.kind, booked.reason) == (types.TRANSACTION_KIND_REFUND, "admin.refund")
    assert (booked.refunded_transaction_id, booked.description) == (first, "T-9: charged 5 instead of 3")
    assert await available(ledger, tenant) == 17
    assert (await verify_one(ledger, tenant)).verified
    line, *_ = audited(hand, tenant)
    assert line["actor_id"] == "asha"
    assert line["request_id"]
    assert line["metadata"] == {
        "reason": "T-9: charged 5 instead of 3",
        "before": {"available": 10, "refundable": 5, "transactionId": first},
        "after": {"available": 12, "refundable": 3, "credits": 2, "transactionId": booked.id},
    }
    assert (len(audited(hand, tenant)), len(audited(hand, other))) == (2, 1)
    [row] = hand.look("SELECT actor FROM credit_transactions WHERE id = %s", booked.id)
    assert row["actor"] == "asha"


async def test_cutting_the_calls_anew_and_a_colleagues_hand_change_nothing(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    debits = await overdebited(ledger, tenant, 6)
    items = [(tenant, debit, 2) for debit in debits]
    first = [*await refund(ledger, *items[:4]), *await refund(ledger, *items[4:5])]

    again = await refund(ledger, *items[::-1], actor="ben", reason="T-9: the rest")

    by_debit = {each.transaction_id: each.refund for each in again}
    assert [by_debit[each.transaction_id].transaction.id for each in first] == [
        each.refund.transaction.id for each in first
    ]
    assert [by_debit[debit].replayed for debit in debits] == [True] * 5 + [False]
    assert await available(ledger, tenant) == 30 + 6 * 2
    assert len(audited(hand, tenant)) == 6
    changed = await refund(ledger, (tenant, debits[0], 3))
    assert changed[0].refusal.reason == "IDEMPOTENCY_KEY_REUSED"
    assert changed[0].refusal.metadata["field"] == "credits"


async def test_callers_at_once_with_one_key_give_back_once(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    items = [(tenant, debit, 5) for debit in await overdebited(ledger, tenant, 60)]

    answers = await asyncio.gather(*(refund(ledger, *items) for _ in range(2)), refund(ledger, *items[::-1]))

    assert await available(ledger, tenant) == 600
    replayed = [each.refund.replayed for results in answers for each in results]
    assert (replayed.count(False), replayed.count(True)) == (60, 120)
    assert len(audited(hand, tenant)) == 60


async def test_a_second_ticket_gets_no_more_than_is_left_and_no_refusal_is_remembered(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    (debit,) = await overdebited(ledger, tenant)
    await refund(ledger, (tenant, debit, 4), key="T-1")

    [second] = await refund(ledger, (tenant, debit, 2), key="T-2")
    [rest] = await refund(ledger, (tenant, debit, 1), key="T-2")
    [nothing] = await refund(ledger, (tenant, debit, 1), key="T-3")

    assert (second.refusal.reason, second.refusal.metadata["refundable"]) == ("EXCEEDS_REFUNDABLE", "1")
    assert (rest.refund.transaction.amount, rest.refund.refundable) == (1, 0), "under the same key"
    assert nothing.refusal.metadata["refundable"] == "0"
    assert await available(ledger, tenant) == 10
    assert len(audited(hand, tenant)) == 2


async def test_two_tickets_at_once_give_back_the_difference_once(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    debits = await overdebited(ledger, tenant, 40)
    items = [(tenant, debit, 2) for debit in debits]

    both = await asyncio.gather(
        refund(ledger, *items, key="T-1", should_cost=3),
        refund(ledger, *items[::-1], key="T-2", should_cost=3),
    )
    again = await refund(ledger, *items, key="T-1", should_cost=3)

    assert await available(ledger, tenant) == 200 + 40 * 2
    assert len(audited(hand, tenant)) == 40
    refused = [each.refusal for results in both for each in results if each.HasField("refusal")]
    assert len(refused) == 40
    assert {(each.reason, each.metadata["refundable"]) for each in refused} == {("EXCEEDS_REFUNDABLE", "0")}
    assert sum(each.HasField("refund") for each in again) == sum(each.HasField("refund") for each in both[0])


async def test_an_earlier_refund_of_the_products_counts_too(ledger: RunningLedger, tenant: str) -> None:
    (debit,) = await overdebited(ledger, tenant)
    await ledger.service.RefundDebit(a_refund(tenant, debit, credits=5))

    [refused] = await refund(ledger, (tenant, debit, 1))

    assert refused.refusal.reason == "EXCEEDS_REFUNDABLE"


async def test_what_is_refused_keeps_nobody_else_from_being_given_back(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    frozen = f"{tenant}-frozen"
    (debit,), (stopped,) = await overdebited(ledger, tenant), await overdebited(ledger, frozen)
    granted = await ledger.funding.GrantCredits(a_grant(tenant, 1))
    await ledger.admin.FreezeAccount(
        admin_pb.FreezeAccountRequest(tenant_id=frozen, idempotency_key="f", actor="asha", reason="a look")
    )

    results = await refund(
        ledger,
        (f"{tenant}-nobody", "txn_1", 1),
        (tenant, "txn_2", 1),
        (tenant, granted.transaction.id, 1),
        (frozen, stopped, 1),
        (tenant, debit, 1),
    )

    assert [each.refusal.reason for each in results[:4]] == [
        "UNKNOWN_TENANT",
        "UNKNOWN_TRANSACTION",
        "INVALID_ARGUMENT",
        "ACCOUNT_FROZEN",
    ]
    assert results[4].refund.transaction.amount == 1
    assert audited(hand, frozen) == []
    assert len(audited(hand, tenant)) == 1


async def test_a_transaction_named_twice_is_refused_before_anything_is_done(
    ledger: RunningLedger, tenant: str
) -> None:
    first, second = await overdebited(ledger, tenant, 2)

    with pytest.raises(errors.InvalidArgument) as refused:
        await refund(ledger, (tenant, first, 1), (tenant, second, 1), (f"{tenant}-other", first, 2))

    assert [field for field, _ in refused.value.violations] == ["overdebits[2].transaction_id"]
    assert await available(ledger, tenant) == 10


async def test_credits_of_a_lot_that_has_expired_can_be_used_for_thirty_days(
    ledger: RunningLedger, tenant: str, travel: Travel
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(5)))
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    debited = await ledger.service.Debit(a_debit(tenant, 15))
    travel.forward(days=6)

    [result] = await refund(ledger, (tenant, debited.transaction.id, 15))

    assert await available(ledger, tenant) == 20
    lots = {entry.lot: entry.d_posted for entry in result.refund.transaction.entries}
    assert lots == {2: 5, 3: 10}, "what was permanent is permanent"
    assert (await verify_one(ledger, tenant)).verified
    travel.forward(days=29)
    assert await available(ledger, tenant) == 20
    travel.forward(days=2)
    assert await available(ledger, tenant) == 10


async def test_two_hundred_of_many_tenants_go_in_one_call(ledger: RunningLedger, tenant: str) -> None:
    tenants = [f"{tenant}-{number}" for number in range(8)]
    items = [(each, debit, 2) for each in tenants for debit in await overdebited(ledger, each, 25)]

    results = await refund(ledger, *items)

    assert {each.WhichOneof("result") for each in results} == {"refund"}
    assert [await available(ledger, each) for each in tenants] == [175] * 8


def test_a_refunds_key_is_one_that_can_be_asked_for() -> None:
    key, longest = overdebits.key_of("T-9", "txn_1"), overdebits.key_of("T" * 255, "t" * 64)

    assert key == "overdebit:T-9:txn_1"
    assert len(longest) <= 255
    assert longest != overdebits.key_of("T" * 254 + "U", "t" * 64)
