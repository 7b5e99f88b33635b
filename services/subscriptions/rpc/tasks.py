"""SubscriptionsAdminService: what is owed to the provider and the ledger."""

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import mending
from services.subscriptions.actions import reconciliation as actions
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk

_STATES = {
    pb.TASK_STATE_PENDING: "pending",
    pb.TASK_STATE_ABANDONED: "abandoned",
    pb.TASK_STATE_COMPLETED: "completed",
}


class Tasks(Desk):
    """Reconciliation tasks: see them, try them again, close them."""

    async def ListReconciliationTasks(
        self, request: pb.ListReconciliationTasksRequest, context: Context
    ) -> pb.ListReconciliationTasksResponse:
        size = request.page_size or messages.PAGE_SIZE_DEFAULT
        found = await actions.list_tasks(
            self._room.engine,
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
            self._room.engine,
            task_id=request.task_id,
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
            now=self._room.clock(),
        )
        if not replayed:
            await self._room.reconciler.attempt(tenant_id)
        task = await actions.get_task(self._room.engine, request.task_id)
        return pb.RetryReconciliationTaskResponse(task=messages.task(task), replayed=replayed)

    async def ResolveReconciliationTask(
        self, request: pb.ResolveReconciliationTaskRequest, context: Context
    ) -> pb.ResolveReconciliationTaskResponse:
        replayed = await mending.resolve_task(
            self._room.engine,
            mending.Word(request.idempotency_key, request.actor, request.reason),
            task_id=request.task_id,
            clock=self._room.clock,
        )
        task = await actions.get_task(self._room.engine, request.task_id)
        if not replayed:  # what stood in line behind it may go on
            await self._room.reconciler.attempt(task.tenant_id)
        return pb.ResolveReconciliationTaskResponse(task=messages.task(task), replayed=replayed)
