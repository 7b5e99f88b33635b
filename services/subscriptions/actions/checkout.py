"""Checkout: intent first, then the provider, then the answer. A repeat resumes where the last call stopped."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.actions.provider_plans import ensure_provider_plan
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import (
    AlreadySubscribed,
    Conflict,
    PlanNotForSale,
    SubscriptionExists,
    UnknownPlan,
)
from services.subscriptions.rules import fence, tasks
from services.subscriptions.rules.catalog import Cycle, Plan
from services.subscriptions.rules.events import ProviderSubscription
from services.subscriptions.rules.funding import PROVIDER
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.purchases import CURRENCY, TOTAL_COUNT, Intent, first_knowledge
from services.subscriptions.rules.requests import assert_same
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import purchases
from services.subscriptions.store import subscriptions as store
from services.subscriptions.store import tasks as task_store
from shared.clock import Clock
from shared.database import transaction
from shared.ids import new_id

# How long a customer may take to authorise; afterwards the provider lets the subscription expire.
AUTHORISE_WITHIN = timedelta(days=7)
ANOTHER_CALL = "another call with this key is asking the provider: repeat in a moment"


@dataclass(frozen=True)
class Begun:
    """A purchase that the customer can complete."""

    intent: Intent
    subscription_id: str
    replayed: bool


async def checkout(
    engine: AsyncEngine,
    razorpay: Razorpay,
    *,
    tenant_id: str,
    idempotency_key: str,
    plan_code: str,
    cycle: Cycle,
    with_trial: bool,
    clock: Clock,
) -> Begun:
    """Begin or resume the purchase of a plan; the provider is asked for one subscription, whatever gets lost."""
    request = {"plan_code": plan_code, "cycle": cycle, "with_trial": with_trial}
    async with transaction(engine) as db:
        row = await store.lock_subscription(db, tenant_id)
        intent = await purchases.find_intent_by_key(db, tenant_id, idempotency_key)
        if intent is not None:
            assert_same("Checkout", _asked(intent), request)
        plan = await _plan(db, intent.plan_id if intent else plan_code, on_sale=intent is None)
        replayed = intent is not None
        if intent is None:
            _assert_can_buy(row, plan, cycle)
            intent = _new_intent(row, plan, cycle, with_trial, idempotency_key, clock())
            await purchases.insert_intent(db, intent)
        if intent.provider_subscription_id is not None:
            return Begun(intent, intent.provider_subscription_id, replayed=True)
        lease = await purchases.claim_intent(db, intent.id)
        if lease is None:
            raise Conflict(ANOTHER_CALL)
    try:
        made = await _at_provider(engine, razorpay, intent, lease, plan, clock)
    except Conflict:
        raise
    except Exception:
        async with transaction(engine) as db:
            await purchases.release_intent(db, intent.id)
        raise
    return await _finish(engine, intent.id, made, replayed=replayed, now=clock())


def _asked(intent: Intent) -> dict[str, Any]:
    return {
        "plan_code": intent.plan_id,
        "cycle": intent.billing_cycle,
        "with_trial": intent.with_trial,
    }


async def _plan(db: AsyncConnection, plan_code: str, *, on_sale: bool) -> Plan:
    plan = (await catalog_store.read_catalog(db, with_retired=not on_sale)).plans.get(plan_code)
    if plan is None:
        raise UnknownPlan(f"there is no plan {plan_code}: see ListPlans", plan_code=plan_code)
    return plan


def _assert_can_buy(row: Subscription, plan: Plan, cycle: Cycle) -> None:
    if not plan.is_paid:
        raise PlanNotForSale(
            f"{plan.code} costs nothing: cancel the subscription instead", plan_code=plan.code
        )
    if row.razorpay_subscription_id is None:
        return
    if (row.plan_id, row.billing_cycle) == (plan.code, cycle):
        raise AlreadySubscribed(f"the tenant has {plan.code}, {cycle}", plan_code=plan.code, cycle=cycle)
    raise SubscriptionExists(
        f"the tenant has {row.plan_id}: use ChangePlan or SwitchCycle",
        plan_code=row.plan_id,
        subscription_id=row.razorpay_subscription_id,
    )


def _new_intent(
    row: Subscription, plan: Plan, cycle: Cycle, with_trial: bool, key: str, now: datetime
) -> Intent:
    has_trial = with_trial and plan.trial_days > 0 and not row.has_used_trial
    return Intent(
        id=new_id("int"),
        tenant_id=row.tenant_id,
        idempotency_key=key,
        kind="checkout",
        plan_id=plan.code,
        billing_cycle=cycle,
        with_trial=with_trial,
        amount_paise=plan.price_paise(cycle),
        tax_paise=plan.tax_paise(cycle),
        currency=CURRENCY,
        # Whole seconds, as the provider counts.
        first_charge_at=(now + timedelta(days=plan.trial_days)).replace(microsecond=0) if has_trial else None,
        provider=PROVIDER,
        provider_plan_id=None,
        provider_subscription_id=None,
        attempted_at=None,
        created_at=now,
    )


async def _at_provider(
    engine: AsyncEngine, razorpay: Razorpay, intent: Intent, lease: datetime, plan: Plan, clock: Clock
) -> ProviderSubscription:
    """The provider's subscription for this purchase: the one that an earlier attempt made, or a new one."""
    if intent.provider_plan_id is not None and intent.attempted_at is not None:
        found = await razorpay.find_subscription(
            plan_id=intent.provider_plan_id, since=intent.attempted_at, notes=intent.notes
        )
        if found is not None:
            return found
    # The price is the one that the customer was told, whatever the catalogue says by now.
    provider_plan_id = intent.provider_plan_id or await ensure_provider_plan(
        engine, razorpay, plan, intent.billing_cycle, total_paise=intent.total_paise
    )
    async with transaction(engine) as db:
        renewed = await purchases.mark_intent_attempted(
            db,
            intent.id,
            lease,
            provider_plan_id=provider_plan_id,
            attempted_at=intent.attempted_at or clock(),
        )
    if renewed is None:
        raise Conflict(ANOTHER_CALL)
    return await razorpay.create_subscription(
        plan_id=provider_plan_id,
        total_count=TOTAL_COUNT[intent.billing_cycle],
        notes=intent.notes,
        start_at=intent.first_charge_at,
        expire_by=intent.first_charge_at or clock() + AUTHORISE_WITHIN,
    )


