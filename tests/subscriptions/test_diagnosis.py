"""A diagnosis says where the books differ and which command mends it; the command runs as it is printed."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from billing.scheduler.v1 import scheduler_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb
from billing.subscriptions.v1 import subscriptions_admin_pb2_grpc as pb_grpc
from google.protobuf import json_format
from pydantic import SecretStr

from services.scheduler.jobs import BY_NAME
from services.subscriptions.clients.razorpay import Razorpay
from shared.errors import FailedPrecondition, NotFound
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.sandbox.running import KEY_ID, KEY_SECRET, free_port
from tests.subscriptions.conftest import MovableClock, Room, serving
from tests.subscriptions.test_sync import forget

ROOT = Path(__file__).resolve().parents[2]


async def diagnose(room: Room, tenant: str) -> pb.DiagnoseTenantResponse:
    return await room.admin.DiagnoseTenant(pb.DiagnoseTenantRequest(tenant_id=tenant))


async def differences(room: Room, tenant: str) -> dict[str, pb.Difference]:
    """What differs, by field."""
    found = (await diagnose(room, tenant)).differences
    by_field = {each.field: each for each in found}
    assert len(by_field) == len(found)
    return by_field


async def paid(room: Room, tenant: str, *, deliver: bool = True) -> str:
    await room.provision(tenant)
    subscription_id: str = (await room.checkout(tenant)).checkout.subscription_id
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card", deliver=deliver):
        if deliver:
            await room.deliver(delivery)
    return subscription_id


def run(room: Room, command: str) -> str:
    """What somebody does who copies the line into a shell that is set up as the README says."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "KEY": f"x-gateway-key: {SECRETS['operator_secret']}",
        "SUBSCRIPTIONS_ADDRESS": room.address,
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def run_aside(room: Room, command: str) -> dict[str, object]:
    """The same while the room goes on serving."""
    answer: dict[str, object] = json.loads(await asyncio.to_thread(run, room, command))
    return answer


async def test_a_healthy_tenant_has_no_differences(room: Room, tenant: str) -> None:
    subscription_id = await paid(room, tenant)

    found = await diagnose(room, tenant)

    assert list(found.differences) == []
    [view] = found.theirs
    assert (view.subscription_id, view.role, view.status, view.paid_count) == (
        *(subscription_id, "live"),
        *("active", 1),
    )
    assert view.HasField("current_end_at")
    assert found.ours == await room.current(tenant)
    assert (list(found.open_tasks), found.provider_unavailable) == ([], False)


async def test_a_payment_that_was_missed_is_promoted_by_the_sync(room: Room, tenant: str) -> None:
    subscription_id = await paid(room, tenant, deliver=False)

    found = await diagnose(room, tenant)

    fields = {each.field: (each.ours, each.theirs) for each in found.differences}
    assert fields["status"] == ("created", "active")
    assert fields["paid_count"] == ("0", "1")
    assert fields["missing_grant"] == ("0 payments", "1 paid cycles")
    [view] = found.theirs
    assert (view.subscription_id, view.role) == (subscription_id, "pending")
    commands = {each.next_command for each in found.differences}
    assert len(commands) == 1
    answer = await run_aside(room, commands.pop())
    assert answer["planCode"] == "pro"
    assert (await room.current(tenant)).plan_code == "pro"
    assert list((await diagnose(room, tenant)).differences) == []


async def test_a_renewal_that_was_missed_names_the_job(room: Room, tenant: str) -> None:
    subscription_id = await paid(room, tenant)
    room.sandbox.act(f"subscriptions/{subscription_id}/charge", deliver=False)

    found = await differences(room, tenant)

    assert {"paid_count", "missing_grant", "current_end"} <= set(found)
    words = shlex.split(found["missing_grant"].next_command)
    assert words[-1].endswith("billing.scheduler.v1.SchedulerService/RunJob")
    request = json_format.Parse(words[words.index("-d") + 1], scheduler_pb2.RunJobRequest())
    assert request.job in BY_NAME
    assert tenant in request.idempotency_key


