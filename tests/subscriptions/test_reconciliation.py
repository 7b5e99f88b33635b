"""What is owed is paid in the end, once, in order; what cannot be paid reaches a person."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb
from billing.subscriptions.v1 import subscriptions_admin_pb2_grpc as pb_grpc
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as maintenance_pb
from billing.subscriptions.v1 import subscriptions_maintenance_pb2_grpc as maintenance_grpc
from billing.subscriptions.v1 import subscriptions_pb2, subscriptions_pb2_grpc
from pydantic import SecretStr

from services.subscriptions.actions.reconciliation import PATIENCE_SECONDS
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rules.tasks import ATTEMPTS_MAX
from shared.errors import FailedPrecondition, NotFound, PermissionDenied
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.sandbox.running import KEY_ID, KEY_SECRET, free_port
from tests.subscriptions.conftest import MovableClock, Room, serving


async def provision_without_a_ledger(room: Room, database: Database, tenant: str) -> str:
    """A tenant whose first push could not be made; answers the task."""
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    async with (
        serving(database, f"127.0.0.1:{free_port()}", razorpay, MovableClock()) as (address, _, _),
        open_channel(address, SecretStr(SECRETS["gateway_secret"])) as channel,
    ):
        stub = subscriptions_pb2_grpc.SubscriptionsServiceStub(channel)
        request = subscriptions_pb2.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
        await stub.ProvisionTenant(request)
        current = await stub.GetCurrent(subscriptions_pb2.GetCurrentRequest(tenant_id=tenant))
    assert current.credits.unavailable
    [task] = room.rows("SELECT * FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
    assert (task["task_type"], task["attempts"], task["completed_at"]) == ("push_entitlements", 1, None)
    assert task["last_error"].startswith("UNAVAILABLE")
    assert task["next_attempt_at"] > datetime.now(UTC)
    return str(task["id"])


async def test_a_silent_ledger_fails_nothing_and_is_told_later(
    room: Room, database: Database, tenant: str
) -> None:
    task_id = await provision_without_a_ledger(room, database, tenant)

    room.clock.ahead = timedelta(hours=1)
    done = await room.reconcile()

    assert done.completed >= 1
    [task] = room.rows("SELECT * FROM billing_reconciliation_queue WHERE id = %s", task_id)
    assert task["completed_at"] is not None
    assert not (await room.current(tenant)).credits.unavailable


async def test_a_ledger_that_hangs_does_not_hold_up_the_caller(
    room: Room, database: Database, tenant: str
) -> None:
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with (
            serving(database, address, razorpay, MovableClock()) as (ours, _, _),
            open_channel(ours, SecretStr(SECRETS["gateway_secret"])) as channel,
        ):
            request = subscriptions_pb2.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
            async with asyncio.timeout(PATIENCE_SECONDS + 2):
                provisioned = await subscriptions_pb2_grpc.SubscriptionsServiceStub(channel).ProvisionTenant(
                    request
                )

    assert provisioned.created
    [task] = room.rows("SELECT * FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
    assert (task["attempts"], task["completed_at"]) == (1, None)
    room.change("UPDATE billing_reconciliation_queue SET completed_at = now() WHERE id = %s", task["id"])


async def test_after_ten_attempts_a_person_is_told_and_may_try_again(
    room: Room, database: Database, tenant: str
) -> None:
    task_id = await provision_without_a_ledger(room, database, tenant)
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    moving = MovableClock()
    async with (
        serving(database, f"127.0.0.1:{free_port()}", razorpay, moving) as (address, _, _),
        open_channel(address, SecretStr(SECRETS["room_secret"])) as channel,
    ):
        stub = maintenance_grpc.SubscriptionsMaintenanceServiceStub(channel)
        request = maintenance_pb.ReconcileRequest(idempotency_key="job:reconcile:1")
        waits = []
        for attempt in range(2, ATTEMPTS_MAX + 1):
            moving.ahead += timedelta(hours=5)
            answer = await stub.Reconcile(request)
            [task] = room.rows("SELECT * FROM billing_reconciliation_queue WHERE id = %s", task_id)
            assert task["attempts"] == attempt
            waits.append(task["next_attempt_at"] - moving())
        idle = await stub.Reconcile(request)

    assert task["abandoned_at"] is not None
    assert waits[7] > waits[0]
    [alert] = [each for each in answer.alerts if each.tenant_id == tenant]
    assert (alert.severity, alert.evidence["task_id"]) == (alert_pb2.ALERT_SEVERITY_CRITICAL, task_id)
    assert alert.key in {each.key for each in idle.alerts}, "it is reported until somebody settles it"
    retry = pb.RetryReconciliationTaskRequest(
        task_id=task_id, idempotency_key=task_id, actor="asha", reason="the ledger is back"
    )
    retried = await room.admin.RetryReconciliationTask(retry)
    assert retried.task.HasField("completed_at")
    assert (await room.admin.RetryReconciliationTask(retry)).replayed
    with pytest.raises(FailedPrecondition) as refused:
        await room.admin.RetryReconciliationTask(
            pb.RetryReconciliationTaskRequest(task_id=task_id, idempotency_key="n", actor="a", reason="r")
        )
    assert refused.value.reason == "TASK_COMPLETED"
    [audit] = room.rows(
        "SELECT actor_id, metadata FROM billing_audit_log WHERE tenant_id = %s AND action = 'task.retried'",
        tenant,
    )
    assert (audit["actor_id"], audit["metadata"]["reason"]) == ("asha", "the ledger is back")


async def test_a_dry_run_attempts_nothing(room: Room, database: Database, tenant: str) -> None:
    task_id = await provision_without_a_ledger(room, database, tenant)
    room.clock.ahead = timedelta(hours=1)

    answer = await room.maintenance.Reconcile(
        maintenance_pb.ReconcileRequest(idempotency_key="job:reconcile:dry", dry_run=True)
    )

    assert answer.attempted >= 1
    assert (answer.completed, answer.attempted) == (0, answer.still_due)
    [task] = room.rows("SELECT attempts FROM billing_reconciliation_queue WHERE id = %s", task_id)
    assert task["attempts"] == 1


@asynccontextmanager
async def owing(room: Room, database: Database, tenant: str) -> AsyncIterator[list[str]]:
    """A tenant with three pushes owed, none of which can be made yet."""
    await provision_without_a_ledger(room, database, tenant)
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    async with (
        serving(database, f"127.0.0.1:{free_port()}", razorpay, MovableClock()) as (address, _, _),
        open_channel(address, SecretStr(SECRETS["operator_secret"])) as channel,
    ):
        for version in (2, 3):
            await pb_grpc.SubscriptionsAdminServiceStub(channel).RebuildEntitlements(
                rebuild(tenant, f"r{version}")
            )
    tasks = room.rows(
        "SELECT id, attempts FROM billing_reconciliation_queue WHERE tenant_id = %s ORDER BY position", tenant
    )
    assert [task["attempts"] for task in tasks] == [1, 0, 0], "nothing overtakes the first"
    yield [task["id"] for task in tasks]


def rebuild(tenant: str, key: str) -> pb.RebuildEntitlementsRequest:
    return pb.RebuildEntitlementsRequest(
        tenant_id=tenant, idempotency_key=key, actor="asha", reason="runbook 4"
    )


async def test_tasks_of_a_tenant_run_in_the_order_in_which_they_arose(
    room: Room, database: Database, tenant: str
) -> None:
    async with owing(room, database, tenant):
        room.clock.ahead = timedelta(hours=1)

        await room.reconcile()

    rows = room.rows(
        "SELECT completed_at, last_error FROM billing_reconciliation_queue WHERE tenant_id = %s ORDER BY position",
        tenant,
    )
    moments = [row["completed_at"] for row in rows]
    assert None not in moments
    assert moments == sorted(moments)
    assert [row["last_error"] for row in rows] == [None, None, None]


async def test_what_an_operator_closed_stays_closed(room: Room, database: Database, tenant: str) -> None:
    task_id = await provision_without_a_ledger(room, database, tenant)
    with psycopg.connect(database.url("billing_operator"), autocommit=True) as operator:
        operator.execute(
            "UPDATE billing_reconciliation_queue SET completed_at = NOW(), last_error = 'manual_resolve_ticket_7'"
            " WHERE id = %s",
            [task_id],
        )

    room.clock.ahead = timedelta(hours=1)
    await room.reconcile()

    [task] = room.rows("SELECT * FROM billing_reconciliation_queue WHERE id = %s", task_id)
    assert (task["last_error"], task["attempts"]) == ("manual_resolve_ticket_7", 1)


async def test_tasks_are_listed_in_pages(room: Room, database: Database, tenant: str) -> None:
    async with owing(room, database, tenant) as task_ids:
        request = pb.ListReconciliationTasksRequest(
            tenant_id=tenant, page_size=2, state=pb.TASK_STATE_PENDING
        )
        first = await room.admin.ListReconciliationTasks(request)
        request.page_token = first.next_page_token
        second = await room.admin.ListReconciliationTasks(request)

    assert [task.task_id for task in [*first.tasks, *second.tasks]] == task_ids
    assert (len(first.tasks), second.next_page_token) == (2, "")
    assert '"planCode": "free"' in first.tasks[0].payload_json


async def test_rebuilding_mends_what_an_operator_changed_by_hand(
    room: Room, database: Database, tenant: str
) -> None:
    await room.provision(tenant)
    with psycopg.connect(database.url("billing_operator"), autocommit=True) as operator:
        operator.execute(
            "UPDATE subscriptions SET plan_id = 'pro', updated_at = NOW() WHERE tenant_id = %s", [tenant]
        )

    rebuilt = await room.admin.RebuildEntitlements(rebuild(tenant, "once"))
    again = await room.admin.RebuildEntitlements(rebuild(tenant, "once"))

    assert (rebuilt.version, rebuilt.pushed, rebuilt.replayed) == (2, True, False)
    assert (again.version, again.replayed) == (2, True)
    limits = {f"{s.service_code}.{limit.key}": limit.value for s in rebuilt.services for limit in s.limits}
    assert limits["blog.posts"] == 500
    with pytest.raises(FailedPrecondition) as refused:
        await room.admin.RebuildEntitlements(
            pb.RebuildEntitlementsRequest(
                tenant_id=tenant, idempotency_key="once", actor="eve", reason="runbook 4"
            )
        )
    assert refused.value.metadata["field"] == "actor"


async def test_a_plan_that_is_none_is_named(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.change("UPDATE subscriptions SET plan_id = 'platinum' WHERE tenant_id = %s", tenant)

    with pytest.raises(NotFound) as refused:
        await room.admin.RebuildEntitlements(rebuild(tenant, "k"))

    assert (refused.value.reason, refused.value.metadata["plan_code"]) == ("UNKNOWN_PLAN", "platinum")
    assert (await room.current(tenant)).plan_name == "platinum"


async def test_a_missed_charge_is_fetched_and_applied(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    room.sandbox.act(f"subscriptions/{checkout.subscription_id}/pay", method="card")
    room.change(
        "INSERT INTO billing_reconciliation_queue (id, tenant_id, task_type, counterpart, idempotency_key, payload,"
        " next_attempt_at) VALUES (%s, %s, 'fetch_and_apply', 'provider', 'fetch:test',"
        " jsonb_build_object('razorpaySubscriptionId', %s::text), now() - interval '1 minute')",
        f"tsk_{tenant}",
        tenant,
        checkout.subscription_id,
    )

    await room.reconcile()
    await room.reconcile()

    assert (await room.current(tenant)).plan_code == "pro"
    assert (await room.balance(tenant))["subscription"] == 15_000
    assert len(room.rows("SELECT 1 FROM credit_grants WHERE tenant_id = %s", tenant)) == 1


async def test_unknown_tasks_and_other_keys_are_refused(room: Room, tenant: str) -> None:
    with pytest.raises(NotFound) as unknown:
        await room.admin.RetryReconciliationTask(
            pb.RetryReconciliationTaskRequest(task_id="tsk_none", idempotency_key="k", actor="a", reason="r")
        )
    assert unknown.value.reason == "UNKNOWN_TASK"
    async with open_channel(room.address, SecretStr(SECRETS["gateway_secret"])) as channel:
        with pytest.raises(PermissionDenied):
            await pb_grpc.SubscriptionsAdminServiceStub(channel).RebuildEntitlements(rebuild(tenant, "k"))
        with pytest.raises(PermissionDenied):
            await maintenance_grpc.SubscriptionsMaintenanceServiceStub(channel).Reconcile(
                maintenance_pb.ReconcileRequest(idempotency_key="job:reconcile:x")
            )


async def test_cleanup_deletes_only_what_is_long_done(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.change(
        "UPDATE billing_reconciliation_queue SET completed_at = now() - interval '91 days' WHERE tenant_id = %s",
        tenant,
    )
    owed = f"tsk_{tenant}"
    room.change(
        "INSERT INTO billing_reconciliation_queue (id, tenant_id, task_type, counterpart, idempotency_key, payload,"
        " next_attempt_at, abandoned_at) VALUES (%s, %s, 'grant_credits', 'ledger', 'grant:test', '{}', now(),"
        " now() - interval '1 year')",
        owed,
        tenant,
    )

    dry = await room.maintenance.Cleanup(
        maintenance_pb.CleanupRequest(idempotency_key="job:cleanup:1", dry_run=True)
    )
    real = await room.maintenance.Cleanup(maintenance_pb.CleanupRequest(idempotency_key="job:cleanup:1"))

    assert dry.deleted == real.deleted >= 1
    left = room.rows("SELECT id FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
    assert [row["id"] for row in left] == [owed]
    room.change("UPDATE billing_reconciliation_queue SET completed_at = now() WHERE id = %s", owed)


@pytest.mark.parametrize(("late_seconds", "granted"), [(86_400, 70), (None, 0)])
async def test_credits_that_waited_too_long_live_on_if_they_were_paid_for(
    room: Room, tenant: str, late_seconds: int | None, granted: int
) -> None:
    await room.provision(tenant)
    payload = {
        "referenceId": "razorpay:pay_late0000000001",
        "bucket": "subscription",
        "credits": 70,
        "expiresAt": (room.clock() - timedelta(minutes=1)).isoformat(),
        "lateSeconds": late_seconds,
        "reason": "plan.cycle",
        "description": "late",
    }
    room.change(
        "INSERT INTO billing_reconciliation_queue"
        " (id, tenant_id, task_type, counterpart, idempotency_key, payload, next_attempt_at)"
        " VALUES (%s, %s, 'grant_credits', 'ledger', 'grant:late', %s, now())",
        f"tsk_{tenant}",
        tenant,
        json.dumps(payload),
    )

    await room.reconcile()

    assert (await room.balance(tenant))["subscription"] == granted
    [task] = room.rows("SELECT * FROM billing_reconciliation_queue WHERE id = %s", f"tsk_{tenant}")
    assert task["completed_at"] is not None
    assert "its time was over" in task["last_error"]
