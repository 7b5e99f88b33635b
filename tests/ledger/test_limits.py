"""Counting usage over gRPC: once per key, all or nothing, and never one more than the plan allows."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types

from shared import clock, errors
from tests.conftest import Database
from tests.faults.ledgers import Client, serving
from tests.ledger.conftest import RunningLedger

DAY = 86_400
POSTS, AUTHORS, DRAFTS, FILES = "blog.posts", "blog.authors", "blog.drafts", "media.files"


@pytest.fixture
async def plan(ledger: RunningLedger, tenant: str) -> str:
    """A tenant whose plan has one limit of each kind."""
    await entitle(ledger, tenant, 1)
    return tenant


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Moves the test clock: `later(days=1)`, counted from the present."""
    file = tmp_path / "clock"
    clock.move_to(file, timedelta())
    monkeypatch.setenv("BILLING_TEST_CLOCK", str(file))
    return lambda **ahead: clock.move_to(file, timedelta(**ahead))


async def entitle(ledger: RunningLedger, tenant: str, version: int, *, posts: int = 10) -> None:
    blog = types.ServiceEntitlement(
        service_code="blog",
        enabled=True,
        limits=[
            types.Limit(key="posts", value=posts, kind=types.LIMIT_KIND_HARD, addon="blog_posts"),
            types.Limit(key="authors", value=2, kind=types.LIMIT_KIND_HARD, grace_seconds=DAY),
            types.Limit(key="drafts", value=3, kind=types.LIMIT_KIND_SOFT),
            types.Limit(key="views", unlimited=True),
        ],
    )
    media = types.ServiceEntitlement(service_code="media", limits=[types.Limit(key="files", value=5)])
    await ledger.funding.SetEntitlements(
        funding_pb.SetEntitlementsRequest(
            tenant_id=tenant, idempotency_key=f"e{version}", version=version, services=[blog, media]
        )
    )


def amounts(**asked: int) -> list[pb.LimitAmount]:
    """posts=2 → two of blog.posts."""
    return [pb.LimitAmount(limit_key=f"blog.{key}", amount=amount) for key, amount in asked.items()]


def consumption(tenant: str, key: str, **asked: int) -> pb.ConsumeLimitsRequest:
    return pb.ConsumeLimitsRequest(tenant_id=tenant, idempotency_key=key, limits=amounts(**asked))


def giving_back(tenant: str, key: str, **asked: int) -> pb.ReleaseLimitsRequest:
    return pb.ReleaseLimitsRequest(tenant_id=tenant, idempotency_key=key, limits=amounts(**asked))


def usage(tenant: str, key: str, limit_key: str, used: int) -> pb.SetUsageRequest:
    return pb.SetUsageRequest(tenant_id=tenant, idempotency_key=key, limit_key=limit_key, used=used)


async def check(ledger: RunningLedger, tenant: str, limit_key: str, requested: int = 0) -> pb.LimitDecision:
    answer = await ledger.service.CheckLimit(
        pb.CheckLimitRequest(tenant_id=tenant, limit_key=limit_key, requested=requested)
    )
    return answer.decision


async def refused(call: Any) -> errors.FailedPrecondition:
    with pytest.raises(errors.FailedPrecondition) as refusal:
        await call
    return refusal.value


async def test_sixteen_callers_race_for_the_last_post_and_one_wins(ledger: RunningLedger, plan: str) -> None:
    await ledger.service.ConsumeLimits(consumption(plan, "nine", posts=9))

    results = await asyncio.gather(
        *(ledger.service.ConsumeLimits(consumption(plan, f"k{n}", posts=1)) for n in range(16)),
        return_exceptions=True,
    )

    won = [each for each in results if isinstance(each, pb.ConsumeLimitsResponse)]
    lost = [each for each in results if isinstance(each, errors.FailedPrecondition)]
    assert (len(won), len(lost)) == (1, 15)
    assert (won[0].limits[0].used, won[0].limits[0].remaining) == (10, 0)
    assert {each.reason for each in lost} == {"PLAN_LIMIT_REACHED"}
    assert lost[0].metadata.items() >= {
        ("limit_key", POSTS),
        ("limit", "10"),
        ("used", "10"),
        ("requested", "1"),
        ("addon", "blog_posts"),
    }
    assert (await check(ledger, plan, POSTS)).used == 10


