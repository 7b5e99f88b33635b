"""Incidents of the runbooks, brought about by the rooms themselves as far as they can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as maintenance_pb

from services.subscriptions.rules.tasks import ATTEMPTS_MAX
from shared.errors import Unimplemented
from tests.subscriptions.conftest import Room

ABANDONED_AFTER = ATTEMPTS_MAX


def later(part: str) -> pytest.MarkDecorator:
    """What a later release makes pass; until then it fails for no other reason than an RPC not served."""
    return pytest.mark.xfail(strict=True, raises=Unimplemented, reason=f"comes with {part}")


async def paid(room: Room, tenant: str, *, plan: str = "pro") -> str:
    """A tenant on a paid plan; answers the provider's subscription."""
    await room.provision(tenant)
    begun = await room.checkout(tenant, plan=plan, key=f"buy-{plan}")
    subscription_id = begun.checkout.subscription_id
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card"):
        await room.deliver(delivery)
    return subscription_id


async def pending(room: Room, tenant: str, *, plan: str = "pro") -> str:
    """A tenant whose upgrade is neither paid nor cancelled."""
    await room.provision(tenant)
    begun = await room.checkout(tenant, plan=plan, key=f"buy-{plan}")
    return begun.checkout.subscription_id


async def replaced(room: Room, tenant: str, write_as: Callable[..., None], *, fails: int) -> str:
    """A first purchase given up for a second one, while the provider fails to cancel it so many times."""
    orphan = await pending(room, tenant, plan="starter")
    path = f"/v1/subscriptions/{orphan}/cancel"
    if fails:
        room.sandbox.set("faults", kind="status", status=500, times=fails, method="POST", path=path)
    await room.checkout(tenant, plan="pro", key="buy-pro")
    for _ in range(1, fails):
        write_as(
            "subscriptions",
            "UPDATE billing_reconciliation_queue SET next_attempt_at = now() WHERE tenant_id = %s",
            tenant,
        )
        await room.reconcile()
    return orphan


async def past_due(room: Room, tenant: str, write_as: Callable[..., None], *, for_days: float) -> str:
    """A tenant whose renewal failed, so many days ago."""
    subscription_id = await paid(room, tenant)
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/fail"):
        await room.deliver(delivery)
    past_due_for(tenant, write_as, days=for_days)
    return subscription_id


def past_due_for(tenant: str, write_as: Callable[..., None], *, days: float) -> None:
    """Days pass while nobody pays."""
    for table, column in (("subscriptions", "past_due_since"), ("provider_subscriptions", "failing_since")):
        write_as(
            "subscriptions",
            f"UPDATE {table} SET {column} = now() - make_interval(secs => %s)"
            f" WHERE tenant_id = %s AND {column} IS NOT NULL",
            days * 86_400,
            tenant,
        )


async def escalate(room: Room, key: str) -> maintenance_pb.EscalatePastDueResponse:
    """One run of the job."""
    return await room.maintenance.EscalatePastDue(
        maintenance_pb.EscalatePastDueRequest(idempotency_key=f"job:escalation:{key}")
    )


async def audit_subscriptions(room: Room, key: str) -> maintenance_pb.AuditSubscriptionsResponse:
    """One run of the job."""
    return await room.maintenance.AuditSubscriptions(
        maintenance_pb.AuditSubscriptionsRequest(idempotency_key=f"job:audit_integrity:{key}")
    )
