"""Refunds, revocations, restorations, adjustments and freezes over gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types

from shared.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.ledger.builders import (
    a_capture,
    a_debit,
    a_grant,
    a_hold,
    a_refund,
    a_restoration,
    a_revocation,
    a_void,
    an_adjustment,
    in_days,
)
from tests.ledger.conftest import RunningLedger, Travel, available


async def posted(ledger: RunningLedger, tenant: str) -> list[tuple[str, int]]:
    """(kind, amount) of what was booked, oldest first."""
    listed = await ledger.service.ListTransactions(
        pb.ListTransactionsRequest(tenant_id=tenant, page_size=500)
    )
    names = [
        types.TransactionKind.Name(each.kind).removeprefix("TRANSACTION_KIND_")
        for each in listed.transactions
    ]
    return list(zip(names, (each.amount for each in listed.transactions), strict=True))[::-1]


async def test_a_refund_goes_back_to_its_lots_last_taken_first(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(5)))
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    debited = await ledger.service.Debit(a_debit(tenant, 15))

    part = await ledger.service.RefundDebit(a_refund(tenant, debited.transaction.id, credits=7))
    rest = await ledger.service.RefundDebit(a_refund(tenant, debited.transaction.id))

    assert [(line.lot, line.d_posted) for line in part.transaction.entries] == [(2, 5), (1, 2)]
    assert [(line.lot, line.d_posted) for line in rest.transaction.entries] == [(1, 8)]
    assert (part.refundable, rest.refundable) == (8, 0)
    assert part.transaction.refunded_transaction_id == debited.transaction.id
    assert await available(ledger, tenant) == 20
    with pytest.raises(FailedPrecondition) as refused:
        await ledger.service.RefundDebit(a_refund(tenant, debited.transaction.id, credits=1))
    assert (refused.value.reason, refused.value.metadata["refundable"]) == ("EXCEEDS_REFUNDABLE", "0")


async def test_sixteen_refunds_at_once_give_back_no_more_than_was_taken(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    debited = await ledger.service.Debit(a_debit(tenant, 50))
    refunds = [a_refund(tenant, debited.transaction.id, credits=10) for _ in range(16)]

    results = await asyncio.gather(*map(ledger.service.RefundDebit, refunds), return_exceptions=True)

    assert sum(isinstance(each, pb.RefundDebitResponse) for each in results) == 5
    assert {each.reason for each in results if isinstance(each, FailedPrecondition)} == {"EXCEEDS_REFUNDABLE"}
    assert await available(ledger, tenant) == 100


@pytest.mark.parametrize(
    ("policy", "back"),
    [
        (pb.EXPIRED_POLICY_UNSPECIFIED, 0),
        (pb.EXPIRED_POLICY_EXPIRE_AGAIN, 0),
        (pb.EXPIRED_POLICY_REGRANT_30_DAYS, 6),
        (pb.EXPIRED_POLICY_TO_PERMANENT, 6),
    ],
)
async def test_what_comes_back_to_an_ended_lot_follows_the_policy(
    ledger: RunningLedger, tenant: str, travel: Travel, policy: pb.ExpiredPolicy.ValueType, back: int
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(5)))
    debited = await ledger.service.Debit(a_debit(tenant, 6))
    travel.forward(days=6)

    answer = await ledger.service.RefundDebit(a_refund(tenant, debited.transaction.id, expired_policy=policy))

    assert answer.transaction.amount == 6
    assert answer.balance.available == back == await available(ledger, tenant)
    view = (await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))).balance
    if not back:
        assert (await posted(ledger, tenant))[-1] == ("EXPIRY", -6), "visibly"
        assert not view.lots
    else:
        [lot] = view.lots
        assert lot.reference_id == f"refund:{answer.transaction.id}"
        permanent = policy == pb.EXPIRED_POLICY_TO_PERMANENT
        assert lot.bucket == (types.BUCKET_PERMANENT if permanent else types.BUCKET_SUBSCRIPTION)
        if not permanent:
            lives = lot.expires_at.ToDatetime() - answer.transaction.created_at.ToDatetime()
            assert lives.total_seconds() == 30 * 86400
    travel.forward(days=31)
    assert await available(ledger, tenant) == (6 if policy == pb.EXPIRED_POLICY_TO_PERMANENT else 0)


async def test_only_a_debit_or_a_capture_is_refunded(ledger: RunningLedger, tenant: str) -> None:
    granted = await ledger.funding.GrantCredits(a_grant(tenant, 10))

    with pytest.raises(InvalidArgument) as refused:
        await ledger.service.RefundDebit(a_refund(tenant, granted.transaction.id))
    assert refused.value.violations[0][0] == "transaction_id"
    with pytest.raises(NotFound) as unknown:
        await ledger.service.RefundDebit(a_refund(tenant, "txn_nobody"))
    assert unknown.value.reason == "UNKNOWN_TRANSACTION"


async def test_a_revocation_takes_what_is_free_and_the_rest_when_it_returns(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100, reference_id="pay_A"))
    held = (await ledger.service.PlaceHold(a_hold(tenant, 30))).hold.id
    debited = await ledger.service.Debit(a_debit(tenant, 20))
    revocation = a_revocation(tenant, "pay_A", 100, reference_id="rfnd_A")

    first = await ledger.funding.RevokeGrant(revocation)
    again = await ledger.funding.RevokeGrant(revocation)

    assert (first.taken, first.claimed, first.already_spent) == (50, 30, 20)
    assert again.replayed
    assert (again.taken, again.claimed, again.already_spent) == (50, 30, 20)
    await ledger.service.VoidHold(a_void(tenant, held))
    assert await available(ledger, tenant) == 0
    await ledger.service.RefundDebit(a_refund(tenant, debited.transaction.id))
    assert await available(ledger, tenant) == 0
    assert await posted(ledger, tenant) == [
        *(("GRANT", 100), ("HOLD", 0), ("DEBIT", -20), ("REVOKE", -50)),
        *(("VOID", 0), ("REVOKE", -30), ("REFUND", 20), ("REVOKE", -20)),
    ]

    restored = await ledger.funding.RestoreGrant(a_restoration(tenant, "rfnd_A"))

    assert restored.transaction.amount == 100
    assert await available(ledger, tenant) == 100
    with pytest.raises(FailedPrecondition) as twice:
        await ledger.funding.RestoreGrant(a_restoration(tenant, "rfnd_A", reference_id="other"))
    assert twice.value.reason == "DUPLICATE_REFERENCE"


async def test_a_captured_claim_is_gone_and_a_restoration_ends_the_claim(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 40, reference_id="pay_B"))
    held = (await ledger.service.PlaceHold(a_hold(tenant, 40))).hold.id
    taken = await ledger.funding.RevokeGrant(a_revocation(tenant, "pay_B", 40, reference_id="disp_B"))
    assert (taken.taken, taken.claimed, taken.transaction.amount) == (0, 40, 0)

    await ledger.service.CaptureHold(a_capture(tenant, held, 25, more_follows=True))
    restored = await ledger.funding.RestoreGrant(a_restoration(tenant, "disp_B"))
    await ledger.service.VoidHold(a_void(tenant, held))

    assert restored.transaction.amount == 0
    assert await available(ledger, tenant) == 15


async def test_what_is_restored_to_an_ended_lot_lives_thirty_days(
    ledger: RunningLedger, tenant: str, travel: Travel
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 40, reference_id="pay_C", expires_at=in_days(3)))
    await ledger.funding.RevokeGrant(a_revocation(tenant, "pay_C", 30, reference_id="disp_C"))
    travel.forward(days=10)

    await ledger.funding.RestoreGrant(a_restoration(tenant, "disp_C"))

    assert await available(ledger, tenant) == 30
    travel.forward(days=30)
    assert await available(ledger, tenant) == 0


async def test_a_fact_takes_back_once_whatever_the_key(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 40, reference_id="pay_D"))
    await ledger.funding.RevokeGrant(a_revocation(tenant, "pay_D", 10, reference_id="rfnd_D"))

    with pytest.raises(FailedPrecondition) as twice:
        await ledger.funding.RevokeGrant(
            a_revocation(tenant, "pay_D", 10, reference_id="rfnd_D", idempotency_key="other")
        )
    assert twice.value.reason == "DUPLICATE_REFERENCE"
    with pytest.raises(NotFound) as unknown:
        await ledger.funding.RevokeGrant(a_revocation(tenant, "pay_nobody", 10))
    assert unknown.value.reason == "UNKNOWN_GRANT"
    assert await available(ledger, tenant) == 30


async def test_an_operator_adds_and_takes_and_is_written_down(
    ledger: RunningLedger, tenant: str, operator_rows: Any
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    more = an_adjustment(tenant, 25)

    first = await ledger.admin.AdjustCredits(more)
    again = await ledger.admin.AdjustCredits(more)
    less = await ledger.admin.AdjustCredits(an_adjustment(tenant, -30, reason="admin.refund"))

    assert (first.transaction.amount, first.balance.available, again.replayed) == (25, 35, True)
    assert (less.transaction.amount, less.balance.available) == (-30, 5)
    for _ in range(2):
        with pytest.raises(FailedPrecondition) as refused:
            await ledger.admin.AdjustCredits(an_adjustment(tenant, -6, idempotency_key="same"))
        assert refused.value.reason == "INSUFFICIENT_CREDITS"
        assert "replayed" not in refused.value.metadata, "a person's refusals are not remembered"
    rows = operator_rows(
        "SELECT * FROM billing_audit_log WHERE tenant_id = %s ORDER BY created_at, id", tenant
    )
    assert [(row["action"], row["actor_id"], row["metadata"]["after"]["credits"]) for row in rows] == [
        ("adjust_credits", "asha", 25),
        ("adjust_credits", "asha", -30),
    ]
    rows = operator_rows(
        "SELECT actor FROM credit_transactions WHERE tenant_id = %s AND kind = 'adjustment'", tenant
    )
    assert [row["actor"] for row in rows] == ["asha", "asha"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"credits": 5, "bucket": types.BUCKET_SUBSCRIPTION}, "expires_at"),
        ({"credits": 5, "expires_at": in_days(3)}, "expires_at"),
        ({"credits": -5, "bucket": types.BUCKET_PERMANENT}, "bucket"),
        ({"credits": 0}, "credits"),
        ({"credits": 5, "actor": ""}, "actor"),
        ({"credits": 5, "reason": "because"}, "reason"),
    ],
)
async def test_an_adjustment_that_says_too_little_is_refused_by_field(
    ledger: RunningLedger, tenant: str, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await ledger.admin.AdjustCredits(an_adjustment(tenant, **changes))
    assert field in [name for name, _ in refused.value.violations]


async def test_a_frozen_account_keeps_its_credits_still(
    ledger: RunningLedger, tenant: str, operator_rows: Any, travel: Travel
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(2)))
    earlier = a_debit(tenant, 1)
    await ledger.service.Debit(earlier)
    freeze = admin_pb.FreezeAccountRequest(
        tenant_id=tenant, idempotency_key="f1", actor="asha", reason="looks wrong"
    )

    frozen = await ledger.admin.FreezeAccount(freeze)
    again = await ledger.admin.FreezeAccount(freeze)

    assert frozen == again
    with pytest.raises(FailedPrecondition) as refused:
        await ledger.service.Debit(a_debit(tenant, 1, idempotency_key="later"))
    assert (refused.value.reason, refused.value.metadata["reason_given"]) == ("ACCOUNT_FROZEN", "looks wrong")
    assert (await ledger.service.Debit(earlier)).replayed, "repeats are told what was"
    travel.forward(days=3)
    assert await available(ledger, tenant) == 0
    assert await posted(ledger, tenant) == [("GRANT", 10), ("DEBIT", -1)], "time is not booked either"
    await ledger.admin.UnfreezeAccount(
        admin_pb.UnfreezeAccountRequest(
            tenant_id=tenant, idempotency_key="u1", actor="asha", reason="it was not"
        )
    )
    await ledger.admin.FreezeAccount(freeze)
    await ledger.funding.GrantCredits(a_grant(tenant, 3))
    assert (await ledger.service.Debit(a_debit(tenant, 1, idempotency_key="later"))).balance.available == 2
    rows = operator_rows(
        "SELECT action FROM billing_audit_log WHERE tenant_id = %s ORDER BY created_at, id", tenant
    )
    assert [row["action"] for row in rows] == ["freeze_account", "unfreeze_account"]


async def test_the_balance_answered_knows_what_a_claim_takes_at_once(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 20, reference_id="pay_E"))
    debited = await ledger.service.Debit(a_debit(tenant, 20))
    await ledger.funding.RevokeGrant(a_revocation(tenant, "pay_E", 15))

    answer = await ledger.service.RefundDebit(a_refund(tenant, debited.transaction.id))

    assert answer.transaction.amount == 20
    assert answer.balance.available == 5 == await available(ledger, tenant)
    assert answer.balance.as_of_seq == answer.transaction.last_seq + 1


async def test_two_lines_of_one_ended_lot_serve_its_claim_once(
    ledger: RunningLedger, tenant: str, travel: Travel
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, reference_id="pay_F", expires_at=in_days(2)))
    hold = (await ledger.service.PlaceHold(a_hold(tenant, 4))).hold.id
    shortfall = pb.OVER_CAPTURE_POLICY_DEBIT_SHORTFALL
    capture = await ledger.service.CaptureHold(a_capture(tenant, hold, 8, over_capture_policy=shortfall))
    await ledger.funding.RevokeGrant(a_revocation(tenant, "pay_F", 7))  # 2 are there, 5 are claimed
    travel.forward(days=3)

    await ledger.service.RefundDebit(
        a_refund(tenant, capture.transaction.id, expired_policy=pb.EXPIRED_POLICY_TO_PERMANENT)
    )

    assert await available(ledger, tenant) == 3


async def test_what_a_won_dispute_gave_back_elsewhere_is_taken_when_its_payment_is_refunded(
    ledger: RunningLedger, tenant: str, travel: Travel
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100, reference_id="pay", expires_at=in_days(1)))
    await ledger.funding.RevokeGrant(a_revocation(tenant, "pay", 100, reference_id="dispute"))
    travel.forward(days=2)
    await ledger.funding.RestoreGrant(a_restoration(tenant, "dispute"))
    await ledger.service.Debit(a_debit(tenant, 30))

    refund = await ledger.funding.RevokeGrant(a_revocation(tenant, "pay", 100, reference_id="refund"))

    assert (refund.taken, refund.claimed, refund.already_spent) == (70, 0, 30)
    answer = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))
    assert answer.balance.available == 0