async def test_an_orphan_is_ended_by_the_command(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    plan = room.sandbox.sdk.plan.all({"count": 1})["items"][0]
    orphan = room.sandbox.sdk.subscription.create(
        {"plan_id": plan["id"], "total_count": 12, "notes": {"tenant_id": tenant}}
    )["id"]

    found = await diagnose(room, tenant)

    assert [(view.subscription_id, view.role) for view in found.theirs] == [(orphan, "orphan")]
    [difference] = found.differences
    assert (difference.field, difference.theirs) == ("orphan", f"{orphan} created")
    await run_aside(room, difference.next_command)
    assert room.sandbox.sdk.subscription.fetch(orphan)["status"] == "cancelled"
    after = await diagnose(room, tenant)
    assert (list(after.differences), list(after.theirs)) == ([], [])


async def test_a_purchase_whose_answer_was_lost_is_no_orphan(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    subscription_id = (await room.checkout(tenant)).checkout.subscription_id
    forget(room, tenant)

    unpaid = await diagnose(room, tenant)
    room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card", deliver=False)
    paid_for = await diagnose(room, tenant)

    assert [(view.subscription_id, view.role) for view in unpaid.theirs] == [(subscription_id, "pending")]
    assert list(unpaid.differences) == [], "the customer's next click finds it"
    [difference] = paid_for.differences
    assert (difference.field, difference.theirs) == ("lost_answer", f"{subscription_id} active")
    assert "sync_provider" in difference.next_command


async def test_limits_that_differ_are_rebuilt_by_the_command(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.change("UPDATE subscriptions SET plan_id = 'pro' WHERE tenant_id = %s", tenant)

    found = await differences(room, tenant)

    assert set(found) == {"entitlements_differ"}
    assert "blog.posts" in found["entitlements_differ"].theirs
    answer = await run_aside(room, found["entitlements_differ"].next_command)
    assert answer["version"] == "2"
    assert await differences(room, tenant) == {}


async def test_a_task_that_was_given_up_is_retried_by_the_command(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.change(
        "UPDATE billing_reconciliation_queue SET completed_at = NULL, abandoned_at = now(), attempts = 10,"
        " last_error = 'UNAVAILABLE: away' WHERE tenant_id = %s",
        tenant,
    )

    found = await diagnose(room, tenant)

    [task] = found.open_tasks
    [difference] = found.differences
    assert (difference.field, difference.ours) == ("abandoned_task", f"push_entitlements {task.task_id}")
    assert "UNAVAILABLE: away" in difference.theirs
    await run_aside(room, difference.next_command)
    assert await differences(room, tenant) == {}


async def test_a_payment_without_its_grant_is_given_back_by_the_command(room: Room, tenant: str) -> None:
    await paid(room, tenant)
    [payment] = room.rows("SELECT id FROM payments WHERE tenant_id = %s", tenant)
    room.change("DELETE FROM credit_grants WHERE tenant_id = %s", tenant)

    found = await differences(room, tenant)

    assert found["payment_without_grant"].ours == payment["id"]
    await run_aside(room, found["payment_without_grant"].next_command)
    assert room.sandbox.sdk.payment.fetch(payment["id"])["amount_refunded"] > 0


async def test_a_pending_change_that_lost_its_subscription_is_undone_by_the_command(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    await room.checkout(tenant)
    room.change(
        "UPDATE subscriptions SET pending_razorpay_subscription_id = NULL WHERE tenant_id = %s", tenant
    )

    found = await differences(room, tenant)

    assert found["pending_change"].ours == "upgrade"
    await run_aside(room, found["pending_change"].next_command)
    assert "pending_change" not in await differences(room, tenant)


async def test_the_same_line_twice_is_one_effect_and_a_later_diagnosis_has_its_own_key(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    room.change("UPDATE subscriptions SET plan_id = 'pro' WHERE tenant_id = %s", tenant)
    command = (await differences(room, tenant))["entitlements_differ"].next_command

    first, again = await run_aside(room, command), await run_aside(room, command)

    assert (first["version"], again["version"], again["replayed"]) == ("2", "2", True)
    room.change("UPDATE subscriptions SET plan_id = 'starter' WHERE tenant_id = %s", tenant)
    room.clock.ahead = timedelta(minutes=1)
    later = (await differences(room, tenant))["entitlements_differ"].next_command
    assert later != command
    assert (await run_aside(room, later))["version"] == "3"


async def test_a_silent_provider_leaves_its_part_out(room: Room, database: Database, tenant: str) -> None:
    await paid(room, tenant)
    room.change("UPDATE subscriptions SET plan_id = 'business' WHERE tenant_id = %s", tenant)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (free_port(), silent.getsockname()[1]):
            razorpay = Razorpay(api_url=f"http://127.0.0.1:{port}", key_id=KEY_ID, key_secret=KEY_SECRET)
            async with (
                serving(database, room.ledger.address, razorpay, MovableClock()) as (address, _, _),
                open_channel(address, SecretStr(SECRETS["operator_secret"])) as channel,
            ):
                found = await pb_grpc.SubscriptionsAdminServiceStub(channel).DiagnoseTenant(
                    pb.DiagnoseTenantRequest(tenant_id=tenant)
                )
            assert (found.provider_unavailable, list(found.theirs)) == (True, [])
            assert found.ours.plan_code == "business"
            assert [each.field for each in found.differences] == ["entitlements_differ"]


async def test_a_silent_ledger_leaves_its_part_out(room: Room, database: Database, tenant: str) -> None:
    subscription_id = await paid(room, tenant)
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    async with (
        serving(database, f"127.0.0.1:{free_port()}", razorpay, MovableClock()) as (address, _, _),
        open_channel(address, SecretStr(SECRETS["operator_secret"])) as channel,
    ):
        found = await pb_grpc.SubscriptionsAdminServiceStub(channel).DiagnoseTenant(
            pb.DiagnoseTenantRequest(tenant_id=tenant)
        )

    assert found.ours.credits.unavailable
    assert [view.subscription_id for view in found.theirs] == [subscription_id]
    assert list(found.differences) == []


async def test_an_unknown_tenant_is_refused(room: Room, tenant: str) -> None:
    with pytest.raises(NotFound) as refused:
        await diagnose(room, tenant)
    assert refused.value.reason == "UNKNOWN_TENANT"


def resolve(
    task_id: str, *, key: str = "ticket-7", actor: str = "asha"
) -> pb.ResolveReconciliationTaskRequest:
    return pb.ResolveReconciliationTaskRequest(
        task_id=task_id, idempotency_key=key, actor=actor, reason="paid by hand"
    )


async def test_a_task_is_closed_by_a_persons_word_once(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.change(
        "UPDATE billing_reconciliation_queue SET completed_at = NULL, abandoned_at = now(), attempts = 10"
        " WHERE tenant_id = %s",
        tenant,
    )
    [task] = (await diagnose(room, tenant)).open_tasks

    closed = await room.admin.ResolveReconciliationTask(resolve(task.task_id))
    again = await room.admin.ResolveReconciliationTask(resolve(task.task_id))

    assert (closed.task.HasField("completed_at"), closed.replayed, again.replayed) == (True, False, True)
    assert closed.task.last_error == "resolved by asha: paid by hand"
    assert (await room.reconcile()).completed == 0
    assert closed.task == again.task
    [record] = room.rows(
        "SELECT * FROM billing_audit_log WHERE tenant_id = %s AND action = 'task.resolved'", tenant
    )
    assert (record["actor_id"], record["resource_id"]) == ("asha", task.task_id)
    assert record["metadata"]["before"]["abandoned"] is True
    with pytest.raises(FailedPrecondition) as done:
        await room.admin.ResolveReconciliationTask(resolve(task.task_id, key="ticket-8"))
    assert (done.value.reason, done.value.metadata["task_id"]) == ("TASK_COMPLETED", task.task_id)
    with pytest.raises(FailedPrecondition) as reused:
        await room.admin.ResolveReconciliationTask(resolve(task.task_id, actor="eve"))
    assert reused.value.metadata["field"] == "actor"
    with pytest.raises(NotFound) as unknown:
        await room.admin.ResolveReconciliationTask(resolve("tsk_none"))
    assert unknown.value.reason == "UNKNOWN_TASK"


async def test_what_stood_behind_a_closed_task_goes_on(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.change(
        "UPDATE billing_reconciliation_queue SET completed_at = NULL, next_attempt_at = now() + interval '4 hours'"
        " WHERE tenant_id = %s",
        tenant,
    )
    rebuilt = await room.admin.RebuildEntitlements(
        pb.RebuildEntitlementsRequest(tenant_id=tenant, idempotency_key="r", actor="asha", reason="r")
    )
    assert not rebuilt.pushed, "nothing overtakes the first"
    [first, second] = (await diagnose(room, tenant)).open_tasks

    await room.admin.ResolveReconciliationTask(resolve(first.task_id))

    assert second.task_id == rebuilt.task_id
    assert list((await diagnose(room, tenant)).open_tasks) == []
