"""Steps that bring credits in line with money that went back."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions.actions.invoices import issue_credit_note
from services.subscriptions.rules import claims, lifecycle, tasks
from services.subscriptions.rules.claims import Claim, Revocation
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.funding import Finding, Refund
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import events as event_store
from services.subscriptions.store import money as store
from services.subscriptions.store import purchases
from services.subscriptions.store import tasks as task_store
from shared.ids import new_id
from shared.ops import store as ops

ROOM = "subscriptions"


async def settle_claims(db: AsyncConnection, payment_id: str, now: datetime, policy: Policy) -> None:
    """Owe what the refunds and lost disputes of a payment take of its credits; nothing while the payment is not here.

    The caller holds the payment's lock (`store.money.lock_payment`), and its tenant's if it knows whose it is.
    """
    payment = await store.find_payment(db, payment_id)
    if payment is None:
        return
    await store.adopt_claims(db, payment_id, payment.tenant_id)
    refunds = await store.list_refunds(db, payment_id)
    done = [each for each in refunds if each.status == "processed"]
    gone = [
        Claim("refund", each.provider_refund_id or each.id, each.amount_paise)
        for each in done
        if each.kind == "refund"
    ]
    granted = await store.list_granted(db, payment_id)
    taken = await store.list_revocations(db, payment.tenant_id, [grant.reference_id for grant in granted])
    new = claims.revocations(
        payment.amount_paise, granted, [*gone, *await store.list_lost(db, payment_id)], taken
    )
    for revocation in new:
        await _revoke(db, payment.tenant_id, revocation, now)
    for refund in done:
        await issue_credit_note(
            db,
            policy.supplier,
            tenant_id=payment.tenant_id,
            payment_id=payment_id,
            refund_id=refund.id,
            amount_paise=refund.amount_paise,
            now=now,
        )
    await store.save_given_back(db, payment, sum(each.amount_paise for each in done), [*taken, *new])


async def restore_claims(db: AsyncConnection, tenant_id: str, dispute_id: str, now: datetime) -> None:
    """Owe what a dispute took and then turned out to be won."""
    for revocation in await store.restore_revocations(db, tenant_id, dispute_id, now):
        await task_store.insert_task(db, tasks.restore_grant(tenant_id, revocation), now)


async def give_back_unused(
    db: AsyncConnection, tenant_id: str, known: Sequence[KnownSubscription], now: datetime, policy: Policy
) -> None:
    """Owe what subscriptions that were taken over had paid for the time after: money, and the credits it bought."""
    if policy.upgrade_refund == "none":
        return
    taken_over = {
        k.id: taker
        for k in known
        if (taker := lifecycle.taker(k, known)) is not None and not claims.was_forfeited(k, taker)
    }
    if not taken_over:
        return
    intents = {
        taker.intent_id: await purchases.find_intent(db, taker.intent_id) for taker in taken_over.values()
    }
    for payment in await store.list_payments(db, list(taken_over)):
        taker = taken_over[payment.razorpay_subscription_id or ""]
        intent = intents[taker.intent_id]
        since = taker.started_at or taker.purchased_at
        if intent is not None and intent.quoted_at is not None and intent.quoted_payment_id == payment.id:
            since = intent.quoted_at  # what was quoted is what is done
        if payment.period_end is not None and payment.period_end > since:  # most are long over
            await store.lock_payment(db, payment.id)
            await _give_back(db, tenant_id, payment, taker.intent_id, since, now, policy)
    for refund_id in await store.list_waiting(db, tenant_id):
        await go_on(db, tenant_id, refund_id, now)


async def _give_back(
    db: AsyncConnection,
    tenant_id: str,
    payment: store.Captured,
    change_id: str,
    since: datetime,
    now: datetime,
    policy: Policy,
) -> None:
    paid = await store.find_paid(db, payment)
    amount = claims.unused_paise(paid, since) if paid else 0
    if paid is None or amount == 0:
        return
    status = "pending" if paid.refundable(since) else "failed"
    refund = Refund(new_id("rfd"), payment.id, None, "proration", amount, payment.currency, status)
    if not await store.insert_refund(
        db, refund, tenant_id=tenant_id, reason="the plan was changed", actor="system", change_id=change_id
    ):
        return
    if status == "failed":
        observed = {"paymentId": paid.id, "unusedPaise": amount, "changeId": change_id}
        await open_finding(db, Finding("unused_not_refundable", "warning", observed), tenant_id)
        return
    if policy.upgrade_credits == "none":
        await _owe_refund(db, tenant_id, refund, change_id, now)
        return
    granted = await store.list_granted(db, payment.id)
    taken = await store.list_revocations(db, tenant_id, [grant.reference_id for grant in granted])
    for grant in granted:
        before = sum(each.credits for each in taken if each.grant_reference_id == grant.reference_id)
        credits = claims.unused_credits(grant, before, since)
        if credits:
            await _revoke(db, tenant_id, _proration(change_id, grant.reference_id, refund.id, credits), now)


async def take_note(
    db: AsyncConnection, tenant_id: str, reference_id: str, short: int, now: datetime
) -> None:
    """Step: the ledger has taken what a change takes, but for `short` credits that were spent."""
    refund_id = await store.save_short(db, tenant_id, reference_id, short)
    await go_on(db, tenant_id, refund_id, now)


async def go_on(db: AsyncConnection, tenant_id: str, refund_id: str, now: datetime) -> None:
    """Step: money goes back once its credits did; what was spent of them is taken of the new ones, then of the money."""
    refund = await store.get_refund(db, refund_id)
    if await task_store.has_task(db, tenant_id, tasks.refund_key(refund)):
        return  # its amount is decided
    taken = await store.list_taken(db, tenant_id, refund_id)
    if refund.status != "pending" or any(each.short is None for each in taken):
        return
    granted = await store.list_granted(db, refund.payment_id)
    old = {grant.reference_id for grant in granted}
    new = [each for each in taken if each.grant_reference_id not in old]
    spent = sum(each.short or 0 for each in taken if each.grant_reference_id in old)
    change_id = await store.find_change(db, refund_id) or ""
    if spent and not new:
        first = await store.find_taker_payment(db, change_id)
        if first is None:
            return  # its charge is still to be told
        for grant in (await store.list_granted(db, first.id))[:1]:
            before = await store.list_revocations(db, tenant_id, [grant.reference_id])
            credits = min(spent, grant.credits - sum(each.credits for each in before))
            if credits > 0:
                revocation = _proration(change_id, grant.reference_id, refund.id, credits)
                await _revoke(db, tenant_id, revocation, now)
                return
    spent -= sum(each.credits - (each.short or 0) for each in new)
    payment = await store.find_payment(db, refund.payment_id)
    if payment is None:
        return
    bought = store.bought(payment, granted)
    amount = claims.less_spent(refund.amount_paise, payment.amount_paise, bought, spent)
    if amount < claims.SMALLEST_REFUND_PAISE:
        await store.save_refund(db, replace(refund, status="failed"), now=now)
        observed = {"refundId": refund.id, "paymentId": refund.payment_id, "creditsSpent": spent}
        await open_finding(db, Finding("unused_was_spent", "warning", observed), tenant_id)
        return
    if amount < refund.amount_paise:
        await store.save_amount(db, refund.id, amount)
    await _owe_refund(db, tenant_id, replace(refund, amount_paise=amount), change_id, now)


async def _owe_refund(
    db: AsyncConnection, tenant_id: str, refund: Refund, change_id: str, now: datetime
) -> None:
    task = tasks.refund_payment(tenant_id, refund, notes={"change_id": change_id})
    await task_store.insert_task(db, task, now)


def _proration(change_id: str, grant_reference_id: str, refund_id: str, credits: int) -> Revocation:
    reference = f"proration:{change_id}:{grant_reference_id}"
    return Revocation(reference, grant_reference_id, "proration", refund_id, credits)


async def fail_refund(db: AsyncConnection, tenant_id: str, refund_id: str, why: str, now: datetime) -> None:
    """Step: the provider refused a refund for good; the credits of a change come back, and a person must act."""
    refund = await store.get_refund(db, refund_id)
    if refund.status != "pending":
        return
    await store.save_refund(db, replace(refund, status="failed"), now=now)
    await restore_claims(db, tenant_id, refund.id, now)
    observed = {"refundId": refund.id, "paymentId": refund.payment_id, "kind": refund.kind, "why": why}
    await open_finding(db, Finding("refund_failed", "critical", observed), tenant_id)


async def open_finding(db: AsyncConnection, finding: Finding, tenant_id: str | None) -> None:
    """Step: tell people; what an open finding of the kind says of other payments stays beside it."""
    earlier = await event_store.find_open_finding(db, ROOM, finding.check_type, tenant_id)
    if earlier is not None:
        finding = finding.beside(earlier)
    await ops.open_finding(
        db,
        room=ROOM,
        check_type=finding.check_type,
        tenant_id=tenant_id,
        severity=finding.severity,
        observed=finding.observed,
    )


async def _revoke(db: AsyncConnection, tenant_id: str, revocation: Revocation, now: datetime) -> None:
    first, times = revocation, 1
    while not await store.insert_revocation(db, tenant_id, revocation):
        if not await store.was_restored(db, tenant_id, revocation.reference_id):
            return
        # A dispute that was won may come back in a later phase: what was given back is taken anew.
        times += 1
        revocation = replace(first, reference_id=f"{first.reference_id}:{times}")
    await task_store.insert_task(db, tasks.revoke_grant(tenant_id, revocation), now)
