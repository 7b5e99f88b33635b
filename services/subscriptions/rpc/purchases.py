"""SubscriptionsService: what is bought with money."""

from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.subscriptions.actions import checkout, credits, verify
from services.subscriptions.actions.intents import Begun
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.amounts import format_inr

_VERIFY = {
    "verified": pb.VERIFY_STATUS_VERIFIED,
    "pending": pb.VERIFY_STATUS_PENDING,
    "failed": pb.VERIFY_STATUS_FAILED,
}


class Purchases(Desk):
    """Plans, credit packs, and the proof that they are paid."""

    async def Checkout(self, request: pb.CheckoutRequest, context: Context) -> pb.CheckoutResponse:
        begun = await checkout.checkout(
            self._room.engine,
            self._room.razorpay,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            plan_code=request.plan_code,
            cycle=messages.cycle_of(request.cycle),
            with_trial=request.with_trial,
            clock=self._room.clock,
            policy=self._room.policy,
        )
        await self._room.reconciler.attempt(request.tenant_id)
        return pb.CheckoutResponse(
            checkout=subscription_checkout(begun, self._room.razorpay.key_id), replayed=begun.replayed
        )

    async def VerifyPayment(
        self, request: pb.VerifyPaymentRequest, context: Context
    ) -> pb.VerifyPaymentResponse:
        verified = await verify.verify_payment(
            self._room.engine,
            self._room.razorpay,
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
            mode=self._room.mode,
            clock=self._room.clock,
            policy=self._room.policy,
            limiter=self._room.limiter,
        )
        await self._room.reconciler.attempt(request.tenant_id)
        return pb.VerifyPaymentResponse(status=_VERIFY[verified.status], reason=verified.reason)

    async def BuyCredits(self, request: pb.BuyCreditsRequest, context: Context) -> pb.BuyCreditsResponse:
        ordered = await credits.buy_credits(
            self._room.engine,
            self._room.razorpay,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            pack_code=request.pack_code,
        )
        purchase = ordered.purchase
        return pb.BuyCreditsResponse(
            provider=purchase.provider,
            order_id=ordered.order_id,
            key_id=self._room.razorpay.key_id,
            total_paise=purchase.amount_paise,
            currency=purchase.currency,
            total_display=format_inr(purchase.amount_paise),
            purchase_id=purchase.id,
            credits=purchase.credits,
            replayed=ordered.replayed,
        )


def subscription_checkout(begun: Begun, key_id: str) -> pb.SubscriptionCheckout:
    """What a browser needs to open the provider's checkout."""
    intent = begun.intent
    return pb.SubscriptionCheckout(
        provider=intent.provider,
        subscription_id=begun.subscription_id,
        key_id=key_id,
        amount_paise=intent.amount_paise,
        tax_paise=intent.tax_paise,
        total_paise=intent.total_paise,
        total_display=format_inr(intent.total_paise),
        currency=intent.currency,
        intent_id=intent.id,
        first_charge_at=messages.timestamp(intent.first_charge_at),
    )