async def test_two_ledgers_never_count_an_eleventh_post(
    ledger: RunningLedger, database: Database, plan: str
) -> None:
    url = database.url("ledger_rw")
    async with serving(lanes_url=url, reads_url=url, lanes=2) as other:

        async def ask(client: RunningLedger | Client, number: int) -> str:
            try:
                await client.service.ConsumeLimits(consumption(plan, f"k{number}", posts=1))
            except errors.FailedPrecondition as refusal:
                return refusal.reason
            return "counted"

        asked = (ask(ledger if number % 2 else other, number) for number in range(40))
        outcomes = Counter(await asyncio.gather(*asked))

    assert outcomes == {"counted": 10, "PLAN_LIMIT_REACHED": 30}
    assert (await check(ledger, plan, POSTS)).used == 10


async def test_several_limits_are_counted_together_or_not_at_all(ledger: RunningLedger, plan: str) -> None:
    counted = await ledger.service.ConsumeLimits(consumption(plan, "fits", posts=4, authors=2, views=7))
    refusal = await refused(ledger.service.ConsumeLimits(consumption(plan, "not", drafts=1, posts=7)))

    assert [(each.limit_key, each.used) for each in counted.limits] == [
        (POSTS, 4),
        (AUTHORS, 2),
        ("blog.views", 7),
    ]
    assert (refusal.metadata["limit_key"], refusal.metadata["used"]) == (POSTS, "4")
    assert (await check(ledger, plan, DRAFTS)).used == 0
    assert (await check(ledger, plan, POSTS)).used == 4


async def test_a_repeat_counts_nothing_and_is_told_the_same(ledger: RunningLedger, plan: str) -> None:
    first = await ledger.service.ConsumeLimits(consumption(plan, "k", posts=2, authors=1))
    await ledger.service.ConsumeLimits(consumption(plan, "between", posts=3))

    again = await ledger.service.ConsumeLimits(consumption(plan, "k", posts=2, authors=1))

    assert again.replayed
    assert again.limits == first.limits
    assert (await check(ledger, plan, POSTS)).used == 5


async def test_the_same_key_at_once_counts_once(ledger: RunningLedger, plan: str) -> None:
    answers = await asyncio.gather(
        *(ledger.service.ConsumeLimits(consumption(plan, "same", posts=1)) for _ in range(16))
    )

    assert all(each.limits == answers[0].limits for each in answers)
    assert sum(not each.replayed for each in answers) == 1
    assert (await check(ledger, plan, POSTS)).used == 1


async def test_an_altered_repeat_is_refused_whatever_it_became(ledger: RunningLedger, plan: str) -> None:
    await ledger.service.ConsumeLimits(consumption(plan, "k", posts=2))
    altered = [
        ledger.service.ConsumeLimits(consumption(plan, "k", posts=3)),
        ledger.service.ConsumeLimits(consumption(plan, "k", authors=2)),
        ledger.service.ReleaseLimits(giving_back(plan, "k", posts=2)),
        ledger.service.SetUsage(usage(plan, "k", POSTS, 2)),
        ledger.service.Debit(
            pb.DebitRequest(tenant_id=plan, idempotency_key="k", credits=2, reason="blog.publish")
        ),
    ]

    refusals = [await refused(call) for call in altered]

    assert {each.reason for each in refusals} == {"IDEMPOTENCY_KEY_REUSED"}
    assert [each.metadata["field"] for each in refusals[:2]] == ["limits", "limits"]
    assert (await check(ledger, plan, POSTS)).used == 2


async def test_a_refusal_is_remembered_under_its_key(ledger: RunningLedger, plan: str) -> None:
    first = await refused(ledger.service.ConsumeLimits(consumption(plan, "k", posts=11)))
    await entitle(ledger, plan, 2, posts=100)

    again = await refused(ledger.service.ConsumeLimits(consumption(plan, "k", posts=11)))
    fresh = await ledger.service.ConsumeLimits(consumption(plan, "k2", posts=11))

    assert (again.reason, again.metadata["replayed"]) == (first.reason, "true")
    assert again.metadata.items() >= {(name, first.metadata[name]) for name in ("limit", "used", "requested")}
    assert fresh.limits[0].used == 11


