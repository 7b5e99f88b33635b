"""Changes of plan and cycle: quoted and executed by the same rule, undone as long as the provider was not told."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import intents, standing
from services.subscriptions.actions.intents import Begun
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import LedgerUnavailable, NoPendingChange, UnknownPlan, WrongStatus
from services.subscriptions.rules import changes as rules
from services.subscriptions.rules.catalog import Catalog, Cycle, Plan
from services.subscriptions.rules.changes import Quote, Situation
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.funding import PROVIDER
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.rules.purchases import CURRENCY, Intent
from services.subscriptions.rules.requests import assert_same
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import keys, money, purchases
from services.subscriptions.store import subscriptions as store
from shared.clock import Clock
from shared.database import transaction
from shared.errors import BillingError, NotFound
from shared.ids import new_id

CANCEL_PENDING = "CancelPendingChange"


@dataclass(frozen=True)
class Change:
    """What is asked for; without a plan the tenant keeps its own."""

    method: str
    tenant_id: str
    idempotency_key: str
    plan_code: str | None
    cycle: Cycle | None
    quote_token: str

    @property
    def key(self) -> dict[str, Any]:
        """Where its first answer is kept, and what a repeat must ask for as well."""
        return {
            "tenant_id": self.tenant_id,
            "method": self.method,
            "key": self.idempotency_key,
            "request": {"plan_code": self.plan_code, "cycle": self.cycle, "quote_token": self.quote_token},
        }


@dataclass(frozen=True)
class Changed:
    """What became of it; without a purchase nothing is to be paid or authorised."""

    row: Subscription
    quote: Quote
    begun: Begun | None
    replayed: bool


async def preview(
    engine: AsyncEngine,
    ledger: Ledger,
    *,
    tenant_id: str,
    plan_code: str | None,
    cycle: Cycle | None,
    now: datetime,
    policy: Policy,
) -> Quote:
    """What a change would cost and do; the execution does exactly this, or refuses."""
    async with transaction(engine) as db:
        row = await store.find_subscription(db, tenant_id)
        if row is None:
            row = await store.lock_subscription(db, tenant_id)  # refuses
        situation = await _situation(db, row)
        plan = _plan(situation.catalog, plan_code or row.plan_id)
    quote = rules.quote(situation, plan, cycle, at=now, policy=policy)
    if not quote.may_be_spent:
        return quote
    left = await _left(ledger, situation)
    return rules.quote(situation, plan, cycle, at=now, policy=policy, left=left)


async def _left(ledger: Ledger, situation: Situation) -> int:
    references = [grant.reference_id for grant, _ in situation.grants]
    try:
        return await ledger.left_of(situation.row.tenant_id, references)
    except NotFound:
        return 0
    except BillingError as error:
        raise LedgerUnavailable(
            "the ledger did not say what of the old period's credits is spent: ask again"
        ) from error


async def _left_if_it_matters(
    engine: AsyncEngine, ledger: Ledger, asked: Change, now: datetime, policy: Policy
) -> int | None:
    """Asked before the transaction that decides; whatever is refused here is refused, or known already, there."""
    try:
        async with transaction(engine) as db:
            row = await store.lock_subscription(db, asked.tenant_id)
            situation = await _situation(db, row)
            plan = _plan(situation.catalog, asked.plan_code or row.plan_id)
        quote = rules.quote(situation, plan, asked.cycle, at=now, policy=policy)
    except BillingError:
        return None
    return await _left(ledger, situation) if quote.may_be_spent else None


async def change(
    engine: AsyncEngine,
    ledger: Ledger,
    razorpay: Razorpay,
    asked: Change,
    *,
    clock: Clock,
    policy: Policy,
) -> Changed:
    """Do what was quoted: the intent is committed first, then the provider is asked for what must be authorised."""
    left = await _left_if_it_matters(engine, ledger, asked, clock(), policy)
    prepared = await _prepare(engine, razorpay, asked, left, clock, policy)
    if isinstance(prepared, Changed):
        return prepared
    begun = await intents.resume(
        engine,
        razorpay,
        prepared.intent,
        prepared.lease,
        prepared.plan,
        replayed=prepared.replayed,
        clock=clock,
        policy=policy,
    )
    async with transaction(engine) as db:
        row = await store.lock_subscription(db, asked.tenant_id)
    return Changed(row, prepared.quote, begun, prepared.replayed)


@dataclass(frozen=True)
class _Prepared:
    """A claimed intent: the provider is to be asked for it."""

    quote: Quote
    intent: Intent
    lease: datetime
    plan: Plan
    replayed: bool


async def _prepare(
    engine: AsyncEngine, razorpay: Razorpay, asked: Change, left: int | None, clock: Clock, policy: Policy
) -> Changed | _Prepared:
    async with transaction(engine) as db:
        row = await store.lock_subscription(db, asked.tenant_id)
        answer = await keys.find_answer(db, **asked.key)
        if answer is not None:
            return await _resumed(db, row, answer)
        quote = await _decide(db, row, asked, left, razorpay.key_secret, clock(), policy)
        intent = None
        if quote.kind == "cancellation":
            row = await schedule_end(db, row, clock(), policy, reason="the product asked for free")
        else:
            plan = await intents.plan_of(db, quote.plan_id, on_sale=True)
            intent = await _insert_intent(db, asked, quote, plan, clock())
        told = {"quote": quote.as_json(), "intent_id": intent.id if intent else ""}
        await keys.insert_answer(db, **asked.key, answer=told)
        if intent is None:
            return Changed(row, quote, None, replayed=False)
        return _Prepared(quote, intent, await intents.claim(db, intent), plan, replayed=False)


async def _resumed(db: AsyncConnection, row: Subscription, answer: dict[str, Any]) -> Changed | _Prepared:
    quote = Quote.from_json(answer["quote"])
    intent = await purchases.find_intent(db, answer["intent_id"]) if answer["intent_id"] else None
    if intent is None:
        return Changed(row, quote, None, replayed=True)
    if intent.provider_subscription_id is not None:
        await intents.assert_open(db, intent)
        return Changed(row, quote, Begun(intent, intent.provider_subscription_id, True), replayed=True)
    plan = await intents.plan_of(db, intent.plan_id, on_sale=False)
    return _Prepared(quote, intent, await intents.claim(db, intent), plan, replayed=True)


async def _decide(
    db: AsyncConnection,
    row: Subscription,
    asked: Change,
    left: int | None,
    secret: str,
    now: datetime,
    policy: Policy,
) -> Quote:
    situation = await _situation(db, row)
    plan = _plan(situation.catalog, asked.plan_code or row.plan_id)
    at = rules.quoted_at(asked.quote_token, now, policy) if asked.quote_token else now
    quote = rules.quote(situation, plan, asked.cycle, at=at, policy=policy, left=left)
    if asked.quote_token:
        quote.assert_is(asked.quote_token, secret)
    return quote


async def _situation(db: AsyncConnection, row: Subscription) -> Situation:
    catalog = await catalog_store.read_catalog(db)
    live = await store.find_known(db, row.razorpay_subscription_id or "")
    having = await catalog_store.read_catalog(db, with_retired=True)
    situation = Situation(row, live, catalog, having.plans.get(row.plan_id))
    payments = await money.list_payments(db, [live.id]) if live else []
    if not payments:
        return situation
    granted = await money.list_granted(db, payments[-1].id)
    taken = await money.list_revocations(db, row.tenant_id, [grant.reference_id for grant in granted])
    return replace(
        situation,
        bought=money.bought(payments[-1], granted),
        paid=await money.find_paid(db, payments[-1]),
        grants=[
            (grant, sum(t.credits for t in taken if t.grant_reference_id == grant.reference_id))
            for grant in granted
        ],
    )


def _plan(catalog: Catalog, plan_code: str) -> Plan:
    plan = catalog.plans.get(plan_code)
    if plan is None:
        raise UnknownPlan(f"there is no plan {plan_code}: see ListPlans", plan_code=plan_code)
    return plan


async def _insert_intent(
    db: AsyncConnection, asked: Change, quote: Quote, plan: Plan, now: datetime
) -> Intent:
    used = await purchases.find_intent_by_key(db, asked.tenant_id, asked.idempotency_key)
    if used is not None:
        assert_same(asked.method, {"kind": used.kind}, {"kind": asked.method})
    cycle: Cycle = quote.billing_cycle or "monthly"
    intent = Intent(
        id=new_id("int"),
        tenant_id=asked.tenant_id,
        idempotency_key=asked.idempotency_key,
        kind=quote.kind,
        plan_id=plan.code,
        billing_cycle=cycle,
        with_trial=False,
        amount_paise=plan.price_paise(cycle),
        tax_paise=plan.tax_paise(cycle),
        currency=CURRENCY,
        first_charge_at=quote.effective_at,
        provider=PROVIDER,
        provider_plan_id=None,
        provider_subscription_id=None,
        attempted_at=None,
        created_at=now,
        replaces_subscription_id=quote.replaces_subscription_id,
        quoted_at=quote.quoted_at,
        quoted_payment_id=quote.payment_id,
    )
    await purchases.insert_intent(db, intent)
    return intent


async def schedule_end(
    db: AsyncConnection, row: Subscription, now: datetime, policy: Policy, *, reason: str
) -> Subscription:
    """Step: let what is paid run out; the provider is told when its next debit comes near."""
    return await standing.settle(
        db,
        row,
        now,
        policy,
        changed=row.ending(now),
        actor_type="service",
        actor_id="product",
        reason=reason,
    )


async def cancel_pending(
    engine: AsyncEngine, *, tenant_id: str, idempotency_key: str, now: datetime, policy: Policy
) -> tuple[Subscription, bool]:
    """Undo what has not happened yet; answers the row as it was before, and whether an earlier call did it."""
    key: dict[str, Any] = {
        "tenant_id": tenant_id,
        "method": CANCEL_PENDING,
        "key": idempotency_key,
        "request": {},
    }
    async with transaction(engine) as db:
        row = await store.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(db, **key)
        if answer is not None:
            return Subscription.from_json(answer["row"]), True
        if not row.has_pending_change:
            raise NoPendingChange("there is no pending change")
        live = await store.find_known(db, row.razorpay_subscription_id or "")
        _assert_can_be_undone(row, live)
        await intents.drop_pending(db, row, now, "the change was cancelled")
        undone = row.without_pending()
        if live is not None and not live.ended:
            undone = replace(undone, cancel_at_period_end=False)
        await standing.settle(
            db,
            row,
            now,
            policy,
            changed=undone,
            actor_type="service",
            actor_id="product",
            reason="the change was cancelled",
        )
        await keys.insert_answer(db, **key, answer={"row": row.as_json()})
    return row, False


def _assert_can_be_undone(row: Subscription, live: KnownSubscription | None) -> None:
    """What the provider was told cannot be taken back there."""
    if row.cancel_at_period_end and live is not None and live.end_requested_at is not None:
        raise WrongStatus(
            "the provider was told to end the subscription and knows no undo: use Checkout for what follows it",
            status="ending",
            allowed="until the provider is told, two days before the end",
        )