async def _finish(
    engine: AsyncEngine, intent_id: str, made: ProviderSubscription, *, replayed: bool, now: datetime
) -> Begun:
    async with transaction(engine) as db:
        intent = await _intent(db, intent_id)
        row = await store.lock_subscription(db, intent.tenant_id)
        intent = await _intent(db, intent_id)
        if intent.provider_subscription_id is not None:  # an event told us before the answer did
            return Begun(intent, intent.provider_subscription_id, replayed=replayed)
        await purchases.finish_intent(db, intent.id, made.id)
        known, _ = fence.merge(first_knowledge(intent, made.id), made, intent.created_at)
        await store.save_known(db, known)
        # Found again and used meanwhile: its events may have come when they named nobody.
        if made.status != "created":
            await task_store.insert_task(db, tasks.fetch_and_apply(known, intent.id), now)
        await _drop_previous(db, row, now)
        pending = replace(
            row,
            pending_plan_id=intent.plan_id,
            pending_billing_cycle=intent.billing_cycle,
            pending_razorpay_subscription_id=made.id,
            pending_kind="upgrade",
            pending_since=intent.created_at,
        )
        await store.save_subscription(db, pending)
        await standing.record_change(
            db,
            row.tenant_id,
            "checkout.begun",
            {},
            {"plan_id": intent.plan_id, "cycle": intent.billing_cycle, "subscription_id": made.id},
            actor_type="service",
            actor_id="product",
            reason=intent.id,
        )
    return Begun(intent, made.id, replayed)


async def _intent(db: AsyncConnection, intent_id: str) -> Intent:
    intent = await purchases.find_intent(db, intent_id)
    if intent is None:
        raise LookupError(f"intent {intent_id} is gone, and intents are never deleted")
    return intent


async def _drop_previous(db: AsyncConnection, row: Subscription, now: datetime) -> None:
    """A purchase that was begun and not paid makes way for the new one."""
    if row.pending_razorpay_subscription_id is None:
        return
    previous = await store.find_known(db, row.pending_razorpay_subscription_id)
    if previous is not None and not previous.ended:
        task = tasks.cancel_subscription(previous, "another purchase was begun")
        await task_store.insert_task(db, task, now)