async def test_an_unknown_limit_is_not_remembered(ledger: RunningLedger, plan: str) -> None:
    request = consumption(plan, "k", posts=1, comments=1)
    with pytest.raises(errors.NotFound) as unknown:
        await ledger.service.ConsumeLimits(request)
    assert (unknown.value.reason, unknown.value.metadata["limit_key"]) == ("UNKNOWN_LIMIT", "blog.comments")

    comments = types.Limit(key="comments", value=1)
    posts = types.Limit(key="posts", value=10)
    await ledger.funding.SetEntitlements(
        funding_pb.SetEntitlementsRequest(
            tenant_id=plan,
            idempotency_key="e2",
            version=2,
            services=[types.ServiceEntitlement(service_code="blog", enabled=True, limits=[comments, posts])],
        )
    )
    answer = await ledger.service.ConsumeLimits(request)

    assert [each.used for each in answer.limits] == [1, 1]


async def test_nobody_counts_for_a_tenant_without_an_account(ledger: RunningLedger, tenant: str) -> None:
    for call in (
        ledger.service.ConsumeLimits(consumption(tenant, "a", posts=1)),
        ledger.service.ReleaseLimits(giving_back(tenant, "b", posts=1)),
        ledger.service.SetUsage(usage(tenant, "c", POSTS, 1)),
    ):
        with pytest.raises(errors.NotFound) as nobody:
            await call
        assert nobody.value.reason == "UNKNOWN_TENANT"


async def test_a_limit_named_twice_is_malformed(ledger: RunningLedger, plan: str) -> None:
    request = consumption(plan, "k", posts=1)
    request.limits.extend(amounts(posts=1))

    with pytest.raises(errors.InvalidArgument) as malformed:
        await ledger.service.ConsumeLimits(request)

    assert malformed.value.violations[0][0].startswith("limits")


async def test_soft_and_unlimited_count_on_and_disabled_refuses(ledger: RunningLedger, plan: str) -> None:
    counted = await ledger.service.ConsumeLimits(consumption(plan, "k", drafts=4, views=10**12))
    disabled = await refused(
        ledger.service.ConsumeLimits(
            pb.ConsumeLimitsRequest(
                tenant_id=plan,
                idempotency_key="d",
                limits=[pb.LimitAmount(limit_key=FILES, amount=1)],
            )
        )
    )

    soft, unlimited = counted.limits
    assert (soft.allowed, soft.reason, soft.used, soft.remaining) == (
        True,
        pb.LIMIT_REASON_SOFT_LIMIT_EXCEEDED,
        4,
        0,
    )
    assert (unlimited.reason, unlimited.used) == (pb.LIMIT_REASON_UNLIMITED, 10**12)
    assert not unlimited.HasField("limit")
    assert not unlimited.HasField("remaining")
    assert (disabled.reason, disabled.metadata["why"]) == ("PLAN_LIMIT_REACHED", "service_disabled")


async def test_giving_back_makes_room_and_ends_at_zero(ledger: RunningLedger, plan: str) -> None:
    await ledger.service.ConsumeLimits(consumption(plan, "full", posts=10))
    back = await ledger.service.ReleaseLimits(giving_back(plan, "back", posts=1))
    again = await ledger.service.ReleaseLimits(giving_back(plan, "back", posts=1))
    taken = await ledger.service.ConsumeLimits(consumption(plan, "one", posts=1))
    emptied = await ledger.service.ReleaseLimits(giving_back(plan, "all", posts=500, drafts=1))

    assert (back.limits[0].used, back.replayed) == (9, False)
    assert (again.limits[0].used, again.replayed) == (9, True)
    assert taken.limits[0].used == 10
    assert [each.used for each in emptied.limits] == [0, 0]


