"""VerifyPayment: what the browser brings back is proven, looked up, and applied as the webhook would."""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions.payment_events import Applied, apply_event, count_charge
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import PaymentMismatch, SignatureMismatch, UnknownCheckout
from services.subscriptions.rules import signatures
from services.subscriptions.rules.events import PaymentEvent, ProviderPayment, look
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import keys, purchases
from services.subscriptions.store import subscriptions as subscription_store
from shared.clock import Clock
from shared.database import transaction
from shared.ops import store as ops
from shared.ops.limits import Limiter, per_quarter_hour

METHOD = "VerifyPayment"
_GOOD = frozenset(
    {
        "granted",
        "already_funded",
        "drips_monthly",
        "trial_began",
        "subscription_updated",
        "nothing_new",
        "older_snapshot",
    }
)


@dataclass(frozen=True)
class Claim:
    """What the browser says; which subscription or order it is about comes from our own rows."""

    tenant_id: str
    intent_id: str
    purchase_id: str
    payment_id: str
    signature: str
    # Who says it, for the record of a forgery; empty when the product does not know.
    remote_ip: str = ""
    user_agent: str = ""


@dataclass(frozen=True)
class Verified:
    """Whether the money is there."""

    status: Literal["verified", "pending", "failed"]
    reason: str


async def verify_payment(
    engine: AsyncEngine,
    razorpay: Razorpay,
    claim: Claim,
    *,
    idempotency_key: str,
    mode: str,
    clock: Clock,
    policy: Policy,
    limiter: Limiter,
) -> Verified:
    """Apply a payment that the customer just made; the webhook and this are one effect, whichever comes first.

    Limited for each tenant, and more so where signatures do not hold; one that holds is not refused for those that did
    not as long as there are calls left.
    """
    request = {name: getattr(claim, name) for name in ("intent_id", "purchase_id", "payment_id")}
    async with transaction(engine) as db:
        answer = await keys.find_answer(
            db, tenant_id=claim.tenant_id, method=METHOD, key=idempotency_key, request=request
        )
        if answer is not None:
            return Verified(answer["status"], answer["reason"])
    await limiter.assert_allowed(
        f"verify:{claim.tenant_id}",
        per_quarter_hour(policy.verify_calls),
        "calls of VerifyPayment for one tenant",
    )
    async with transaction(engine) as db:
        subscription_id, order_id = await _ours(db, claim)
    if not _signed(razorpay, claim, subscription_id=subscription_id, order_id=order_id):
        await _record_failure(engine, claim)
        await limiter.assert_allowed(
            f"verify_failed:{claim.tenant_id}",
            per_quarter_hour(policy.verify_failures),
            "checkout signatures of one tenant that do not belong to their payment",
        )
        raise SignatureMismatch("the checkout signature does not belong to this payment")
    payment = await razorpay.fetch_payment(claim.payment_id)
    if order_id and payment.order_id != order_id:
        raise PaymentMismatch(
            "this payment is not one of this checkout", payment_id=claim.payment_id, field="order_id"
        )
    # Without an invoice it only set up a mandate, as at the start of a trial: no money to wait for.
    mandate_only = bool(subscription_id) and not payment.invoice_id
    if payment.status == "failed":
        return Verified("failed", "payment_failed")
    if not payment.captured and not mandate_only:
        return Verified("pending", "not_captured")
    event = look("payment.captured", mode, clock(), payment=payment)
    if subscription_id:
        event = await _look_at_subscription(razorpay, subscription_id, payment, mode, clock)
    async with transaction(engine) as db:
        applied = await apply_event(db, event, idempotency_key="", mode=mode, now=clock(), policy=policy)
        verified = await _remember(db, claim, request, idempotency_key, applied)
    count_charge(applied)
    return verified


async def _look_at_subscription(
    razorpay: Razorpay, subscription_id: str, payment: ProviderPayment, mode: str, clock: Clock
) -> PaymentEvent:
    """The signature has bound the payment to the subscription; its invoice, when listed, tells the period."""
    if not payment.invoice_id:
        snapshot = await razorpay.fetch_subscription(subscription_id)
        return look("subscription.fetched", mode, clock(), subscription=snapshot)
    invoices = await razorpay.list_invoices(subscription_id)
    invoice = next((each for each in invoices if each.id == payment.invoice_id), None)
    snapshot = await razorpay.fetch_subscription(subscription_id)
    return look(
        "subscription.charged", mode, clock(), subscription=snapshot, payment=payment, invoice=invoice
    )


async def _remember(
    db: AsyncConnection, claim: Claim, request: dict[str, Any], key: str, applied: Applied
) -> Verified:
    verified = Verified("verified" if applied.reason in _GOOD else "failed", applied.reason)
    # Another call with this key may have answered since we looked; its answer is the same.
    answer = await keys.find_answer(db, tenant_id=claim.tenant_id, method=METHOD, key=key, request=request)
    if answer is None:
        await keys.insert_answer(
            db,
            tenant_id=claim.tenant_id,
            method=METHOD,
            key=key,
            request=request,
            answer={"status": verified.status, "reason": verified.reason},
        )
    return verified


async def _ours(db: AsyncConnection, claim: Claim) -> tuple[str, str]:
    """(subscription id, order id): one of them, as we stored it for this tenant."""
    await subscription_store.lock_subscription(db, claim.tenant_id)
    if claim.intent_id:
        intent = await purchases.find_intent(db, claim.intent_id)
        if intent is None or intent.tenant_id != claim.tenant_id or not intent.provider_subscription_id:
            raise UnknownCheckout(
                "the tenant has no such checkout: pass the intent_id of its Checkout or ChangePlan",
                intent_id=claim.intent_id,
            )
        return intent.provider_subscription_id, ""
    purchase = await purchases.find_purchase(db, claim.purchase_id)
    if purchase is None or purchase.tenant_id != claim.tenant_id or not purchase.provider_order_id:
        raise UnknownCheckout(
            "the tenant has no such purchase: pass the purchase_id of its BuyCredits",
            purchase_id=claim.purchase_id,
        )
    return "", purchase.provider_order_id


def _signed(razorpay: Razorpay, claim: Claim, *, subscription_id: str, order_id: str) -> bool:
    if order_id:
        expected = signatures.order_signature(razorpay.key_secret, order_id, claim.payment_id)
    else:
        expected = signatures.subscription_signature(razorpay.key_secret, claim.payment_id, subscription_id)
    return razorpay.configured and signatures.matches(claim.signature, expected)


async def _record_failure(engine: AsyncEngine, claim: Claim) -> None:
    async with transaction(engine) as db:
        await ops.record_signature_failure(
            db,
            room="subscriptions",
            endpoint="/payment/verify",
            tenant_id=claim.tenant_id,
            remote_ip=claim.remote_ip or None,
            user_agent=claim.user_agent or None,
            payload_id=claim.payment_id,
        )
