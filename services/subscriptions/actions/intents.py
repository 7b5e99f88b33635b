"""Takes a purchase from its intent to the provider and back. A repeat resumes where the last call stopped.

Steps of Checkout, ChangePlan and SwitchCycle; each opens its own short transactions.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.actions.provider_plans import ensure_provider_plan
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import (
    CheckoutClosed,
    Conflict,
    ProviderBusy,
    ProviderNotConfigured,
    ProviderRefused,
    ProviderUnavailable,
    QuoteStale,
    UnknownPlan,
)
from services.subscriptions.rules import fence, purchases, tasks
from services.subscriptions.rules.catalog import Plan
from services.subscriptions.rules.events import ProviderSubscription
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.rules.purchases import TOTAL_COUNT, Intent, first_knowledge
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import purchases as purchase_store
from services.subscriptions.store import subscriptions as store
from services.subscriptions.store import tasks as task_store
from shared.clock import Clock
from shared.database import transaction

# How long a customer may take to authorise; afterwards the provider lets the subscription expire.
AUTHORISE_WITHIN = timedelta(days=7)
# Measured: the provider's lists show a new object minutes later. Until then a lost answer is not asked for again.
LIST_LAG = timedelta(minutes=3)
ANOTHER_CALL = "another call with this key is asking the provider: repeat in a moment"


@dataclass(frozen=True)
class Begun:
    """A purchase that the customer can complete."""

    intent: Intent
    subscription_id: str
    replayed: bool


async def plan_of(db: AsyncConnection, plan_code: str, *, on_sale: bool) -> Plan:
    """A plan of the catalogue."""
    plan = (await catalog_store.read_catalog(db, with_retired=not on_sale)).plans.get(plan_code)
    if plan is None:
        raise UnknownPlan(f"there is no plan {plan_code}: see ListPlans", plan_code=plan_code)
    return plan


async def claim(db: AsyncConnection, intent: Intent) -> datetime:
    """The right to ask the provider for this purchase; one call at a time has it."""
    lease = await purchase_store.claim_intent(db, intent.id)
    if lease is None:
        raise Conflict(ANOTHER_CALL)
    return lease


async def assert_open(db: AsyncConnection, intent: Intent) -> None:
    """Refuse to hand out a purchase that nobody can complete any more."""
    known = await store.find_known(db, intent.provider_subscription_id or "")
    if known is not None and known.ended:
        raise CheckoutClosed(
            f"this checkout's subscription is {known.status}: begin a new one with a new key",
            intent_id=intent.id,
            status=known.status,
        )


async def resume(
    engine: AsyncEngine,
    razorpay: Razorpay,
    intent: Intent,
    lease: datetime,
    plan: Plan,
    *,
    replayed: bool,
    clock: Clock,
    policy: Policy,
) -> Begun:
    """Make the provider's subscription of a claimed intent, or find the one that a lost answer made."""
    try:
        made = await _at_provider(engine, razorpay, intent, lease, plan, clock, policy)
    except Conflict:
        raise
    except Exception as error:
        # Only a definite answer says that nothing was made.
        nothing_made = isinstance(error, ProviderRefused | ProviderBusy | ProviderNotConfigured)
        async with transaction(engine) as db:
            await purchase_store.release_intent(db, intent.id, forget_attempt=nothing_made)
        raise
    return await _finish(engine, intent.id, made, replayed=replayed, now=clock(), policy=policy)


