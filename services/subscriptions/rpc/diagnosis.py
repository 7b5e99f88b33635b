"""SubscriptionsAdminService: what is the matter with a tenant, and what ends an orphan."""

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import diagnosis, mending
from services.subscriptions.actions import reconciliation as tasks
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rpc.tenants import current_response


class Diagnoses(Desk):
    """DiagnoseTenant and CancelOrphanSubscription."""

    async def DiagnoseTenant(
        self, request: pb.DiagnoseTenantRequest, context: Context
    ) -> pb.DiagnoseTenantResponse:
        found = await diagnosis.diagnose_tenant(
            self._room.engine,
            self._room.ledger,
            self._room.razorpay,
            self._room.policy,
            tenant_id=request.tenant_id,
            clock=self._room.clock,
        )
        return pb.DiagnoseTenantResponse(
            ours=current_response(found.current),
            theirs=[_view(view) for view in found.views],
            differences=[
                pb.Difference(
                    field=each.field, ours=each.ours, theirs=each.theirs, next_command=each.next_command
                )
                for each in found.differences
            ],
            open_tasks=[messages.task(task) for task in found.open_tasks],
            provider_unavailable=found.provider_unavailable,
        )

    async def CancelOrphanSubscription(
        self, request: pb.CancelOrphanSubscriptionRequest, context: Context
    ) -> pb.CancelOrphanSubscriptionResponse:
        task_id, replayed = await mending.cancel_orphan(
            self._room.engine,
            self._room.razorpay,
            mending.Word(request.idempotency_key, request.actor, request.reason),
            tenant_id=request.tenant_id,
            subscription_id=request.subscription_id,
            clock=self._room.clock,
        )
        if not replayed:
            await self._room.reconciler.attempt(request.tenant_id)
        task = await tasks.get_task(self._room.engine, task_id)
        return pb.CancelOrphanSubscriptionResponse(task=messages.task(task), replayed=replayed)


def _view(view: diagnosis.View) -> pb.ProviderView:
    return pb.ProviderView(
        subscription_id=view.snapshot.id,
        status=view.snapshot.status,
        provider_plan_id=view.snapshot.provider_plan_id,
        paid_count=view.snapshot.paid_count,
        current_end_at=messages.timestamp(view.snapshot.current_end),
        role=view.role,
    )
