"""One decision over limits and credits: all parts or none, and a refusal says what each part said."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf.duration_pb2 import Duration

from shared import errors
from tests.ledger.conftest import RunningLedger
from tests.ledger.test_limits import AUTHORS, POSTS, amounts, check, entitle, refused


@pytest.fixture
async def tenant_with_credits(ledger: RunningLedger, tenant: str) -> str:
    """A plan of ten posts, and a hundred credits."""
    await entitle(ledger, tenant, 1)
    await ledger.funding.GrantCredits(
        funding_pb.GrantCreditsRequest(
            tenant_id=tenant,
            idempotency_key="grant",
            bucket=types.BUCKET_PERMANENT,
            credits=100,
            reference_id="grant",
            reason="purchase.pack",
        )
    )
    return tenant


def asking(
    tenant: str, key: str, *, debit: int = 0, hold: int = 0, dry_run: bool = False, **limits: int
) -> pb.AuthorizeRequest:
    spend: dict[str, Any] = {"debit_credits": debit} if debit else {}
    if hold:
        spend = {"hold_credits": hold, "hold_ttl": Duration(seconds=60)}
    return pb.AuthorizeRequest(
        tenant_id=tenant,
        idempotency_key=key,
        limits=amounts(**limits),
        reason="blog.publish",
        reference_id="post-1",
        dry_run=dry_run,
        **spend,
    )


async def balance(ledger: RunningLedger, tenant: str) -> tuple[int, int]:
    """(available, held)"""
    answer = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))
    return answer.balance.available, answer.balance.held


def parts_of(refusal: errors.FailedPrecondition) -> pb.AuthorizeResponse:
    """What each part said, as it travels in the error's details."""
    (packed,) = refusal.details
    parts = pb.AuthorizeResponse()
    assert packed.Unpack(parts)
    return parts


async def test_limits_are_counted_and_credits_taken_in_one_decision(
    ledger: RunningLedger, tenant_with_credits: str
) -> None:
    tenant = tenant_with_credits

    first = await ledger.service.Authorize(asking(tenant, "k", debit=30, posts=2, authors=1))
    again = await ledger.service.Authorize(asking(tenant, "k", debit=30, posts=2, authors=1))

    assert [(each.limit_key, each.used) for each in first.limits] == [(POSTS, 2), (AUTHORS, 1)]
    assert (first.transaction.kind, first.transaction.amount) == (types.TRANSACTION_KIND_DEBIT, -30)
    assert (first.transaction.reason, first.transaction.reference_id) == ("blog.publish", "post-1")
    assert first.balance.available == 70
    assert not first.HasField("hold")
    assert (first.replayed, again.replayed) == (False, True)
    assert (again.limits, again.transaction) == (first.limits, first.transaction)
    assert (await check(ledger, tenant, POSTS)).used == 2
    assert await balance(ledger, tenant) == (70, 0)


async def test_limits_and_a_hold_in_one_decision(ledger: RunningLedger, tenant_with_credits: str) -> None:
    tenant = tenant_with_credits

    answer = await ledger.service.Authorize(asking(tenant, "k", hold=40, posts=1))
    again = await ledger.service.Authorize(asking(tenant, "k", hold=40, posts=1))
    captured = await ledger.service.CaptureHold(
        pb.CaptureHoldRequest(tenant_id=tenant, idempotency_key="c", hold_id=answer.hold.id, credits=25)
    )

    assert (answer.hold.reserved, answer.transaction.hold_id) == (40, answer.hold.id)
    assert (answer.balance.available, answer.balance.held) == (60, 40)
    assert (again.replayed, again.hold) == (True, answer.hold)
    assert captured.balance.available == 75
    assert (await check(ledger, tenant, POSTS)).used == 1


async def test_limits_alone_book_no_transaction(ledger: RunningLedger, tenant_with_credits: str) -> None:
    answer = await ledger.service.Authorize(asking(tenant_with_credits, "k", posts=1))

    assert not answer.HasField("transaction")
    assert answer.limits[0].used == 1
    assert answer.balance.available == 100


async def test_credits_alone_are_decided_too(ledger: RunningLedger, tenant_with_credits: str) -> None:
    answer = await ledger.service.Authorize(asking(tenant_with_credits, "k", debit=100))
    refusal = await refused(ledger.service.Authorize(asking(tenant_with_credits, "k2", debit=1)))

    assert (len(answer.limits), answer.balance.available) == (0, 0)
    assert refusal.reason == "INSUFFICIENT_CREDITS"


