"""Checkout: intent first, then the provider, then the answer."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import intents
from services.subscriptions.actions.intents import Begun
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import (
    AlreadySubscribed,
    PlanNotForSale,
    SubscriptionExists,
)
from services.subscriptions.rules.catalog import Cycle, Plan
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.funding import PROVIDER
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.rules.purchases import CURRENCY, Intent
from services.subscriptions.rules.requests import assert_same
from services.subscriptions.store import purchases
from services.subscriptions.store import subscriptions as store
from shared.clock import Clock
from shared.database import transaction
from shared.ids import new_id

# A first charge that is due sooner than this is taken at once: the provider wants it in its future.
LEAST_NOTICE = timedelta(hours=1)


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
    policy: Policy,
) -> Begun:
    """Begin or resume the purchase of a plan; the provider is asked for one subscription, whatever gets lost."""
    request = {"kind": "checkout", "plan_code": plan_code, "cycle": cycle, "with_trial": with_trial}
    async with transaction(engine) as db:
        row = await store.lock_subscription(db, tenant_id)
        intent = await purchases.find_intent_by_key(db, tenant_id, idempotency_key)
        if intent is not None:
            assert_same("Checkout", _asked(intent), request)
        plan = await intents.plan_of(db, intent.plan_id if intent else plan_code, on_sale=intent is None)
        replayed = intent is not None
        if intent is None:
            live = await _live(db, row)
            _assert_can_buy(row, live, plan, cycle)
            intent = _new_intent(row, live, plan, cycle, with_trial, idempotency_key, clock())
            await purchases.insert_intent(db, intent)
        if intent.provider_subscription_id is not None:
            await intents.assert_open(db, intent)
            return Begun(intent, intent.provider_subscription_id, replayed=True)
        lease = await intents.claim(db, intent)
    return await intents.resume(
        engine, razorpay, intent, lease, plan, replayed=replayed, clock=clock, policy=policy
    )


async def _live(db: AsyncConnection, row: Subscription) -> KnownSubscription | None:
    if row.razorpay_subscription_id is None:
        return None
    return await store.find_known(db, row.razorpay_subscription_id)


def _asked(intent: Intent) -> dict[str, Any]:
    return {
        "kind": intent.kind,
        "plan_code": intent.plan_id,
        "cycle": intent.billing_cycle,
        "with_trial": intent.with_trial,
    }


def _assert_can_buy(row: Subscription, live: KnownSubscription | None, plan: Plan, cycle: Cycle) -> None:
    if not plan.is_paid:
        raise PlanNotForSale(
            f"{plan.code} costs nothing: cancel the subscription instead", plan_code=plan.code
        )
    # What runs out, or does not get paid, may be followed or replaced by a new purchase.
    if live is None or live.ended or live.end_requested_at is not None or row.status == "past_due":
        return
    if (row.plan_id, row.billing_cycle) == (plan.code, cycle):
        raise AlreadySubscribed(f"the tenant has {plan.code}, {cycle}", plan_code=plan.code, cycle=cycle)
    raise SubscriptionExists(
        f"the tenant has {row.plan_id}: use ChangePlan or SwitchCycle",
        plan_code=row.plan_id,
        subscription_id=live.id,
    )


def _new_intent(
    row: Subscription,
    live: KnownSubscription | None,
    plan: Plan,
    cycle: Cycle,
    with_trial: bool,
    key: str,
    now: datetime,
) -> Intent:
    first_charge_at = replaces = None
    if live is not None and row.status != "past_due" and row.ends_at and row.ends_at > now + LEAST_NOTICE:
        first_charge_at, replaces = row.ends_at, live.id  # what is paid runs out first
    elif with_trial and plan.trial_days > 0 and not row.has_used_trial:
        # Whole seconds, as the provider counts.
        first_charge_at = (now + timedelta(days=plan.trial_days)).replace(microsecond=0)
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
        first_charge_at=first_charge_at,
        provider=PROVIDER,
        provider_plan_id=None,
        provider_subscription_id=None,
        attempted_at=None,
        created_at=now,
        replaces_subscription_id=replaces,
    )
