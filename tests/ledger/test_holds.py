"""Holds over gRPC: set aside, spent in parts, set free, lapsed; each is resolved once."""

from __future__ import annotations

import asyncio

import pytest
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types

from shared.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.ledger.builders import (
    a_capture,
    a_debit,
    a_grant,
    a_hold,
    a_refund,
    a_void,
    an_extension,
    in_days,
)
from tests.ledger.conftest import RunningLedger, Travel


async def balance(ledger: RunningLedger, tenant: str) -> tuple[int, int, int]:
    """(available, held, posted)"""
    found = (await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))).balance
    return found.available, found.held, found.posted


async def place(ledger: RunningLedger, tenant: str, credits: int, **changes: object) -> str:
    return (await ledger.service.PlaceHold(a_hold(tenant, credits, **changes))).hold.id


async def test_a_hold_is_spent_and_its_rest_set_free(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 6, expires_at=in_days(5)))
    await ledger.funding.GrantCredits(a_grant(tenant, 10))

    placed = await ledger.service.PlaceHold(a_hold(tenant, 9, reference_id="job-1"))

    assert (placed.hold.reserved, placed.hold.status) == (9, types.TRANSACTION_STATUS_HELD)
    assert [(line.d_posted, line.d_held) for line in placed.transaction.entries] == [(0, 6), (0, 3)]
    assert (placed.transaction.amount, placed.balance.available, placed.balance.held) == (0, 7, 9)

    captured = await ledger.service.CaptureHold(a_capture(tenant, placed.hold.id, 7))

    assert [(line.lot, line.d_posted, line.d_held) for line in captured.transaction.entries] == [
        (1, -6, -6),
        (2, -1, -1),
        (2, 0, -2),
    ]
    assert (captured.hold.captured, captured.hold.released) == (7, 2)
    assert captured.hold.status == types.TRANSACTION_STATUS_CAPTURED
    assert (captured.transaction.amount, captured.transaction.reason) == (-7, "ai.generate")
    assert captured.transaction.reference_id == "job-1"
    assert await balance(ledger, tenant) == (9, 0, 9)


async def test_captures_may_come_in_parts_until_the_last(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    hold = await place(ledger, tenant, 30)

    for part in (5, 6):
        answer = await ledger.service.CaptureHold(a_capture(tenant, hold, part, more_follows=True))
        assert answer.hold.status == types.TRANSACTION_STATUS_HELD
    assert await balance(ledger, tenant) == (70, 19, 89)

    last = await ledger.service.CaptureHold(a_capture(tenant, hold, 4))

    assert (last.hold.captured, last.hold.released) == (15, 15)
    assert await balance(ledger, tenant) == (85, 0, 85)
    with pytest.raises(FailedPrecondition) as refused:
        await ledger.service.CaptureHold(a_capture(tenant, hold, 1))
    assert refused.value.reason == "HOLD_ALREADY_CAPTURED"


async def test_a_capture_beyond_the_hold_is_refused_or_debited_as_asked(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 50))
    hold = await place(ledger, tenant, 10)
    too_much = a_capture(tenant, hold, 15)

    for _ in range(2):
        with pytest.raises(FailedPrecondition) as refused:
            await ledger.service.CaptureHold(too_much)
    assert refused.value.reason == "EXCEEDS_HOLD"
    assert {"open": "10", "requested": "15", "replayed": "true"}.items() <= refused.value.metadata.items()

    policy = pb.OVER_CAPTURE_POLICY_DEBIT_SHORTFALL
    with pytest.raises(FailedPrecondition) as short:
        await ledger.service.CaptureHold(a_capture(tenant, hold, 51, over_capture_policy=policy))
    assert (short.value.reason, short.value.metadata["shortfall"]) == ("INSUFFICIENT_CREDITS", "1")
    answer = await ledger.service.CaptureHold(a_capture(tenant, hold, 15, over_capture_policy=policy))
    assert (answer.transaction.amount, answer.hold.captured) == (-15, 10)
    assert await balance(ledger, tenant) == (35, 0, 35)
    refunded = await ledger.service.RefundDebit(a_refund(tenant, answer.transaction.id))
    assert refunded.transaction.amount == 15