async def test_a_limit_that_refuses_leaves_the_credits_alone(
    ledger: RunningLedger, tenant_with_credits: str
) -> None:
    tenant = tenant_with_credits

    refusal = await refused(
        ledger.service.Authorize(asking(tenant, "k", debit=30, authors=1, posts=11, drafts=9))
    )

    assert (refusal.reason, refusal.metadata["limit_key"]) == ("PLAN_LIMIT_REACHED", POSTS)
    parts = parts_of(refusal)
    assert [(each.limit_key, each.allowed, each.reason, each.used) for each in parts.limits] == [
        (AUTHORS, True, pb.LIMIT_REASON_WITHIN_LIMIT, 0),
        (POSTS, False, pb.LIMIT_REASON_PLAN_LIMIT_REACHED, 0),
        ("blog.drafts", True, pb.LIMIT_REASON_SOFT_LIMIT_EXCEEDED, 0),
    ]
    assert parts.balance.available == 100
    assert await balance(ledger, tenant) == (100, 0)
    assert (await check(ledger, tenant, AUTHORS)).used == 0


@pytest.mark.parametrize("spend", ["debit", "hold"])
async def test_credits_that_refuse_leave_the_limits_alone(
    ledger: RunningLedger, tenant_with_credits: str, spend: str
) -> None:
    tenant = tenant_with_credits

    refusal = await refused(ledger.service.Authorize(asking(tenant, "k", **{spend: 101}, posts=2, authors=1)))

    assert refusal.reason == "INSUFFICIENT_CREDITS"
    assert refusal.metadata.items() >= {("available", "100"), ("requested", "101"), ("shortfall", "1")}
    parts = parts_of(refusal)
    assert [(each.limit_key, each.allowed, each.used) for each in parts.limits] == [
        (POSTS, True, 0),
        (AUTHORS, True, 0),
    ]
    assert parts.balance.available == 100
    assert (await check(ledger, tenant, POSTS)).used == 0


async def test_a_refused_decision_is_remembered_with_all_its_parts(
    ledger: RunningLedger, tenant_with_credits: str
) -> None:
    tenant = tenant_with_credits
    first = await refused(ledger.service.Authorize(asking(tenant, "k", debit=30, posts=11)))
    await entitle(ledger, tenant, 2, posts=100)

    again = await refused(ledger.service.Authorize(asking(tenant, "k", debit=30, posts=11)))

    assert (again.reason, again.metadata["replayed"]) == ("PLAN_LIMIT_REACHED", "true")
    assert parts_of(again).limits == parts_of(first).limits
    assert await balance(ledger, tenant) == (100, 0)


@pytest.mark.parametrize(
    "altered",
    [{"debit": 31, "posts": 1}, {"debit": 30, "posts": 2}, {"hold": 30, "posts": 1}, {"posts": 1}],
    ids=["credits", "limits", "a hold instead", "no credits"],
)
async def test_an_altered_repeat_is_refused(
    ledger: RunningLedger, tenant_with_credits: str, altered: dict[str, int]
) -> None:
    await ledger.service.Authorize(asking(tenant_with_credits, "k", debit=30, posts=1))

    refusal = await refused(ledger.service.Authorize(asking(tenant_with_credits, "k", **altered)))

    assert refusal.reason == "IDEMPOTENCY_KEY_REUSED"
    assert await balance(ledger, tenant_with_credits) == (70, 0)
    assert (await check(ledger, tenant_with_credits, POSTS)).used == 1


async def test_a_dry_run_books_counts_and_remembers_nothing(
    ledger: RunningLedger, tenant_with_credits: str
) -> None:
    tenant = tenant_with_credits

    allowed = await ledger.service.Authorize(asking(tenant, "k", debit=30, posts=2, dry_run=True))
    refusal = await refused(ledger.service.Authorize(asking(tenant, "k2", debit=30, posts=11, dry_run=True)))
    unchanged = (await check(ledger, tenant, POSTS)).used, await balance(ledger, tenant)
    real = await ledger.service.Authorize(asking(tenant, "k2", debit=30, posts=1))

    assert (allowed.limits[0].used, allowed.balance.available) == (2, 70)
    assert refusal.reason == "PLAN_LIMIT_REACHED"
    assert unchanged == (0, (100, 0))
    assert (real.replayed, real.limits[0].used) == (False, 1)


