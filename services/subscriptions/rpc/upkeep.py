"""SubscriptionsMaintenanceService: what is owed, and what is no longer needed."""

from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions.cleanup import cleanup
from services.subscriptions.actions.notices import deliver_notices
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.tasks import Task


class Upkeep(Desk):
    """Reconcile and Cleanup."""

    async def Reconcile(self, request: pb.ReconcileRequest, context: Context) -> pb.ReconcileResponse:
        done = await self._room.reconciler.reconcile(max_tasks=request.max_tasks, dry_run=request.dry_run)
        if not request.dry_run:
            await deliver_notices(self._room.engine, self._room.notices, now=self._room.clock())
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
        cleaned = await cleanup(
            self._room.engine, self._room.policy.retention, now=self._room.clock(), dry_run=request.dry_run
        )
        return pb.CleanupResponse(
            deleted=cleaned.rows,
            signature_failures_deleted=cleaned.signature_failures,
            rate_limit_buckets_deleted=cleaned.buckets,
        )


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