async def test_a_void_sets_everything_free_once(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 20))
    hold = await place(ledger, tenant, 20)
    void = a_void(tenant, hold)

    first = await ledger.service.VoidHold(void)
    again = await ledger.service.VoidHold(void)

    assert (first.hold.status, first.transaction.amount) == (types.TRANSACTION_STATUS_VOIDED, 0)
    assert again.replayed
    assert again.hold == first.hold
    assert again.transaction == first.transaction
    assert await balance(ledger, tenant) == (20, 0, 20)
    with pytest.raises(FailedPrecondition) as refused:
        await ledger.service.CaptureHold(a_capture(tenant, hold, 1))
    assert refused.value.reason == "HOLD_ALREADY_VOIDED"
    with pytest.raises(NotFound) as unknown:
        await ledger.service.VoidHold(a_void(tenant, "hold_nobody"))
    assert unknown.value.reason == "UNKNOWN_HOLD"


async def test_capturing_nothing_is_a_void(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 20))
    hold = await place(ledger, tenant, 20)

    answer = await ledger.service.CaptureHold(a_capture(tenant, hold, 0))

    assert (answer.hold.status, answer.transaction.amount) == (types.TRANSACTION_STATUS_VOIDED, 0)
    assert await balance(ledger, tenant) == (20, 0, 20)
    with pytest.raises(InvalidArgument) as refused:
        await ledger.service.CaptureHold(a_capture(tenant, hold, 0, more_follows=True))
    assert refused.value.violations[0][0] == "credits"


async def test_a_hold_lapses_exactly_at_its_end_without_any_job(
    ledger: RunningLedger, tenant: str, travel: Travel
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 20))
    placed = await ledger.service.PlaceHold(a_hold(tenant, 15, seconds=3600))
    assert await balance(ledger, tenant) == (5, 15, 20)

    travel.forward(hours=1)

    assert await balance(ledger, tenant) == (20, 0, 20)
    debited = await ledger.service.Debit(a_debit(tenant, 20))
    assert debited.balance.available == 0
    with pytest.raises(FailedPrecondition) as refused:
        await ledger.service.CaptureHold(a_capture(tenant, placed.hold.id, 1))
    assert refused.value.reason == "HOLD_EXPIRED"
    listed = await ledger.service.ListTransactions(pb.ListTransactionsRequest(tenant_id=tenant))
    assert [each.kind for each in listed.transactions][:2] == [
        types.TRANSACTION_KIND_DEBIT,
        types.TRANSACTION_KIND_LAPSE,
    ]
    assert listed.transactions[1].hold_id == placed.hold.id
    before = await ledger.service.GetBalance(
        pb.GetBalanceRequest(tenant_id=tenant, as_of=placed.hold.expires_at)
    )
    assert (before.balance.available, before.balance.held) == (20, 0), "as of its very end it had lapsed"


async def test_a_hold_keeps_its_slice_of_a_lot_that_expires(
    ledger: RunningLedger, tenant: str, travel: Travel
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=in_days(1)))
    hold = await place(ledger, tenant, 20, seconds=3 * 86400)

    travel.forward(days=2)

    assert await balance(ledger, tenant) == (0, 20, 20)
    answer = await ledger.service.CaptureHold(a_capture(tenant, hold, 12))
    assert answer.transaction.amount == -12
    assert await balance(ledger, tenant) == (0, 0, 0), "the rest went back into an ended lot"
    listed = await ledger.service.ListTransactions(pb.ListTransactionsRequest(tenant_id=tenant))
    assert [(each.kind, each.amount) for each in listed.transactions[:3]] == [
        (types.TRANSACTION_KIND_EXPIRY, -8),
        (types.TRANSACTION_KIND_CAPTURE, -12),
        (types.TRANSACTION_KIND_EXPIRY, -10),
    ]
    assert sum(each.amount for each in listed.transactions) == 0


