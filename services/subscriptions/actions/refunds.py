"""RefundPayment and PromotePendingChange: what operators decide about money and pending purchases."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.errors import (
    NoPendingChange,
    RefundExceedsPayment,
    UnknownPayment,
    WrongStatus,
)
from services.subscriptions.rules import claims, tasks
from services.subscriptions.rules.catalog import Cycle
from services.subscriptions.rules.claims import Claim
from services.subscriptions.rules.funding import Refund
from services.subscriptions.store import keys
from services.subscriptions.store import money as store
from services.subscriptions.store import subscriptions as subscription_store
from services.subscriptions.store import tasks as task_store
from shared import logs
from shared.database import transaction
from shared.ids import new_id
from shared.ops import store as ops

REFUND = "RefundPayment"
PROMOTE = "PromotePendingChange"


@dataclass(frozen=True)
class Refunded:
    """A refund as it stands, and the credits that it takes as far as they are not spent."""

    refund: Refund
    credits_to_revoke: int
    replayed: bool


async def refund_payment(
    engine: AsyncEngine,
    *,
    tenant_id: str,
    idempotency_key: str,
    payment_id: str,
    amount_paise: int | None,
    actor: str,
    reason: str,
    now: datetime,
) -> Refunded:
    """Owe the customer money, once per key; the provider is asked by a task that knows its own idempotency key."""
    key: dict[str, Any] = {
        "tenant_id": tenant_id,
        "method": REFUND,
        "key": idempotency_key,
        "request": {
            "payment_id": payment_id,
            "amount_paise": amount_paise,
            "actor": actor,
            "reason": reason,
        },
    }
    async with transaction(engine) as db:
        await subscription_store.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(db, **key)
        if answer is not None:
            found = await store.get_refund(db, answer["refund_id"])
            return Refunded(found, answer["credits_to_revoke"], replayed=True)
        await store.lock_payment(db, payment_id)
        payment = await store.find_payment(db, payment_id)
        if payment is None or payment.tenant_id != tenant_id:
            raise UnknownPayment(f"the tenant has no payment {payment_id}", payment_id=payment_id)
        given_back = await store.given_back_paise(db, payment.id)
        refund = await _new_refund(db, payment, amount_paise, given_back)
        credits = await _credits(db, payment, refund)
        await store.insert_refund(
            db, refund, tenant_id=tenant_id, reason=reason, actor=actor, idempotency_key=idempotency_key
        )
        await task_store.insert_task(db, tasks.refund_payment(tenant_id, refund, notes={}), now)
        await _record_refund(db, tenant_id, refund, given_back, actor=actor, reason=reason)
        told = {"refund_id": refund.id, "credits_to_revoke": credits}
        await keys.insert_answer(db, **key, answer=told)
    return Refunded(refund, credits, replayed=False)


async def _record_refund(
    db: AsyncConnection, tenant_id: str, refund: Refund, given_back: int, *, actor: str, reason: str
) -> None:
    told = {name: value for name, value in asdict(refund).items() if value is not None}
    await ops.record_audit(
        db,
        room="subscriptions",
        action="payment.refunded",
        actor_type="operator",
        actor_id=actor,
        tenant_id=tenant_id,
        resource_type="payment",
        resource_id=refund.payment_id,
        before={"given_back_paise": given_back},
        after={"given_back_paise": given_back + refund.amount_paise, "refund": told},
        reason=reason,
        request_id=logs.request_id.get(),
    )


async def _new_refund(
    db: AsyncConnection, payment: store.Captured, amount_paise: int | None, given_back: int
) -> Refund:
    # What the bank may take as well must not go back twice.
    disputed = await store.disputed_paise(db, payment.id)
    left = max(0, payment.amount_paise - given_back - disputed)
    amount = left if amount_paise is None else amount_paise
    if amount > left or amount < claims.SMALLEST_REFUND_PAISE:
        about = f" ({disputed} are disputed: wait for the bank's decision)" if disputed else ""
        raise RefundExceedsPayment(
            f"{left} paise are left of this payment{about}, and the provider refunds no less than ₹1",
            captured_paise=payment.amount_paise,
            refunded_paise=given_back,
        )
    return Refund(new_id("rfd"), payment.id, None, "refund", amount, payment.currency, "pending")


async def _credits(db: AsyncConnection, payment: store.Captured, refund: Refund) -> int:
    """What this refund will take once it is processed, after those that are under way."""
    granted = await store.list_granted(db, payment.id)
    taken = await store.list_revocations(db, payment.tenant_id, [grant.reference_id for grant in granted])
    decided = {each.cause_id for each in taken}
    before = [
        Claim("refund", each.provider_refund_id or each.id, each.amount_paise)
        for each in await store.list_refunds(db, payment.id)
        if each.kind == "refund" and each.status != "failed"
    ]
    lost = await store.list_lost(db, payment.id)
    gone = [claim for claim in [*before, *lost] if claim.id in decided]
    coming = [claim for claim in [*before, *lost] if claim.id not in decided]
    new = claims.revocations(
        payment.amount_paise,
        granted,
        [*gone, *coming, Claim("refund", refund.id, refund.amount_paise)],
        taken,
    )
    return sum(each.credits for each in new if each.cause_id == refund.id)


async def get_refund(engine: AsyncEngine, refund_id: str) -> Refund:
    """A refund as it stands."""
    async with transaction(engine) as db:
        return await store.get_refund(db, refund_id)


@dataclass(frozen=True)
class Pending:
    """The provider's subscription that a pending change waits for, and how its tenant stands."""

    subscription_id: str
    standing: Mapping[str, Any]
    # An earlier call promoted it.
    replayed: bool


async def find_pending(engine: AsyncEngine, *, tenant_id: str, idempotency_key: str) -> Pending:
    """What a tenant's pending change waits for."""
    async with transaction(engine) as db:
        row = await subscription_store.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(
            db, tenant_id=tenant_id, method=PROMOTE, key=idempotency_key, request={}
        )
        if answer is not None:
            return Pending(str(answer["subscription_id"]), {}, replayed=True)
    if row.pending_razorpay_subscription_id is None:
        raise NoPendingChange("there is no pending purchase to promote")
    standing = {"plan_id": row.plan_id, "subscription_id": row.razorpay_subscription_id}
    return Pending(row.pending_razorpay_subscription_id, standing, replayed=False)


async def record_promotion(
    engine: AsyncEngine,
    *,
    tenant_id: str,
    idempotency_key: str,
    pending: Pending,
    actor: str,
    reason: str,
) -> tuple[str, Cycle | None]:
    """After the provider's word was taken: the plan and cycle now, if the pending purchase is the live one."""
    async with transaction(engine) as db:
        row = await subscription_store.lock_subscription(db, tenant_id)
        if row.razorpay_subscription_id != pending.subscription_id:
            known = await subscription_store.find_known(db, pending.subscription_id)
            raise WrongStatus(
                "the provider says that it is not paid: the customer has to complete the checkout",
                status=known.status if known else "unknown",
                allowed="active",
            )
        key: dict[str, Any] = {
            "tenant_id": tenant_id,
            "method": PROMOTE,
            "key": idempotency_key,
            "request": {},
        }
        if await keys.find_answer(db, **key) is None:
            await standing.record_change(
                db,
                tenant_id,
                "change.promoted",
                pending.standing,
                {"plan_id": row.plan_id, "subscription_id": pending.subscription_id},
                actor_type="operator",
                actor_id=actor,
                reason=reason,
            )
            await keys.insert_answer(db, **key, answer={"subscription_id": pending.subscription_id})
        return row.plan_id, row.billing_cycle
