"""SubscriptionsAdminService: refunds, and pending changes that were paid."""

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import reconciliation, refunds
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk

_TASKS_SHOWN = 20


class Refunds(Desk):
    """RefundPayment and PromotePendingChange."""

    async def RefundPayment(
        self, request: pb.RefundPaymentRequest, context: Context
    ) -> pb.RefundPaymentResponse:
        refunded = await refunds.refund_payment(
            self._room.engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            payment_id=request.payment_id,
            amount_paise=request.amount_paise if request.HasField("amount_paise") else None,
            actor=request.actor,
            reason=request.reason,
            now=self._room.clock(),
        )
        await self._room.reconciler.attempt(request.tenant_id)
        refund = await refunds.get_refund(self._room.engine, refunded.refund.id)
        return pb.RefundPaymentResponse(
            refund_id=refund.id,
            provider_refund_id=refund.provider_refund_id or "",
            status=refund.status,
            amount_paise=refund.amount_paise,
            credits_to_revoke=refunded.credits_to_revoke,
            replayed=refunded.replayed,
        )

    async def PromotePendingChange(
        self, request: pb.PromotePendingChangeRequest, context: Context
    ) -> pb.PromotePendingChangeResponse:
        pending = await refunds.find_pending(
            self._room.engine, tenant_id=request.tenant_id, idempotency_key=request.idempotency_key
        )
        before = await reconciliation.newest_position(self._room.engine)
        if not pending.replayed:
            await self._room.reconciler.performer.look_at(pending.subscription_id)
        plan_code, cycle = await refunds.record_promotion(
            self._room.engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            pending=pending,
            actor=request.actor,
            reason=request.reason,
        )
        await self._room.reconciler.attempt(request.tenant_id)
        tasks = await reconciliation.list_since(
            self._room.engine, tenant_id=request.tenant_id, position=before, limit=_TASKS_SHOWN
        )
        return pb.PromotePendingChangeResponse(
            plan_code=plan_code,
            cycle=messages.CYCLES[cycle],
            tasks=[messages.task(task) for task in tasks],
            replayed=pending.replayed,
        )
