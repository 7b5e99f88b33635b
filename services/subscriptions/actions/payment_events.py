"""ApplyPaymentEvent: a provider's word becomes state, credits owed and entitlements, in one transaction."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions import metrics
from services.subscriptions.actions import claims, standing
from services.subscriptions.actions.due_credits import grant_months
from services.subscriptions.actions.invoices import issue_tax_invoice
from services.subscriptions.errors import Conflict, IdempotencyKeyReused
from services.subscriptions.rules import funding, tasks
from services.subscriptions.rules import purchases as purchase_rules
from services.subscriptions.rules.events import PaymentEvent
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.funding import Decision, Refund, Situation
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.rules.purchases import (
    Intent,
    PackPurchase,
    first_knowledge,
    was_begun_by,
)
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import events as store
from services.subscriptions.store import money, purchases
from services.subscriptions.store import subscriptions as subscription_store
from services.subscriptions.store import tasks as task_store
from shared.database import lost_race, transaction
from shared.ids import new_id


@dataclass(frozen=True)
class Applied:
    """What became of an event."""

    outcome: str
    reason: str
    tenant_id: str | None
    # Something may have been written that is owed elsewhere.
    owes: bool = False
    # What was told, for the first time, of money that was asked for.
    charge: Literal["succeeded", "failed"] | None = None


@dataclass(frozen=True)
class _Subject:
    """What an event is about, as far as we can tell before any lock."""

    tenant_id: str | None = None
    # Set when the event is the first to tell us what the provider made of this purchase.
    intent: Intent | None = None
    known: KnownSubscription | None = None
    purchase: PackPurchase | None = None


async def apply_payment_event(
    engine: AsyncEngine,
    event: PaymentEvent,
    *,
    idempotency_key: str,
    mode: str,
    now: datetime,
    policy: Policy,
) -> Applied:
    """Apply one event once; two at the same time are one."""
    heard = replace(event, decided_at=now)

    async def attempt() -> Applied:
        async with transaction(engine) as db:
            return await apply_event(
                db, heard, idempotency_key=idempotency_key, mode=mode, now=now, policy=policy
            )

    try:
        applied = await attempt()
    except Conflict:
        applied = await attempt()  # now it is known whose it is
    except IntegrityError as error:
        if not any(lost_race(error, constraint) for constraint in store.DECIDED_ONCE):
            raise
        applied = await attempt()
    count_charge(applied)
    return applied


def count_charge(applied: Applied) -> None:
    """Once it is committed: what was rolled back did not happen."""
    if applied.charge is not None:
        metrics.payment_told(applied.charge)


async def apply_event(
    db: AsyncConnection,
    event: PaymentEvent,
    *,
    idempotency_key: str,
    mode: str,
    now: datetime,
    policy: Policy,
) -> Applied:
    """Decide an event under its tenant's lock, and write what follows; every delivery leaves a row.

    What was ignored before is decided anew: its cause may be mended since, and every effect is keyed by its fact.
    What we looked up ourselves leaves no row: it would hide that the webhooks fell silent.
    """
    subject, row = await _lock(db, event)
    decided = None if event.looked_up else await store.find_decided(db, event, idempotency_key)
    if decided is not None:
        if decided.body_sha256 != event.body_sha256:
            raise IdempotencyKeyReused(
                "this idempotency key was used for another body", field="event.body_sha256"
            )
        if decided.outcome != "ignored":
            return Applied("duplicate", decided.reason, decided.tenant_id)
    decision = funding.decide(event, await _situation(db, event, subject, row, mode))
    if decided is not None and _stands(decided, decision, subject):
        return Applied("ignored", decided.reason, decided.tenant_id)
    await _write(db, event, decision, subject, now)
    if decision.payment is not None and decision.payment.drip_credits is not None:
        await grant_months(db, decision.payment.id, now, policy)
    if row is not None and (decision.subscription is not None or decision.payment is not None):
        slipped = funding.slipped_in(row, decision)
        if slipped is not None:
            await claims.open_finding(db, slipped, row.tenant_id)
        begun = None
        if subject.intent is not None and decision.subscription is not None:
            begun = purchase_rules.begun(row, subject.intent, decision.subscription.id)
        await standing.settle(
            db,
            row,
            now,
            policy,
            changed=begun,
            actor_type="provider",
            actor_id=event.provider,
            reason=f"{event.event_type} {event.event_id}".strip(),
        )
    await _write_documents(db, event, decision, now, policy)
    if decided is not None:
        await store.update_decided(db, decided, decision, tenant_id=subject.tenant_id, now=now)
    elif not event.looked_up:
        await store.insert_decided(
            db,
            event,
            decision,
            idempotency_key=idempotency_key,
            tenant_id=subject.tenant_id,
            processed_at=now,
        )
    owes = decision.outcome == "applied" or decision.fetch
    return Applied(
        decision.outcome, decision.reason, subject.tenant_id, owes, _charge(event, decision, again=decided)
    )


def _charge(
    event: PaymentEvent, decision: Decision, again: store.Decided | None
) -> Literal["succeeded", "failed"] | None:
    if decision.payment is not None:
        return "succeeded"
    failed = event.event_type == funding.PAYMENT_FAILED and decision.reason == "not_a_funding_fact"
    return "failed" if failed and again is None else None


def _stands(decided: store.Decided, decision: Decision, subject: _Subject) -> bool:
    if decision.outcome == "applied" or decided.tenant_id != subject.tenant_id:
        return False
    # Not written again: a person may have closed the finding that it opened then. And of a refund or dispute that still
    # waits for its payment there is nothing new to tell.
    waits = subject.tenant_id is None and decision.reason in ("nothing_new", "older_snapshot")
    return waits or decision.reason == decided.reason


async def _lock(db: AsyncConnection, event: PaymentEvent) -> tuple[_Subject, Subscription | None]:
    """Hold the tenant that an event is about, then the payment: always in this order."""
    subject, row = await _subject(db, event), None
    if subject.tenant_id is not None:
        row = await subscription_store.lock_subscription(db, subject.tenant_id)
    for payment_id in _payments_of(event):
        await money.lock_payment(db, payment_id)
    # Whoever held a lock before us may have moved what we looked at.
    again = await _subject(db, event)
    if again.tenant_id is not None and row is None:
        raise Conflict("the payment of this event was just told: repeat with the same key")
    return again, row


def _payments_of(event: PaymentEvent) -> list[str]:
    told = {
        event.payment.id if event.payment else "",
        event.refund.payment_id if event.refund else "",
        event.dispute.payment_id if event.dispute else "",
    }
    return sorted(told - {""})


async def _subject(db: AsyncConnection, event: PaymentEvent) -> _Subject:
    if event.subscription is not None:
        return await _subject_of_subscription(db, event)
    purchase = await _purchase(db, event)
    if purchase is not None:
        return _Subject(purchase.tenant_id, purchase=purchase)
    return _Subject(await _owner(db, event))


async def _owner(db: AsyncConnection, event: PaymentEvent) -> str | None:
    """Whose money an event is about, by what we hold ourselves: notes of payments may be the customer's."""
    if event.invoice is not None and event.invoice.subscription_id:
        known = await subscription_store.find_known(db, event.invoice.subscription_id)
        if known is not None:
            return known.tenant_id
    told = (
        event.payment.id if event.payment else "",
        event.invoice.payment_id if event.invoice else "",
        event.refund.payment_id if event.refund else "",
        event.dispute.payment_id if event.dispute else "",
    )
    for payment_id in filter(None, told):
        tenant_id = await store.find_payment_tenant(db, payment_id)
        if tenant_id is not None:
            return tenant_id
    purchase = await purchases.find_purchase_by_order(db, event.order.id) if event.order else None
    return purchase.tenant_id if purchase else None


