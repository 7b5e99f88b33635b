"""SubscriptionsService: changes of plan and cycle, ends and pauses."""

from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.subscriptions.actions import changes, endings
from services.subscriptions.actions.changes import Change, Changed
from services.subscriptions.actions.intents import Begun
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.purchases import subscription_checkout
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rpc.tenants import pending_change
from services.subscriptions.rules.catalog import Cycle
from services.subscriptions.rules.changes import Quote


class Changes(Desk):
    """Preview, change, undo, end, pause."""

    async def PreviewChange(
        self, request: pb.PreviewChangeRequest, context: Context
    ) -> pb.PreviewChangeResponse:
        quote = await changes.preview(
            self._room.engine,
            self._room.ledger,
            tenant_id=request.tenant_id,
            plan_code=request.plan_code,
            cycle=_cycle(request.cycle),
            now=self._room.clock(),
            policy=self._room.policy,
        )
        return pb.PreviewChangeResponse(quote=self._quote(quote))

    async def ChangePlan(self, request: pb.ChangePlanRequest, context: Context) -> pb.ChangePlanResponse:
        changed = await self._change(
            Change(
                "ChangePlan",
                request.tenant_id,
                request.idempotency_key,
                request.plan_code,
                _cycle(request.cycle),
                request.quote_token,
            )
        )
        return pb.ChangePlanResponse(
            pending_change=pending_change(changed.row) if changed.row.has_pending_change else None,
            checkout=self._checkout(changed.begun),
            quote=self._quote(changed.quote),
            replayed=changed.replayed,
        )

    async def SwitchCycle(self, request: pb.SwitchCycleRequest, context: Context) -> pb.SwitchCycleResponse:
        changed = await self._change(
            Change(
                "SwitchCycle",
                request.tenant_id,
                request.idempotency_key,
                None,
                _cycle(request.cycle),
                request.quote_token,
            )
        )
        return pb.SwitchCycleResponse(
            pending_change=pending_change(changed.row) if changed.row.has_pending_change else None,
            checkout=self._checkout(changed.begun),
            quote=self._quote(changed.quote),
            replayed=changed.replayed,
        )

    async def _change(self, asked: Change) -> Changed:
        changed = await changes.change(
            self._room.engine,
            self._room.ledger,
            self._room.razorpay,
            asked,
            clock=self._room.clock,
            policy=self._room.policy,
        )
        await self._room.reconciler.attempt(asked.tenant_id)
        return changed

    async def CancelPendingChange(
        self, request: pb.CancelPendingChangeRequest, context: Context
    ) -> pb.CancelPendingChangeResponse:
        before, replayed = await changes.cancel_pending(
            self._room.engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            now=self._room.clock(),
            policy=self._room.policy,
        )
        await self._room.reconciler.attempt(request.tenant_id)
        return pb.CancelPendingChangeResponse(cancelled=pending_change(before), replayed=replayed)

    async def CancelSubscription(
        self, request: pb.CancelSubscriptionRequest, context: Context
    ) -> pb.CancelSubscriptionResponse:
        ended = await endings.cancel_subscription(
            self._room.engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            mode="now" if request.mode == pb.CANCEL_MODE_NOW else "at_period_end",
            reason=request.reason,
            now=self._room.clock(),
            policy=self._room.policy,
        )
        await self._room.reconciler.attempt(request.tenant_id)
        return pb.CancelSubscriptionResponse(
            status=messages.status_of(ended.status),
            effective_at=messages.timestamp(ended.effective_at),
            replayed=ended.replayed,
        )

    async def PauseSubscription(
        self, request: pb.PauseSubscriptionRequest, context: Context
    ) -> pb.PauseSubscriptionResponse:
        status, replayed = await self._move("pause", request.tenant_id, request.idempotency_key)
        return pb.PauseSubscriptionResponse(status=messages.status_of(status), replayed=replayed)

    async def ResumeSubscription(
        self, request: pb.ResumeSubscriptionRequest, context: Context
    ) -> pb.ResumeSubscriptionResponse:
        status, replayed = await self._move("resume", request.tenant_id, request.idempotency_key)
        return pb.ResumeSubscriptionResponse(status=messages.status_of(status), replayed=replayed)

    async def _move(self, what: endings.Move, tenant_id: str, key: str) -> tuple[str, bool]:
        moved = await endings.move(
            self._room.engine,
            self._room.razorpay,
            what,
            tenant_id=tenant_id,
            idempotency_key=key,
            mode=self._room.mode,
            clock=self._room.clock,
            policy=self._room.policy,
        )
        await self._room.reconciler.attempt(tenant_id)
        return moved

    def _checkout(self, begun: Begun | None) -> pb.SubscriptionCheckout | None:
        return subscription_checkout(begun, self._room.razorpay.key_id) if begun else None

    def _quote(self, quote: Quote) -> pb.ChangeQuote:
        return pb.ChangeQuote(
            quote_token=quote.token(self._room.razorpay.key_secret),
            kind=pb.ChangeKind.Value(f"CHANGE_KIND_{quote.kind.upper()}"),
            plan_code=quote.plan_id,
            cycle=messages.CYCLES[quote.billing_cycle],
            amount_paise=quote.amount_paise,
            tax_paise=quote.tax_paise,
            total_paise=quote.total_paise,
            refund_paise=quote.refund_paise,
            credits_granted=quote.credits_granted,
            credits_revoked=quote.credits_revoked,
            effective_at=messages.timestamp(quote.effective_at),
            catalog_version=quote.catalog_version,
            expires_at=messages.timestamp(quote.expires_at),
        )


def _cycle(value: int) -> Cycle | None:
    """Absent where it is unspecified: free has none."""
    return None if value == catalog_pb2.BILLING_CYCLE_UNSPECIFIED else messages.cycle_of(value)
