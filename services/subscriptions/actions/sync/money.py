"""Money that moved without our hearing of it: orders that were paid, refunds and disputes that went on."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta

from services.subscriptions.actions.sync.run import Run
from services.subscriptions.errors import ProviderRefused
from services.subscriptions.rules.events import ProviderDispute, ProviderRefund
from services.subscriptions.store import sync
from services.subscriptions.store.sync import Unpaid
from shared.database import transaction

PAGE = 100
# Nobody pays an order later: the page that holds it is gone.
PAYABLE_FOR = timedelta(days=30)
UNSETTLED_MAX = 1000
# These parts come first and must leave time to the others.
SHARE = 0.4
_REFUND_EVENTS = {
    "pending": "refund.created",
    "processed": "refund.processed",
    "failed": "refund.failed",
}
_DISPUTE_EVENTS = {
    "open": "payment.dispute.created",
    "under_review": "payment.dispute.under_review",
    "action_required": "payment.dispute.action_required",
    "won": "payment.dispute.won",
    "lost": "payment.dispute.lost",
    "closed": "payment.dispute.closed",
}


async def compare_purchases(run: Run) -> None:
    """Orders of ours without a payment: what was captured for them is applied."""
    after = ""
    while run.has_time(SHARE):
        async with transaction(run.engine) as db:
            page = await sync.list_unpaid(
                db, tenant_id=run.tenant_id, younger_than=PAYABLE_FOR, after=after, limit=PAGE
            )
        await asyncio.gather(*(_compare_purchase(run, each) for each in page))
        if len(page) < PAGE:
            return
        after = page[-1].id


async def _compare_purchase(run: Run, purchase: Unpaid) -> None:
    try:
        payments = await run.ask(lambda: run.razorpay.list_order_payments(purchase.order_id))
    except ProviderRefused:
        return  # an order of another account, which nobody can pay here
    for payment in payments or ():
        if payment.captured:
            await run.apply("payment.captured", purchase.tenant_id, payment=payment)


async def compare_unsettled(run: Run) -> None:
    """Refunds and disputes that were not over when we last heard of them."""
    async with transaction(run.engine) as db:
        refund_ids = await sync.list_pending_refunds(db, run.tenant_id, limit=UNSETTLED_MAX)
        dispute_ids = await sync.list_open_disputes(db, run.tenant_id, limit=UNSETTLED_MAX)
    refunds = await asyncio.gather(*(_fetch_refund(run, each) for each in refund_ids))
    disputes = await asyncio.gather(*(_fetch_dispute(run, each) for each in dispute_ids))
    await compare_refunds(run, filter(None, refunds))
    await compare_disputes(run, filter(None, disputes))


async def _fetch_refund(run: Run, refund_id: str) -> ProviderRefund | None:
    try:
        return await run.ask(lambda: run.razorpay.fetch_refund(refund_id)) if run.has_time(SHARE) else None
    except ProviderRefused:
        return None


async def _fetch_dispute(run: Run, dispute_id: str) -> ProviderDispute | None:
    try:
        return await run.ask(lambda: run.razorpay.fetch_dispute(dispute_id)) if run.has_time(SHARE) else None
    except ProviderRefused:
        return None


async def compare_refunds(run: Run, refunds: Iterable[ProviderRefund]) -> None:
    """Refunds of payments that we hold, which we do not know or know less far."""
    told = {refund.id: refund for refund in refunds}
    async with transaction(run.engine) as db:
        owners = await sync.find_payment_owners(db, {refund.payment_id for refund in told.values()})
        ours = await sync.find_refund_statuses(db, told)
    for refund in told.values():
        owner = owners.get(refund.payment_id)
        if not _concerns(run, owner) or ours.get(refund.id) not in (None, "pending"):
            continue
        if ours.get(refund.id) == refund.status or refund.status not in _REFUND_EVENTS:
            continue
        payment = await run.ask(lambda of=refund: run.razorpay.fetch_payment(of.payment_id))  # type: ignore[misc]
        if payment is not None and owner is not None:
            await run.apply(_REFUND_EVENTS[refund.status], owner, refund=refund, payment=payment)


async def compare_disputes(run: Run, disputes: Iterable[ProviderDispute]) -> None:
    """Disputes about payments that we hold, which we do not know or know less far."""
    told = {dispute.id: dispute for dispute in disputes}
    async with transaction(run.engine) as db:
        owners = await sync.find_payment_owners(db, {dispute.payment_id for dispute in told.values()})
        ours = await sync.find_dispute_statuses(db, told)
    for dispute in told.values():
        owner = owners.get(dispute.payment_id)
        # One that was won may come back in a later phase.
        if not _concerns(run, owner) or ours.get(dispute.id) in ("lost", "closed"):
            continue
        if ours.get(dispute.id) == dispute.status or dispute.status not in _DISPUTE_EVENTS:
            continue
        payment = await run.ask(lambda of=dispute: run.razorpay.fetch_payment(of.payment_id))  # type: ignore[misc]
        if payment is not None and owner is not None:
            await run.apply(_DISPUTE_EVENTS[dispute.status], owner, dispute=dispute, payment=payment)


def _concerns(run: Run, owner: str | None) -> bool:
    return owner is not None and run.tenant_id in (None, owner)