async def test_a_hold_is_extended_within_the_cap_and_never_shortened(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 30))
    placed = await ledger.service.PlaceHold(a_hold(tenant, 20, seconds=3600))
    end = placed.hold.expires_at.ToDatetime()

    shorter = await ledger.service.ExtendHold(an_extension(tenant, placed.hold.id, 60))
    longer = await ledger.service.ExtendHold(an_extension(tenant, placed.hold.id, 7200))
    longest = await ledger.service.ExtendHold(an_extension(tenant, placed.hold.id, 7 * 86400))

    assert shorter.hold.expires_at.ToDatetime() == end
    assert (longer.hold.expires_at.ToDatetime() - end).total_seconds() == pytest.approx(3600, abs=60)
    placed_at = placed.transaction.created_at.ToDatetime()
    assert (longest.hold.expires_at.ToDatetime() - placed_at).days == 7


async def test_sixteen_captures_and_voids_at_once_resolve_a_hold_once(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 30))
    hold = await place(ledger, tenant, 30)

    results = await asyncio.gather(
        *(ledger.service.CaptureHold(a_capture(tenant, hold, 10)) for _ in range(8)),
        *(ledger.service.VoidHold(a_void(tenant, hold)) for _ in range(8)),
        return_exceptions=True,
    )

    done = [each for each in results if not isinstance(each, BaseException)]
    refused = {each.reason for each in results if isinstance(each, FailedPrecondition)}
    assert len(done) == 1
    assert len(results) - len(done) == 15
    assert refused <= {"HOLD_ALREADY_CAPTURED", "HOLD_ALREADY_VOIDED"}
    available, held, posted = await balance(ledger, tenant)
    assert held == 0
    assert (available, posted) in {(20, 20), (30, 30)}


async def test_a_hold_needs_what_is_there_and_holds_count_against_it(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 30))
    await place(ledger, tenant, 20)

    for request in (a_debit(tenant, 11), a_hold(tenant, 11)):
        call = ledger.service.Debit if isinstance(request, pb.DebitRequest) else ledger.service.PlaceHold
        with pytest.raises(FailedPrecondition) as refused:
            await call(request)
        assert (refused.value.reason, refused.value.metadata["available"]) == ("INSUFFICIENT_CREDITS", "10")


async def test_the_sweeper_books_what_lapsed(ledger: RunningLedger, tenant: str, travel: Travel) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=in_days(0.5)))
    for _ in range(3):
        await place(ledger, tenant, 10, seconds=86400)
    travel.forward(days=2)

    settled = await ledger.maintenance.SettleExpired(
        maintenance_pb.SettleExpiredRequest(idempotency_key=f"job:settle_expired:{tenant}")
    )

    assert settled.holds >= 3
    assert settled.credits >= 30
    assert await balance(ledger, tenant) == (0, 0, 0)


async def test_thousands_of_holds_may_lapse_at_once(
    ledger: RunningLedger, tenant: str, travel: Travel
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 5000))
    for _ in range(3):
        await asyncio.gather(*(place(ledger, tenant, 2, seconds=3600) for _ in range(400)))
    travel.forward(hours=2)

    answer = await ledger.service.Debit(a_debit(tenant, 5000), timeout=60)

    assert (answer.balance.available, answer.balance.held) == (0, 0)


async def test_a_hold_whose_first_lot_is_spent_can_still_be_extended(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 3, expires_at=in_days(5)))
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    hold = await place(ledger, tenant, 8)
    await ledger.service.CaptureHold(a_capture(tenant, hold, 3, more_follows=True))

    await ledger.service.ExtendHold(an_extension(tenant, hold, 7200))
    ended = await ledger.service.VoidHold(a_void(tenant, hold))

    assert (ended.hold.captured, ended.hold.released) == (3, 5)
    assert await balance(ledger, tenant) == (10, 0, 10)