async def test_callers_racing_for_the_last_post_pay_for_it_once(
    ledger: RunningLedger, tenant_with_credits: str
) -> None:
    tenant = tenant_with_credits
    await ledger.service.Authorize(asking(tenant, "nine", debit=9, posts=9))

    async def ask(number: int) -> str:
        try:
            await ledger.service.Authorize(asking(tenant, f"k{number}", debit=1, posts=1))
        except errors.FailedPrecondition as refusal:
            return refusal.reason
        return "authorized"

    outcomes = Counter(await asyncio.gather(*(ask(number) for number in range(16))))

    assert outcomes == {"authorized": 1, "PLAN_LIMIT_REACHED": 15}
    assert await balance(ledger, tenant) == (90, 0)


async def test_a_frozen_account_goes_on_counting_but_spends_nothing(
    ledger: RunningLedger, tenant_with_credits: str
) -> None:
    tenant = tenant_with_credits
    await ledger.admin.FreezeAccount(
        admin_pb.FreezeAccountRequest(tenant_id=tenant, idempotency_key="f", actor="ada", reason="chargeback")
    )

    counted = await ledger.service.ConsumeLimits(
        pb.ConsumeLimitsRequest(tenant_id=tenant, idempotency_key="c", limits=amounts(posts=1))
    )
    limits_alone = await ledger.service.Authorize(asking(tenant, "a", posts=1))
    frozen = await refused(ledger.service.Authorize(asking(tenant, "b", debit=1, posts=1)))

    assert (counted.limits[0].used, limits_alone.limits[0].used) == (1, 2)
    assert frozen.reason == "ACCOUNT_FROZEN"
    assert (await check(ledger, tenant, POSTS)).used == 2


async def test_an_unknown_limit_refuses_the_whole(ledger: RunningLedger, tenant_with_credits: str) -> None:
    with pytest.raises(errors.NotFound) as unknown:
        await ledger.service.Authorize(asking(tenant_with_credits, "k", debit=30, posts=1, comments=1))

    assert unknown.value.reason == "UNKNOWN_LIMIT"
    assert await balance(ledger, tenant_with_credits) == (100, 0)
    answer = await ledger.service.Authorize(asking(tenant_with_credits, "k", debit=30, posts=1))
    assert not answer.replayed


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asking("t", "k"), ""),
        (pb.AuthorizeRequest(tenant_id="t", idempotency_key="k", hold_credits=1, reason="a"), ""),
        (asking("t", "k", debit=-1), "debit_credits"),
    ],
    ids=["nothing asked", "a hold without end", "below zero"],
)
async def test_a_decision_about_nothing_is_malformed(
    ledger: RunningLedger, request_: pb.AuthorizeRequest, field: str
) -> None:
    with pytest.raises(errors.InvalidArgument) as malformed:
        await ledger.service.Authorize(request_)

    assert any(name.startswith(field) for name, _ in malformed.value.violations)


async def test_a_refusal_with_as_many_parts_as_there_may_be_reaches_its_caller(
    ledger: RunningLedger, tenant: str
) -> None:
    keys = [f"{number:02d}" + "k" * 62 for number in range(32)]
    service = types.ServiceEntitlement(
        service_code="s" * 63,
        enabled=True,
        limits=[types.Limit(key=key, value=10**17, addon="a" * 64) for key in keys],
    )
    await ledger.funding.SetEntitlements(
        funding_pb.SetEntitlementsRequest(
            tenant_id=tenant, idempotency_key="entitlements:1", version=1, plan_code="pro", services=[service]
        )
    )

    with pytest.raises(errors.FailedPrecondition) as refused:
        await ledger.service.Authorize(
            pb.AuthorizeRequest(
                tenant_id=tenant,
                idempotency_key="all",
                limits=[pb.LimitAmount(limit_key=f"{'s' * 63}.{key}", amount=10**12) for key in keys],
                debit_credits=1,
                reason="blog.publish",
            )
        )

    assert refused.value.reason == "INSUFFICIENT_CREDITS"
    assert parts_of(refused.value).limits