async def _at_provider(
    engine: AsyncEngine,
    razorpay: Razorpay,
    intent: Intent,
    lease: datetime,
    plan: Plan,
    clock: Clock,
    policy: Policy,
) -> ProviderSubscription:
    if intent.provider_plan_id is not None and intent.attempted_at is not None:
        found = await razorpay.find_subscription(
            plan_id=intent.provider_plan_id, since=intent.created_at, notes=intent.notes
        )
        if found is not None:
            return found
        if clock() < intent.attempted_at + LIST_LAG:
            raise ProviderUnavailable(
                "the provider did not say whether it made the subscription, and its lists lag by minutes: "
                f"repeat with the same key after {(intent.attempted_at + LIST_LAG).isoformat(timespec='seconds')}"
            )
    # What a change gives back is counted from its quote: begun days later it would give back what was used.
    if intent.quoted_at is not None and clock() > intent.quoted_at + policy.change_valid:
        raise QuoteStale(
            "the provider could not be asked while the quote was valid: ask for the change anew, with a new key",
            cause="expired",
        )
    # The price is the one that the customer was told, whatever the catalogue says by now.
    provider_plan_id = intent.provider_plan_id or await ensure_provider_plan(
        engine, razorpay, plan, intent.billing_cycle, total_paise=intent.total_paise
    )
    async with transaction(engine) as db:
        renewed = await purchase_store.mark_intent_attempted(
            db, intent.id, lease, provider_plan_id=provider_plan_id, attempted_at=clock()
        )
    if renewed is None:
        raise Conflict(ANOTHER_CALL)
    return await razorpay.create_subscription(
        plan_id=provider_plan_id,
        total_count=TOTAL_COUNT[intent.billing_cycle],
        notes=intent.notes,
        start_at=intent.first_charge_at,
        expire_by=_expires_at(intent, clock(), policy),
    )


def _expires_at(intent: Intent, now: datetime, policy: Policy) -> datetime:
    """Until when the customer may authorise: what was quoted, a day; what was scheduled, until it starts; else a week."""
    if intent.kind in ("downgrade", "cycle_switch") and intent.first_charge_at is not None:
        return intent.first_charge_at
    within = policy.change_valid if intent.quoted_at is not None else AUTHORISE_WITHIN
    return min(intent.first_charge_at or now + within, now + within)


async def _finish(
    engine: AsyncEngine,
    intent_id: str,
    made: ProviderSubscription,
    *,
    replayed: bool,
    now: datetime,
    policy: Policy,
) -> Begun:
    async with transaction(engine) as db:
        intent = await _intent(db, intent_id)
        row = await store.lock_subscription(db, intent.tenant_id)
        intent = await _intent(db, intent_id)
        if intent.provider_subscription_id is not None:  # an event told us before the answer did
            return Begun(intent, intent.provider_subscription_id, replayed=replayed)
        await purchase_store.finish_intent(db, intent.id, made.id)
        known = first_knowledge(intent, made.id)
        if made.status == "created":
            known, _ = fence.merge(known, made, intent.created_at)
        await store.save_known(db, known)
        # Found again and used meanwhile: its events may have come when they named nobody. What it funds is learned with
        # it, so that nothing is taken for funded before.
        if made.status != "created":
            await task_store.insert_task(db, tasks.fetch_and_apply(known, intent.id), now)
        await drop_pending(db, row, now, "another purchase was begun")
        changed = purchases.begun(row, intent, made.id)
        await standing.settle(
            db, row, now, policy, changed=changed, actor_type="service", actor_id="product", reason=intent.id
        )
        await standing.record_change(
            db,
            row.tenant_id,
            f"{intent.kind}.begun",
            {},
            {"plan_id": intent.plan_id, "cycle": intent.billing_cycle, "subscription_id": made.id},
            actor_type="service",
            actor_id="product",
            reason=intent.id,
        )
    return Begun(intent, made.id, replayed)


async def _intent(db: AsyncConnection, intent_id: str) -> Intent:
    intent = await purchase_store.find_intent(db, intent_id)
    if intent is None:
        raise LookupError(f"intent {intent_id} is gone, and intents are never deleted")
    return intent


async def drop_pending(db: AsyncConnection, row: Subscription, now: datetime, why: str) -> None:
    """A purchase that was begun and not paid makes way."""
    if row.pending_razorpay_subscription_id is None:
        return
    previous = await store.find_known(db, row.pending_razorpay_subscription_id)
    if previous is not None and not previous.ended:
        await task_store.insert_task(db, tasks.drop_subscription(previous, why), now)
