"""SubscriptionsAdminService."""

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb
from billing.subscriptions.v1 import subscriptions_admin_pb2_grpc as pb_grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import entitlements
from services.subscriptions.actions import reconciliation as actions
from services.subscriptions.actions.reconciliation import Reconciler
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from shared.clock import Clock

_STATES = {
    pb.TASK_STATE_PENDING: "pending",
    pb.TASK_STATE_ABANDONED: "abandoned",
    pb.TASK_STATE_COMPLETED: "completed",
}


class SubscriptionsAdminService(pb_grpc.SubscriptionsAdminServiceServicer):
    """What operators may see and mend."""

    def __init__(self, engine: AsyncEngine, *, reconciler: Reconciler, clock: Clock) -> None:
        self._engine = engine
        self._reconciler = reconciler
        self._clock = clock

    async def RebuildEntitlements(
        self, request: pb.RebuildEntitlementsRequest, context: Context
    ) -> pb.RebuildEntitlementsResponse:
        rebuilt = await entitlements.rebuild_entitlements(
            self._engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
            now=self._clock(),
        )
        await self._reconciler.attempt(request.tenant_id)
        task = await actions.get_task(self._engine, rebuilt.task_id)
        return pb.RebuildEntitlementsResponse(
            version=rebuilt.version,
            services=messages.service_limits(rebuilt.services),
            pushed=task.completed_at is not None,
            task_id=rebuilt.task_id,
            replayed=rebuilt.replayed,
        )

    async def ListReconciliationTasks(
        self, request: pb.ListReconciliationTasksRequest, context: Context
    ) -> pb.ListReconciliationTasksResponse:
        size = request.page_size or messages.PAGE_SIZE_DEFAULT
        found = await actions.list_tasks(
            self._engine,
            tenant_id=request.tenant_id or None,
            state=_STATES.get(request.state),
            after=messages.offset(request.page_token),
            limit=size + 1,
        )
        shown = found[:size]
        return pb.ListReconciliationTasksResponse(
            tasks=[messages.task(task) for task in shown],
            next_page_token=str(shown[-1].position) if len(found) > size else "",
        )

    async def RetryReconciliationTask(
        self, request: pb.RetryReconciliationTaskRequest, context: Context
    ) -> pb.RetryReconciliationTaskResponse:
        tenant_id, replayed = await actions.retry_task(
            self._engine,
            task_id=request.task_id,
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
            now=self._clock(),
        )
        if not replayed:
            await self._reconciler.attempt(tenant_id)
        task = await actions.get_task(self._engine, request.task_id)
        return pb.RetryReconciliationTaskResponse(task=messages.task(task), replayed=replayed)