async def _subject_of_subscription(db: AsyncConnection, event: PaymentEvent) -> _Subject:
    snapshot = event.subscription
    if snapshot is None:
        return _Subject()
    known = await subscription_store.find_known(db, snapshot.id)
    if known is not None:
        return _Subject(known.tenant_id, known=known)
    intent_id = snapshot.notes.get("intent_id")
    intent = await purchases.find_intent(db, intent_id) if intent_id else None
    if intent is not None and was_begun_by(intent, snapshot):
        return _Subject(intent.tenant_id, intent=intent, known=first_knowledge(intent, snapshot.id))
    # Not one that we began. The notes only tell whom to name in the finding.
    named = snapshot.notes.get("tenant_id")
    row = await subscription_store.find_subscription(db, named) if named else None
    return _Subject(row.tenant_id if row else None)


async def _purchase(db: AsyncConnection, event: PaymentEvent) -> PackPurchase | None:
    payment, order = event.payment, event.order
    if payment is None or not payment.order_id:
        return None
    purchase = await purchases.find_purchase_by_order(db, payment.order_id)
    if purchase is not None or order is None or order.id != payment.order_id or not order.receipt:
        return purchase
    # BuyCredits lost the provider's answer: the order carries our id as its receipt.
    begun = await purchases.find_purchase(db, order.receipt)
    return begun if begun is not None and begun.provider_order_id is None else None


