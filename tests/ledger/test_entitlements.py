"""What a tenant may use: pushed, asked about, and never ambiguous."""

import pytest
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types

from shared import errors
from tests.ledger.conftest import RunningLedger


def entitlements(tenant: str, version: int, posts: int | None = 10) -> funding_pb.SetEntitlementsRequest:
    ceiling = {"value": posts} if posts is not None else {"unlimited": True}
    limit = types.Limit(key="posts", kind=types.LIMIT_KIND_HARD, addon="blog_posts", **ceiling)
    blog = types.ServiceEntitlement(service_code="blog", enabled=True, limits=[limit])
    return funding_pb.SetEntitlementsRequest(
        tenant_id=tenant,
        idempotency_key=f"entitlements:{version}",
        version=version,
        plan_code="free",
        services=[blog],
    )


@pytest.mark.parametrize(
    ("used", "requested", "allowed", "reason", "remaining"),
    [
        (0, 1, True, pb.LIMIT_REASON_WITHIN_LIMIT, 10),
        (9, 1, True, pb.LIMIT_REASON_WITHIN_LIMIT, 1),
        (10, 1, False, pb.LIMIT_REASON_PLAN_LIMIT_REACHED, 0),
        (10, 0, True, pb.LIMIT_REASON_WITHIN_LIMIT, 0),
        (40, 0, False, pb.LIMIT_REASON_PLAN_LIMIT_REACHED, 0),
    ],
)
async def test_a_limit_answers_for_the_callers_own_count(
    ledger: RunningLedger, tenant: str, used: int, requested: int, allowed: bool, reason: int, remaining: int
) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))

    answer = await ledger.service.CheckLimit(
        pb.CheckLimitRequest(
            tenant_id=tenant, limit_key="blog.posts", requested=requested, current_usage=used
        )
    )

    decision = answer.decision
    assert (decision.allowed, decision.reason, decision.limit, decision.remaining) == (
        allowed,
        reason,
        10,
        remaining,
    )
    assert decision.addon == "blog_posts"
    assert answer.entitlements_version == 1


async def test_older_entitlements_change_nothing(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 3, posts=None))

    late = await ledger.funding.SetEntitlements(entitlements(tenant, 2))
    same = await ledger.funding.SetEntitlements(entitlements(tenant, 3, posts=None))
    answer = await ledger.service.CheckLimit(
        pb.CheckLimitRequest(tenant_id=tenant, limit_key="blog.posts", requested=10**6)
    )
    disabled = await ledger.service.CheckLimit(
        pb.CheckLimitRequest(tenant_id=tenant, limit_key="media.storage_mb", requested=1)
    )

    assert (late.outcome, late.version) == (funding_pb.ENTITLEMENTS_OUTCOME_SUPERSEDED, 3)
    assert (same.outcome, same.version) == (funding_pb.ENTITLEMENTS_OUTCOME_APPLIED, 3)
    assert (answer.decision.allowed, answer.decision.reason) == (True, pb.LIMIT_REASON_UNLIMITED)
    assert not answer.decision.HasField("limit")
    assert (disabled.decision.allowed, disabled.decision.reason) == (False, pb.LIMIT_REASON_SERVICE_DISABLED)


async def test_an_unknown_limit_of_an_enabled_service_is_named(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))

    with pytest.raises(errors.NotFound) as refusal:
        await ledger.service.CheckLimit(pb.CheckLimitRequest(tenant_id=tenant, limit_key="blog.drafts"))

    assert refusal.value.reason == "UNKNOWN_LIMIT"


@pytest.mark.parametrize(
    "services",
    [
        [("blog", [("posts", 1)]), ("blog", [("posts", 2)])],
        [("blog", [("posts", 1), ("posts", 2)])],
        [("blog", [("posts", -1)])],
        [("blog", [("posts", None)])],
        [("Blog ", [])],
    ],
    ids=["a service twice", "a limit twice", "below zero", "no ceiling", "no word"],
)
async def test_entitlements_that_mean_nothing_are_refused(
    ledger: RunningLedger, tenant: str, services: list[tuple[str, list[tuple[str, int | None]]]]
) -> None:
    request = funding_pb.SetEntitlementsRequest(tenant_id=tenant, idempotency_key="e", version=1)
    for code, limits in services:
        request.services.add(
            service_code=code, limits=[types.Limit(key=key, value=value) for key, value in limits]
        )

    with pytest.raises(errors.InvalidArgument) as refusal:
        await ledger.funding.SetEntitlements(request)

    assert refusal.value.violations[0][0].startswith("services")


async def test_a_version_of_entitlements_has_one_content(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 3, posts=10))

    same = await ledger.funding.SetEntitlements(entitlements(tenant, 3, posts=10))
    with pytest.raises(errors.FailedPrecondition) as refusal:
        await ledger.funding.SetEntitlements(entitlements(tenant, 3, posts=11))

    assert same.outcome == funding_pb.ENTITLEMENTS_OUTCOME_APPLIED
    assert (refusal.value.reason, refusal.value.metadata["field"]) == ("IDEMPOTENCY_KEY_REUSED", "services")
    kept = await ledger.funding.GetEntitlements(funding_pb.GetEntitlementsRequest(tenant_id=tenant))
    assert kept.services[0].limits[0].value == 10


async def test_services_that_a_newer_version_leaves_out_are_disabled(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))
    bare = funding_pb.SetEntitlementsRequest(tenant_id=tenant, idempotency_key="e2", version=2)

    first = await ledger.funding.SetEntitlements(bare)
    again = await ledger.funding.SetEntitlements(bare)
    answer = await ledger.service.CheckLimit(
        pb.CheckLimitRequest(tenant_id=tenant, limit_key="blog.posts", requested=1)
    )

    assert first == again
    assert answer.decision.reason == pb.LIMIT_REASON_SERVICE_DISABLED
