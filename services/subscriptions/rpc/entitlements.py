"""SubscriptionsAdminService: entitlements."""

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import entitlements
from services.subscriptions.actions import reconciliation as actions
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk


class Entitlements(Desk):
    """What a tenant may use, built anew on demand."""

    async def RebuildEntitlements(
        self, request: pb.RebuildEntitlementsRequest, context: Context
    ) -> pb.RebuildEntitlementsResponse:
        rebuilt = await entitlements.rebuild_entitlements(
            self._room.engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
            now=self._room.clock(),
        )
        await self._room.reconciler.attempt(request.tenant_id)
        task = await actions.get_task(self._room.engine, rebuilt.task_id)
        return pb.RebuildEntitlementsResponse(
            version=rebuilt.version,
            services=messages.service_limits(rebuilt.services),
            pushed=task.completed_at is not None,
            task_id=rebuilt.task_id,
            replayed=rebuilt.replayed,
        )
