"""SubscriptionsMaintenanceService."""

from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb
from billing.subscriptions.v1 import subscriptions_maintenance_pb2_grpc as pb_grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import reconciliation as actions
from services.subscriptions.actions.reconciliation import Reconciler
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rules.tasks import Task
from shared.clock import Clock


class SubscriptionsMaintenanceService(pb_grpc.SubscriptionsMaintenanceServiceServicer):
    """What time makes due."""

    def __init__(self, engine: AsyncEngine, *, reconciler: Reconciler, clock: Clock) -> None:
        self._engine = engine
        self._reconciler = reconciler
        self._clock = clock

    async def Reconcile(self, request: pb.ReconcileRequest, context: Context) -> pb.ReconcileResponse:
        done = await self._reconciler.reconcile(max_tasks=request.max_tasks, dry_run=request.dry_run)
        failed = 0 if request.dry_run else done.attempted - done.completed - done.abandoned
        return pb.ReconcileResponse(
            attempted=done.attempted,
            completed=done.completed,
            failed=failed,
            abandoned=done.abandoned,
            still_due=done.still_due,
            alerts=[_abandoned(task) for task in done.abandoned_tasks],
        )

    async def Cleanup(self, request: pb.CleanupRequest, context: Context) -> pb.CleanupResponse:
        deleted = await actions.cleanup(self._engine, now=self._clock(), dry_run=request.dry_run)
        return pb.CleanupResponse(deleted=deleted)


def _abandoned(task: Task) -> alert_pb2.Alert:
    return alert_pb2.Alert(
        key=f"subscriptions.task_abandoned:{task.id}",
        severity=alert_pb2.ALERT_SEVERITY_CRITICAL,
        title=f"Reconciliation task {task.task_type} was given up after {task.attempts} attempts",
        tenant_id=task.tenant_id,
        evidence={
            "task_id": task.id,
            "task_type": task.task_type,
            "last_error": task.last_error or "",
            "idempotency_key": task.idempotency_key,
        },
    )
