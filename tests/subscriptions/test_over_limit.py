"""The audit tells an operator of tenants who use more than their plan allows."""

from billing.ledger.v1 import ledger_pb2
from billing.subscriptions.v1 import subscriptions_pb2

from tests.subscriptions.conftest import Room
from tests.subscriptions.test_audit import findings, paid, run_audit


async def test_a_tenant_that_uses_more_than_its_plan_allows(room: Room, tenant: str) -> None:
    """A customer's own downgrade tells nobody else."""
    await paid(room, tenant)
    limit = ledger_pb2.SetUsageRequest(
        tenant_id=tenant, idempotency_key="used", limit_key="blog.posts", used=37
    )
    await room.ledger.service.SetUsage(limit)
    await run_audit(room)
    assert findings(room, tenant) == {}, "Pro allows it"

    await room.product.CancelSubscription(
        subscriptions_pb2.CancelSubscriptionRequest(
            tenant_id=tenant, idempotency_key="end", mode=subscriptions_pb2.CANCEL_MODE_NOW
        )
    )
    answer = await run_audit(room)

    found = findings(room, tenant)["over_limit"]
    assert (found["severity"], found["observed"]["limits"]) == ("warning", {"blog.posts": "37 of 10"})
    assert [each.key for each in answer.alerts if each.tenant_id == tenant] == [
        f"subscriptions.over_limit:{found['id']}"
    ]
    limit.idempotency_key, limit.used = "deleted", 10
    await room.ledger.service.SetUsage(limit)
    await run_audit(room)
    assert findings(room, tenant) == {}
