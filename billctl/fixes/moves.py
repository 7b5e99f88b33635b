"""Steps that more than one runbook takes."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from billing.scheduler.v1 import scheduler_pb2 as scheduler_pb
from billing.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb
from billing.subscriptions.v1.subscriptions_admin_pb2_grpc import SubscriptionsAdminServiceStub
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from billctl.desk import Desk, refusal
from billctl.diagnosis import NotDone, NotThere, Order, Step
from billctl.looks import rooms
from shared.errors import FailedPrecondition, NotFound

# A job answers when it ended; the scheduler lets none work for longer.
JOB_SECONDS = 600
DIAGNOSIS_SECONDS = 30
UNPAID = """
SELECT s.plan_id, s.status, p.price_monthly_paise
FROM subscriptions s
JOIN plans p ON p.id = s.plan_id
WHERE s.tenant_id = %(tenant)s
  AND s.razorpay_subscription_id IS NULL
  AND p.price_monthly_paise > 0;
"""


def run_job(desk: Desk, job: str, does: str, touches: str) -> Step:
    """One run of a job of the scheduler."""

    async def act(order: Order) -> str:
        run = await ran(desk, job, key=order.key(job), actor=order.actor, reason=order.told)
        return f"{run.id} {outcome(run)}: {told(run)}"

    return Step(job, does, touches, act)


async def ran(
    desk: Desk, job: str, *, key: str, actor: str, reason: str, dry_run: bool = False
) -> scheduler_pb.Run:
    """Run a job and wait for its end; raises NotDone when it failed."""
    scheduler = desk.stub("scheduler", SchedulerServiceStub)
    request = scheduler_pb.RunJobRequest(
        idempotency_key=key, job=job, dry_run=dry_run, actor=actor, reason=reason
    )
    run: scheduler_pb.Run = (await desk.ask(scheduler.RunJob, request, seconds=JOB_SECONDS)).run
    if run.outcome != scheduler_pb.RUN_OUTCOME_SUCCEEDED:
        raise NotDone(f"{job} {run.id} {outcome(run)}: {told(run)}")
    return run


def outcome(run: scheduler_pb.Run) -> str:
    """The word for what became of a run."""
    return scheduler_pb.RunOutcome.Name(run.outcome).removeprefix("RUN_OUTCOME_").lower()


def answers(run: scheduler_pb.Run) -> dict[str, Mapping[str, Any]]:
    """What each call of a run answered, by `<room>.<Method>`."""
    summary = MessageToDict(run.summary)
    return {call: answer for call, answer in summary.items() if isinstance(answer, dict)}


def told(run: scheduler_pb.Run) -> str:
    """What the rooms counted or refused, in a few words."""
    words = []
    for answer in answers(run).values():
        words += [f"{answer['reason']} {answer.get('message', '')}".strip()] if answer.get("reason") else []
        words += [f"{name} {value:g}" for name, value in answer.items() if isinstance(value, float) and value]
    return ", ".join(words) or "nothing was due"


async def diagnose_tenant(desk: Desk, tenant_id: str) -> admin_pb.DiagnoseTenantResponse:
    """Our books beside the provider's word; raises NotThere when there is no such tenant."""
    admin = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
    request = admin_pb.DiagnoseTenantRequest(tenant_id=tenant_id)
    try:
        answer: admin_pb.DiagnoseTenantResponse = await desk.ask(
            admin.DiagnoseTenant, request, seconds=DIAGNOSIS_SECONDS
        )
    except NotFound as error:
        raise NotThere(f"there is no tenant {tenant_id}") from error
    return answer


async def ledger_is_silent(desk: Desk) -> bool:
    """Whether a diagnosis left out what only the ledger knows: its differences are then not all of them."""
    [row] = await rooms.ask({"ledger": desk.connections.addresses["ledger"]})
    return bool(row["says"] != "serving")


async def retry_task(desk: Desk, task_id: str, order: Order) -> str:
    """Ten attempts more, the first one now; raises NotDone when that one failed."""
    admin = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
    request = admin_pb.RetryReconciliationTaskRequest(
        task_id=task_id, idempotency_key=order.key(f"retry:{task_id}"), actor=order.actor, reason=order.told
    )
    try:
        task = (await desk.ask(admin.RetryReconciliationTask, request)).task
    except FailedPrecondition as refused:
        if refused.reason == "TASK_COMPLETED":
            return f"{task_id} was done meanwhile"
        raise
    if not task.HasField("completed_at"):
        raise NotDone(f"{task_id} failed again ({task.last_error}), and is attempted nine times more")
    return f"{task_id} is done"


async def unpaid_plan(desk: Desk, tenant_id: str) -> str:
    """The plan of a tenant's row that costs something and that no subscription pays for; empty where all is well."""
    rows = await desk.rows(UNPAID, tenant=tenant_id)
    return str(rows[0]["plan_id"]) if rows else ""


async def refuse_unpaid(desk: Desk, tenant_id: str) -> None:
    """Limits follow the row, and whoever edited it by hand may have written what nobody pays for."""
    if plan := await unpaid_plan(desk, tenant_id):
        raise NotDone(f"the row says {plan}, and no subscription pays for it: call an engineer")


async def rebuild_entitlements(desk: Desk, tenant_id: str, order: Order) -> str:
    """Limits as the plan says, pushed to the ledger."""
    await refuse_unpaid(desk, tenant_id)
    admin = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
    request = admin_pb.RebuildEntitlementsRequest(
        tenant_id=tenant_id,
        idempotency_key=order.key(f"rebuild:{tenant_id}"),
        actor=order.actor,
        reason=order.told,
    )
    answer = await desk.ask(admin.RebuildEntitlements, request)
    if not answer.pushed:
        raise NotDone(
            f"version {answer.version} is built; {answer.task_id} pushes it when the ledger answers"
        )
    return f"version {answer.version} is in the ledger"


async def promote(desk: Desk, tenant_id: str, order: Order) -> str:
    """The pending change made real, if the provider says that it is paid."""
    admin = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
    request = admin_pb.PromotePendingChangeRequest(
        tenant_id=tenant_id,
        idempotency_key=order.key(f"promote:{tenant_id}"),
        actor=order.actor,
        reason=order.told,
    )
    try:
        answer = await desk.ask(admin.PromotePendingChange, request)
    except NotFound as refused:
        raise NotDone(refusal(refused)) from refused
    return f"now on {answer.plan_code}"


def named(command: str) -> tuple[str, Mapping[str, Any]]:
    """(method, its request) of a command as a diagnosis prints it; ('', {}) of anything else."""
    words = shlex.split(command)
    if "-d" not in words:
        return "", {}
    return words[-1].rpartition("/")[2], json.loads(words[words.index("-d") + 1])


def shown(moment: Timestamp) -> str:
    """A moment as people read it."""
    return f"{moment.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