async def test_a_grace_period_begins_once_and_ends_by_the_clock(
    ledger: RunningLedger, plan: str, later: Any
) -> None:
    within = await ledger.service.ConsumeLimits(consumption(plan, "two", authors=2))
    asked = await check(ledger, plan, AUTHORS, requested=1)
    begun_at = datetime.now(UTC)
    over = await ledger.service.ConsumeLimits(consumption(plan, "third", authors=1))

    assert within.limits[0].reason == pb.LIMIT_REASON_WITHIN_LIMIT
    assert (asked.allowed, asked.reason) == (True, pb.LIMIT_REASON_GRACE_PERIOD)
    assert not asked.HasField("grace_expires_at")
    ends_at = over.limits[0].grace_expires_at.ToDatetime(tzinfo=UTC)
    assert over.limits[0].reason == pb.LIMIT_REASON_GRACE_PERIOD
    assert begun_at <= ends_at - timedelta(seconds=DAY) <= datetime.now(UTC)

    later(hours=23)
    still = await ledger.service.ConsumeLimits(consumption(plan, "fourth", authors=1))
    assert (still.limits[0].used, still.limits[0].grace_expires_at) == (4, over.limits[0].grace_expires_at)

    later(hours=25)
    assert (await check(ledger, plan, AUTHORS, requested=1)).reason == pb.LIMIT_REASON_PLAN_LIMIT_REACHED
    refusal = await refused(ledger.service.ConsumeLimits(consumption(plan, "fifth", authors=1)))
    assert refusal.metadata["used"] == "4"

    below = await ledger.service.ReleaseLimits(giving_back(plan, "back", authors=3))
    assert below.limits[0].reason == pb.LIMIT_REASON_WITHIN_LIMIT
    await refused(ledger.service.ConsumeLimits(consumption(plan, "again", authors=2)))
    await ledger.service.ConsumeLimits(consumption(plan, "one", authors=1))


async def test_a_plan_that_covers_usage_ends_the_excess(ledger: RunningLedger, plan: str) -> None:
    await ledger.service.ConsumeLimits(consumption(plan, "full", posts=10))
    await entitle(ledger, plan, 2, posts=5)
    over = await check(ledger, plan, POSTS)
    await entitle(ledger, plan, 3, posts=12)

    within = await ledger.service.ConsumeLimits(consumption(plan, "two", posts=2))

    assert (over.allowed, over.used, over.remaining) == (False, 10, 0)
    assert within.limits[0].reason == pb.LIMIT_REASON_WITHIN_LIMIT


async def test_usage_is_a_fact_that_begins_a_grace_period(
    ledger: RunningLedger, plan: str, later: Any
) -> None:
    hard = await ledger.service.SetUsage(usage(plan, "a", POSTS, 40))
    grace = await ledger.service.SetUsage(usage(plan, "b", AUTHORS, 3))
    disabled = await ledger.service.SetUsage(usage(plan, "c", FILES, 2))
    again = await ledger.service.SetUsage(usage(plan, "a", POSTS, 40))

    assert (hard.limit.allowed, hard.limit.used, hard.limit.remaining) == (False, 40, 0)
    assert hard.limit.reason == pb.LIMIT_REASON_PLAN_LIMIT_REACHED
    assert grace.limit.reason == pb.LIMIT_REASON_GRACE_PERIOD
    assert grace.limit.HasField("grace_expires_at")
    assert disabled.limit.reason == pb.LIMIT_REASON_SERVICE_DISABLED
    assert again.replayed
    assert again.limit == hard.limit
    await refused(ledger.service.ConsumeLimits(consumption(plan, "one", posts=1)))

    later(hours=25)
    assert not (await check(ledger, plan, AUTHORS)).allowed
    lower = await ledger.service.SetUsage(usage(plan, "d", AUTHORS, 2))
    assert lower.limit.reason == pb.LIMIT_REASON_WITHIN_LIMIT
    listed = await ledger.funding.ListUsage(funding_pb.ListUsageRequest(tenant_id=plan))
    assert {each.limit_key: each.used for each in listed.usage} == {POSTS: 40, AUTHORS: 2, FILES: 2}
