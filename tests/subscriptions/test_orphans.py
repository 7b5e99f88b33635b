"""What nobody relies on is ended on an operator's word, once; what a tenant relies on is not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb

from shared.errors import FailedPrecondition
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_sync import bought, findings, orphan_of, paid, sync


def cancel(
    tenant: str, subscription_id: str, *, key: str = "ticket-7", actor: str = "asha"
) -> admin_pb.CancelOrphanSubscriptionRequest:
    return admin_pb.CancelOrphanSubscriptionRequest(
        tenant_id=tenant,
        subscription_id=subscription_id,
        idempotency_key=key,
        actor=actor,
        reason="double checkout",
    )


async def test_an_orphan_is_cancelled_once_and_recorded(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    orphan = orphan_of(room, tenant)
    await sync(room, tenant)

    done = await room.admin.CancelOrphanSubscription(cancel(tenant, orphan))
    again = await room.admin.CancelOrphanSubscription(cancel(tenant, orphan))

    assert (done.task.task_type, done.task.HasField("completed_at")) == ("cancel_provider_subscription", True)
    assert (done.replayed, again.replayed, again.task.task_id) == (False, True, done.task.task_id)
    assert room.sandbox.sdk.subscription.fetch(orphan)["status"] == "cancelled"
    assert ((await sync(room, tenant, key="2")).orphans, findings(room, tenant)) == (0, [])
    [record] = room.rows(
        "SELECT * FROM billing_audit_log WHERE tenant_id = %s AND action = 'orphan.cancelled'", tenant
    )
    assert (record["actor_id"], record["resource_id"]) == ("asha", orphan)
    assert record["metadata"]["reason"] == "double checkout"
    with pytest.raises(FailedPrecondition) as reused:
        await room.admin.CancelOrphanSubscription(cancel(tenant, orphan, actor="eve"))
    assert reused.value.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_a_cancellation_that_the_provider_could_not_do_is_owed(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    orphan = orphan_of(room, tenant)
    path = f"/v1/subscriptions/{orphan}/cancel"
    room.sandbox.set("faults", kind="status", status=500, times=1, method="POST", path=path)

    owed = await room.admin.CancelOrphanSubscription(cancel(tenant, orphan))

    assert (owed.task.attempts, owed.task.HasField("completed_at")) == (1, False)
    room.clock.ahead = timedelta(hours=1)
    await room.reconcile()
    assert room.sandbox.sdk.subscription.fetch(orphan)["status"] == "cancelled"


async def test_a_cancellation_that_was_given_up_is_taken_up_by_asking_again(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    orphan = orphan_of(room, tenant)
    path = f"/v1/subscriptions/{orphan}/cancel"
    room.sandbox.set("faults", kind="status", status=500, times=1, method="POST", path=path)
    owed = (await room.admin.CancelOrphanSubscription(cancel(tenant, orphan))).task
    room.change(
        "UPDATE billing_reconciliation_queue SET attempts = 10, abandoned_at = now() WHERE id = %s",
        owed.task_id,
    )
    key = f"subscriptions.task_abandoned:{owed.task_id}"
    assert key in {alert.key for alert in (await room.reconcile()).alerts}

    again = await room.admin.CancelOrphanSubscription(cancel(tenant, orphan, key="ticket-8"))

    assert (again.task.task_id, again.replayed) == (owed.task_id, False)
    assert (again.task.HasField("completed_at"), again.task.HasField("abandoned_at")) == (True, False)
    assert room.sandbox.sdk.subscription.fetch(orphan)["status"] == "cancelled"
    assert key not in {alert.key for alert in (await room.reconcile()).alerts}, (
        "nothing stays given up beside it"
    )
    lines = room.rows(
        "SELECT metadata FROM billing_audit_log WHERE tenant_id = %s AND action = 'orphan.cancelled'"
        " ORDER BY created_at",
        tenant,
    )
    assert [line["metadata"]["after"]["task_id"] for line in lines] == [owed.task_id] * 2
    assert lines[1]["metadata"]["before"]["abandoned"] is True
    # Done, and asked for once more: whoever says so may know that it was done in vain.
    third = await room.admin.CancelOrphanSubscription(cancel(tenant, orphan, key="ticket-9"))
    assert third.task.task_id != owed.task_id
    assert third.task.HasField("completed_at")


async def test_what_we_rely_on_is_no_orphan(room: Room, tenant: str) -> None:
    live, pending = await paid(room, tenant), await bought(room, f"{tenant}_pending")
    await room.provision(f"{tenant}_other")
    nobodys = orphan_of(room, "somebody-elses-customer")

    for whose, subscription_id in (
        (tenant, live),
        (f"{tenant}_pending", pending),
        (f"{tenant}_other", live),
        (f"{tenant}_other", nobodys),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            await room.admin.CancelOrphanSubscription(cancel(whose, subscription_id))
        assert refused.value.reason == "NOT_AN_ORPHAN"
        assert refused.value.metadata["subscription_id"] == subscription_id
    with pytest.raises(FailedPrecondition) as unknown:
        await room.admin.CancelOrphanSubscription(cancel(tenant, "sub_Nowhere0000002"))
    assert unknown.value.reason == "PROVIDER_REFUSED"
    assert room.sandbox.sdk.subscription.fetch(live)["status"] == "active"
