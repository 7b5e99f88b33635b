"""SubscriptionsService."""

from billing.subscriptions.v1 import subscriptions_pb2 as pb
from billing.subscriptions.v1 import subscriptions_pb2_grpc as pb_grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import checkout, credits, current, provision, verify
from services.subscriptions.actions.reconciliation import Reconciler
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rules.amounts import format_inr
from services.subscriptions.rules.lifecycle import Subscription
from shared.clock import Clock

_VERIFY = {
    "verified": pb.VERIFY_STATUS_VERIFIED,
    "pending": pb.VERIFY_STATUS_PENDING,
    "failed": pb.VERIFY_STATUS_FAILED,
}
_STAGES = {
    None: pb.PAST_DUE_STAGE_UNSPECIFIED,
    "day_1": pb.PAST_DUE_STAGE_DAY_1,
    "day_3": pb.PAST_DUE_STAGE_DAY_3,
    "day_7": pb.PAST_DUE_STAGE_DAY_7,
}


class SubscriptionsService(pb_grpc.SubscriptionsServiceServicer):
    """What the product may ask for a tenant."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        ledger: Ledger,
        razorpay: Razorpay,
        reconciler: Reconciler,
        mode: str,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._razorpay = razorpay
        self._reconciler = reconciler
        self._mode = mode
        self._clock = clock

    async def ProvisionTenant(
        self, request: pb.ProvisionTenantRequest, context: Context
    ) -> pb.ProvisionTenantResponse:
        provisioned = await provision.provision_tenant(
            self._engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            now=self._clock(),
        )
        await self._reconciler.attempt(request.tenant_id)
        return pb.ProvisionTenantResponse(
            plan_code=provisioned.plan_id,
            status=messages.status_of(provisioned.status),
            entitlements_version=provisioned.entitlements_version,
            created=provisioned.created,
        )

    async def GetCurrent(self, request: pb.GetCurrentRequest, context: Context) -> pb.GetCurrentResponse:
        found = await current.get_current(
            self._engine, self._ledger, tenant_id=request.tenant_id, now=self._clock()
        )
        return _current(found)

    async def Checkout(self, request: pb.CheckoutRequest, context: Context) -> pb.CheckoutResponse:
        begun = await checkout.checkout(
            self._engine,
            self._razorpay,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            plan_code=request.plan_code,
            cycle=messages.cycle_of(request.cycle),
            with_trial=request.with_trial,
            clock=self._clock,
        )
        await self._reconciler.attempt(request.tenant_id)
        intent = begun.intent
        return pb.CheckoutResponse(
            checkout=pb.SubscriptionCheckout(
                provider=intent.provider,
                subscription_id=begun.subscription_id,
                key_id=self._razorpay.key_id,
                amount_paise=intent.amount_paise,
                tax_paise=intent.tax_paise,
                total_paise=intent.total_paise,
                total_display=format_inr(intent.total_paise),
                currency=intent.currency,
                intent_id=intent.id,
                first_charge_at=messages.timestamp(intent.first_charge_at),
            ),
            replayed=begun.replayed,
        )

    async def VerifyPayment(
        self, request: pb.VerifyPaymentRequest, context: Context
    ) -> pb.VerifyPaymentResponse:
        verified = await verify.verify_payment(
            self._engine,
            self._razorpay,
            verify.Claim(
                tenant_id=request.tenant_id,
                intent_id=request.intent_id,
                purchase_id=request.purchase_id,
                payment_id=request.payment_id,
                signature=request.signature,
                remote_ip=request.remote_ip,
                user_agent=request.user_agent,
            ),
            idempotency_key=request.idempotency_key,
            mode=self._mode,
            clock=self._clock,
        )
        await self._reconciler.attempt(request.tenant_id)
        return pb.VerifyPaymentResponse(status=_VERIFY[verified.status], reason=verified.reason)

    async def BuyCredits(self, request: pb.BuyCreditsRequest, context: Context) -> pb.BuyCreditsResponse:
        ordered = await credits.buy_credits(
            self._engine,
            self._razorpay,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            pack_code=request.pack_code,
        )
        purchase = ordered.purchase
        return pb.BuyCreditsResponse(
            provider=purchase.provider,
            order_id=ordered.order_id,
            key_id=self._razorpay.key_id,
            total_paise=purchase.amount_paise,
            currency=purchase.currency,
            total_display=format_inr(purchase.amount_paise),
            purchase_id=purchase.id,
            credits=purchase.credits,
            replayed=ordered.replayed,
        )


def _current(found: current.Current) -> pb.GetCurrentResponse:
    row = found.row
    return pb.GetCurrentResponse(
        plan_code=row.plan_id,
        plan_name=found.plan_name,
        cycle=messages.CYCLES[row.billing_cycle],
        status=messages.status_of(row.status),
        current_period_start_at=messages.timestamp(row.current_period_start),
        current_period_end_at=messages.timestamp(row.current_period_end),
        trial_end_at=messages.timestamp(row.trial_end),
        cancel_at_period_end=row.cancel_at_period_end,
        has_used_trial=row.has_used_trial,
        past_due_since_at=messages.timestamp(row.past_due_since),
        subscription_id=row.razorpay_subscription_id or "",
        credits=_credits(found),
        usage=_usage(found),
        pending_change=_pending_change(row) if row.has_pending_change else None,
        alerts=[
            pb.TenantAlert(
                kind=pb.TenantAlertKind.Value(f"TENANT_ALERT_KIND_{alert.kind.upper()}"),
                stage=_STAGES[alert.stage],
                message=alert.message,
                since_at=messages.timestamp(alert.since),
                subject=alert.subject,
            )
            for alert in found.alerts
        ],
        entitlements_version=row.entitlements_version,
    )


def _credits(found: current.Current) -> pb.Credits:
    wallet = found.wallet
    if wallet is None:
        return pb.Credits(unavailable=True)
    return pb.Credits(
        available=wallet.available,
        held=wallet.held,
        subscription=wallet.subscription,
        permanent=wallet.permanent,
        next_expiry_at=messages.timestamp(wallet.next_expiry_at),
    )


def _usage(found: current.Current) -> list[pb.LimitUsage]:
    return [
        pb.LimitUsage(
            service_code=service.service,
            limit=messages.limit_of(limit),
            used=found.usage.get(f"{service.service}.{limit.key}"),
        )
        for service in found.services
        for limit in service.limits
    ]


def _pending_change(row: Subscription) -> pb.PendingChange:
    kind = (row.pending_kind or "unspecified").upper()
    return pb.PendingChange(
        kind=pb.ChangeKind.Value(f"CHANGE_KIND_{kind}"),
        plan_code=row.pending_plan_id or "",
        cycle=messages.CYCLES[row.pending_billing_cycle],
        subscription_id=row.pending_razorpay_subscription_id or "",
        since_at=messages.timestamp(row.pending_since),
        # An upgrade waits for its payment, everything else for the end of the period.
        effective_at=(None if row.pending_kind == "upgrade" else messages.timestamp(row.current_period_end)),
    )
