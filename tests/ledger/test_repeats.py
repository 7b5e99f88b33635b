"""A repeat is told what was told first, whatever happened since; one altered field is named, for every request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from shared import errors
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
    an_extension,
    in_days,
)
from tests.ledger.conftest import RunningLedger
from tests.ledger.test_limits import entitle

Call = tuple[Callable[[Any], Awaitable[Any]], Any, dict[str, object]]


async def every_mutation(ledger: RunningLedger, tenant: str) -> list[Call]:
    """(the RPC, a request that succeeds, one change that makes it another request), in an order that works."""
    service, funding, admin = ledger.service, ledger.funding, ledger.admin
    await entitle(ledger, tenant, 1)
    await funding.GrantCredits(a_grant(tenant, 1000, reference_id="base"))
    await funding.GrantCredits(a_grant(tenant, 50, reference_id="cycle", expires_at=in_days(1)))
    spent = (await service.Debit(a_debit(tenant, 70))).transaction.id
    holds = [(await service.PlaceHold(a_hold(tenant, 10))).hold.id for _ in range(3)]
    post = [pb.LimitAmount(limit_key="blog.posts", amount=1)]
    who = {"tenant_id": tenant, "actor": "asha", "reason": "a dispute"}
    return [
        (service.Debit, a_debit(tenant, 5, metadata={"a": "b"}), {"description": "another"}),
        (service.PlaceHold, a_hold(tenant, 5), {"ttl": Duration(seconds=5)}),
        (service.CaptureHold, a_capture(tenant, holds[0], 4, more_follows=True), {"credits": 5}),
        (
            service.CaptureHold,
            a_capture(tenant, holds[0], 9, over_capture_policy=2),
            {"over_capture_policy": 1},
        ),
        (service.ExtendHold, an_extension(tenant, holds[1], 3600), {"ttl": Duration(seconds=5)}),
        (service.VoidHold, a_void(tenant, holds[1]), {"hold_id": holds[2]}),
        (service.RefundDebit, a_refund(tenant, spent, credits=30), {"credits": 31}),
        (service.RefundDebit, a_refund(tenant, spent), {"credits": 40}),
        (funding.GrantCredits, a_grant(tenant, 5, reference_id="more"), {"credits": 6}),
        (funding.RevokeGrant, a_revocation(tenant, "cycle", 45, reference_id="r"), {"credits": 46}),
        (funding.RestoreGrant, a_restoration(tenant, "r"), {"description": "another"}),
        (admin.AdjustCredits, an_adjustment(tenant, -3), {"credits": -4}),
        (admin.AdjustCredits, an_adjustment(tenant, 3), {"actor": "ravi"}),
        (
            service.Authorize,
            pb.AuthorizeRequest(
                tenant_id=tenant,
                idempotency_key="a1",
                limits=post,
                hold_credits=2,
                hold_ttl=Duration(seconds=60),
                reason="blog.publish",
            ),
            {"hold_credits": 3},
        ),
        (
            service.Authorize,
            pb.AuthorizeRequest(tenant_id=tenant, idempotency_key="a2", limits=post, reason="blog.publish"),
            {"reason": "blog.other"},
        ),
        (
            service.ConsumeLimits,
            pb.ConsumeLimitsRequest(tenant_id=tenant, idempotency_key="c", limits=post),
            {"limits": [pb.LimitAmount(limit_key="blog.posts", amount=2)]},
        ),
        (
            service.ReleaseLimits,
            pb.ReleaseLimitsRequest(tenant_id=tenant, idempotency_key="l", limits=post),
            {"limits": [pb.LimitAmount(limit_key="blog.posts", amount=2)]},
        ),
        (
            service.SetUsage,
            pb.SetUsageRequest(tenant_id=tenant, idempotency_key="u", limit_key="blog.posts", used=3),
            {"used": 4},
        ),
        (admin.FreezeAccount, admin_pb.FreezeAccountRequest(idempotency_key="f", **who), {"actor": "ravi"}),
        (
            admin.UnfreezeAccount,
            admin_pb.UnfreezeAccountRequest(idempotency_key="n", **who),
            {"actor": "ravi"},
        ),
    ]


def altered(request: Any, change: dict[str, object]) -> Any:
    values = {field.name: value for field, value in request.ListFields() if field.name not in change}
    return type(request)(**values, **change)


async def test_a_repeat_is_told_what_was_told_first_and_an_altered_one_which_field_differs(
    ledger: RunningLedger, tenant: str
) -> None:
    calls = await every_mutation(ledger, tenant)
    told = [await rpc(request) for rpc, request, _ in calls]

    again = [await rpc(request) for rpc, request, _ in calls]

    for first, second in zip(told, again, strict=True):
        if "replayed" in first.DESCRIPTOR.fields_by_name:
            assert not first.replayed
            assert second.replayed
            second.replayed = False
        assert second == first
    for rpc, request, change in calls:
        with pytest.raises(errors.FailedPrecondition) as refused:
            await rpc(altered(request, change))
        assert refused.value.reason == "IDEMPOTENCY_KEY_REUSED"
        assert refused.value.metadata["field"] == next(iter(change))