async def _situation(
    db: AsyncConnection, event: PaymentEvent, subject: _Subject, row: Subscription | None, mode: str
) -> Situation:
    plan = refund = dispute = None
    if subject.known is not None:
        catalog = await catalog_store.read_catalog(db, with_retired=True)
        plan = catalog.plans[subject.known.plan_id]
    if event.refund is not None:
        refund = await money.find_refund(
            db,
            provider_refund_id=event.refund.id,
            refund_id=event.refund.notes.get("refund_id", ""),
            payment_id=event.refund.payment_id,
            amount_paise=event.refund.amount_paise,
        )
    if event.dispute is not None:
        dispute = await money.find_dispute(db, event.dispute.id)
    payment_id = event.payment.id if event.payment else None
    return Situation(
        mode=mode,
        tenant_known=subject.tenant_id is not None,
        subscription=subject.known,
        plan=plan,
        purchase=subject.purchase,
        trial_used=row is not None and row.has_used_trial,
        payment_known=bool(payment_id and await store.find_payment_tenant(db, payment_id)),
        refund=refund,
        dispute=dispute,
    )


async def _write(
    db: AsyncConnection, event: PaymentEvent, decision: Decision, subject: _Subject, now: datetime
) -> None:
    owed = []
    if decision.subscription is not None:
        if subject.intent is not None:
            await purchases.finish_intent(db, subject.intent.id, decision.subscription.id)
        await subscription_store.save_known(db, decision.subscription)
    if decision.payment is not None:
        await store.insert_payment(db, decision.payment)
    if decision.purchase_paid and subject.purchase is not None and event.payment is not None:
        if event.payment.order_id and subject.purchase.provider_order_id is None:
            await purchases.set_purchase_order(db, subject.purchase.id, event.payment.order_id)
        await purchases.set_purchase_paid(db, subject.purchase.id, event.payment.id, now)
    if decision.grant is not None and await store.insert_grant(db, decision.grant):
        owed.append(tasks.grant_credits(decision.grant))
    if decision.fetch and subject.known is not None and not event.looked_up:
        owed.append(tasks.fetch_and_apply(subject.known, event.body_sha256[:16]))
    if decision.refund is not None:
        await _write_refund(db, decision.refund, subject.tenant_id, now)
    if decision.dispute is not None:
        await money.save_dispute(db, decision.dispute, subject.tenant_id)
    if decision.finding is not None:
        await claims.open_finding(db, decision.finding, subject.tenant_id)
    for task in owed:
        await task_store.insert_task(db, task, now)


async def _write_refund(db: AsyncConnection, refund: Refund, tenant_id: str | None, now: datetime) -> None:
    if refund.id:
        await money.save_refund(db, refund, now=now)
        return
    await money.insert_refund(
        db,
        replace(refund, id=new_id("rfd")),
        tenant_id=tenant_id,
        reason="begun at the provider",
        actor="razorpay",
        processed_at=now if refund.status == "processed" else None,
    )


async def _write_documents(
    db: AsyncConnection, event: PaymentEvent, decision: Decision, now: datetime, policy: Policy
) -> None:
    """Invoices last: their numbers make everybody wait for the end of this transaction."""
    if decision.payment is not None:
        await issue_tax_invoice(db, policy.supplier, decision.payment, description=decision.bought, now=now)
        await claims.settle_claims(db, decision.payment.id, now, policy)
    if decision.refund is not None:
        tenant_id = await store.find_payment_tenant(db, decision.refund.payment_id)
        if decision.refund.status == "failed" and decision.refund.id and tenant_id is not None:
            await claims.restore_claims(db, tenant_id, decision.refund.id, now)
        await claims.settle_claims(db, decision.refund.payment_id, now, policy)
    if decision.dispute is not None:
        dispute = decision.dispute
        if dispute.status == "won":
            tenant_id = await store.find_payment_tenant(db, dispute.payment_id)
            if tenant_id is not None:
                await claims.restore_claims(db, tenant_id, dispute.id, now)
        await claims.settle_claims(db, dispute.payment_id, now, policy)
