"""Captured payments of our tenants that we do not hold: whatever order or subscription they were for.

What we began and only did not hear of takes the way of a late webhook. What we did not begin, as after a restore of a
backup that is older, is told to a person. Payments are captured up to days after they were made, so every run goes through
all of the last days, the newest first: what comes meanwhile moves no page that is still to be read.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from services.subscriptions.actions.sync.run import Notice, Run
from services.subscriptions.actions.sync.strangers import AUDITOR, adopt
from services.subscriptions.clients.razorpay import PAGE
from services.subscriptions.errors import ProviderRefused
from services.subscriptions.rules.amounts import format_inr
from services.subscriptions.rules.events import ProviderPayment, ProviderSubscription
from services.subscriptions.rules.findings import PAYMENTS, OpenFinding
from services.subscriptions.store import audit, purchases, sync
from services.subscriptions.store import subscriptions as subscription_store
from services.subscriptions.store import tasks as task_store
from shared import logs
from shared.database import transaction
from shared.ops import store as ops

WALK = "sync.payments"
# What is this young may be on its way to us, or be missing in the provider's list.
GRACE = timedelta(minutes=10)
# A look at the subscription so long after the payment would have brought it.
FETCHED_AFTER = timedelta(hours=1)
SHARE = 0.9
NAMED_MAX = 50
NEXT_STEP = (
    "Not in our books, so RefundPayment refuses it: give the money back in the provider's dashboard, or its credits by "
    "AdjustCredits with the ticket as key; then ResolveFinding, which settles the payments that it names"
)

_log = logs.get_logger()


@dataclass(frozen=True)
class Missing:
    """Money that was taken and that we do not hold."""

    payment_id: str
    paise: int
    # The order or subscription that it was for.
    paid_for: str


@dataclass
class _Look:
    """What a run has seen so far."""

    run: Run
    missing: dict[str, dict[str, Missing]] = field(default_factory=dict)
    snapshots: dict[str, ProviderSubscription | None] = field(default_factory=dict)
    unknown_tenants: set[str] = field(default_factory=set)
    whole: bool = True

    def add(self, tenant_id: str, missing: Missing) -> None:
        self.missing.setdefault(tenant_id, {})[missing.payment_id] = missing

    def concerns(self, tenant_id: str) -> bool:
        return self.run.tenant_id in (None, tenant_id)


async def compare_payments(run: Run) -> None:
    """Heal what is ours, name what is not held, close what is settled."""
    look = _Look(run)
    await _recheck(look)
    await _walk(look)
    await _record(look)
    if look.unknown_tenants:
        _log.info("payments_of_unknown_tenants", tenants=sorted(look.unknown_tenants)[:NAMED_MAX])


async def _recheck(look: _Look) -> None:
    """What was named before stays named, however old it is by now, until it is held or given back."""
    run = look.run
    async with transaction(run.engine) as db:
        standing = await audit.list_open(db, checks={PAYMENTS}, tenants=_tenants(run))
    for finding in standing:
        for missing in _named(finding.observed):
            question = partial(run.razorpay.fetch_payment, missing.payment_id)
            try:
                now = await run.ask(question) if run.has_time(SHARE) else None
            except ProviderRefused:
                now = None
            if now is None:
                look.add(finding.tenant_id or "", missing)
            elif now.captured and _left(now):
                look.add(finding.tenant_id or "", Missing(now.id, _left(now), missing.paid_for))


async def _walk(look: _Look) -> None:
    """From where the last run stopped down to the oldest, and then from the newest down to there."""
    run = look.run
    since, until = run.clock() - run.policy.payments_compared, run.clock() - GRACE
    place = await _find_place(run)
    legs = [(until, since)]
    if place is not None and since < place < until:
        legs = [(place, since), (until, place)]
    for newest, oldest in legs:
        if not await _walk_down(look, newest, oldest):
            run.finished = False
            return
        await _save_place(run, None)


async def _walk_down(look: _Look, newest: datetime, oldest: datetime) -> bool:
    """Page by page, each from where the one before ended; False if there was no time or no answer."""
    run, place, skip = look.run, newest, 0
    while run.has_time(SHARE):
        page = await run.ask(partial(run.razorpay.list_payments, oldest, place, skip=skip))
        if page is None:
            return False
        await _compare_page(look, page)
        if run.is_down or not look.whole:
            return False
        if len(page) < PAGE:
            return True
        # The next page begins with this one's last second; only a second of more payments than a page is skipped into.
        reached = page[-1].created_at or place
        place, skip = (reached, 0) if reached < place else (place, skip + PAGE)
        await _save_place(run, place)
    return False


async def _compare_page(look: _Look, page: Sequence[ProviderPayment]) -> None:
    captured = {each.id: each for each in page if each.captured and _left(each)}
    async with transaction(look.run.engine) as db:
        held = await sync.find_payment_owners(db, captured)
        orders = await sync.find_order_owners(db, {each.order_id for each in captured.values()})
    await asyncio.gather(*(_look_at(look, each, orders) for each in captured.values() if each.id not in held))


async def _look_at(look: _Look, payment: ProviderPayment, orders: Mapping[str, str]) -> None:
    """Whose a payment is; what needs no person is done."""
    run = look.run
    if not run.has_time(SHARE):
        look.whole = False
        return
    try:
        found = await (_of_cycle(look, payment) if payment.invoice_id else _of_order(look, payment, orders))
    except ProviderRefused:
        found = payment.notes.get("tenant_id", ""), payment.order_id
    if found is None or not found[0] or not look.concerns(found[0]):
        return
    tenant_id, paid_for = found
    async with transaction(run.engine) as db:
        ours = await sync.find_tenants(db, {tenant_id})
    if ours:
        look.add(tenant_id, Missing(payment.id, _left(payment), paid_for))
    else:
        look.unknown_tenants.add(tenant_id)


async def _of_order(
    look: _Look, payment: ProviderPayment, orders: Mapping[str, str]
) -> tuple[str, str] | None:
    """(tenant, order) of a payment that is still not held; one of an order that we hold is applied."""
    run, order = look.run, None
    owner = orders.get(payment.order_id)
    if owner is None and payment.order_id:
        order = await run.ask(lambda: run.razorpay.fetch_order(payment.order_id))
        if order is None:
            return None
        # Our purchase is its receipt: that is how it is known where its answer was lost.
        async with transaction(run.engine) as db:
            purchase = await purchases.find_purchase(db, order.receipt) if order.receipt else None
        owner = purchase.tenant_id if purchase else None
    if owner is None:
        # What the order says is ours; what the payment says may be the customer's.
        told = order.notes.get("tenant_id", "") if order else ""
        return told or payment.notes.get("tenant_id", ""), payment.order_id
    if not look.concerns(owner) or payment.id in await _settled(run, owner):
        return None
    await run.apply("payment.captured", owner, payment=payment, order=order)
    return None if run.dry_run else (owner, payment.order_id)


async def _of_cycle(look: _Look, payment: ProviderPayment) -> tuple[str, str] | None:
    """(tenant, subscription) of a payment that is not held although the provider was asked; else it is asked."""
    run = look.run
    invoice = await run.ask(lambda: run.razorpay.fetch_invoice(payment.invoice_id))
    if invoice is None:
        return None
    subscription_id = invoice.subscription_id
    if not subscription_id:
        return payment.notes.get("tenant_id", ""), payment.order_id
    async with transaction(run.engine) as db:
        known = await subscription_store.find_known(db, subscription_id)
        made_at = payment.created_at or run.clock()
        in_vain = known is not None and await task_store.has_fetched(
            db, known.tenant_id, subscription_id, since=made_at + FETCHED_AFTER
        )
    if known is None:
        return await _of_stranger(look, subscription_id)
    if in_vain:
        return known.tenant_id, subscription_id
    if look.concerns(known.tenant_id):
        await run.owe_fetch(known)
    return None


async def _of_stranger(look: _Look, subscription_id: str) -> tuple[str, str] | None:
    run = look.run
    if subscription_id not in look.snapshots:
        look.snapshots[subscription_id] = await run.ask(
            lambda: run.razorpay.fetch_subscription(subscription_id)
        )
    snapshot = look.snapshots[subscription_id]
    tenant_id = snapshot.notes.get("tenant_id", "") if snapshot else ""
    if snapshot is None or not tenant_id or not look.concerns(tenant_id):
        return None
    return None if await adopt(run, snapshot, tenant_id) else (tenant_id, subscription_id)


async def _record(look: _Look) -> None:
    """Open a finding for each tenant whose money is missing, and close those of whom none is any more."""
    run = look.run
    missing = {
        tenant_id: left for tenant_id in sorted(look.missing) if (left := await _still(look, tenant_id))
    }
    if run.dry_run:
        for tenant_id, of_tenant in missing.items():
            run.tell(_notice(tenant_id, of_tenant, "dry_run", None))
        return
    async with transaction(run.engine) as db:
        for tenant_id, of_tenant in missing.items():
            await ops.open_finding(
                db,
                room=audit.ROOM,
                check_type=PAYMENTS,
                tenant_id=tenant_id,
                severity="critical",
                observed=_observed(of_tenant),
            )
        for finding in await audit.list_open(db, checks={PAYMENTS}, tenants=_tenants(run)):
            await _tell_or_close(run, db, finding, missing.get(finding.tenant_id or "", []))


async def _tell_or_close(run: Run, db: Any, finding: OpenFinding, missing: list[Missing]) -> None:
    if missing:
        run.tell(_notice(finding.tenant_id or "", missing, finding.id, finding.created_at))
        return
    await ops.resolve_finding(
        db, room=audit.ROOM, check_type=PAYMENTS, tenant_id=finding.tenant_id, resolved_by=AUDITOR
    )


async def _still(look: _Look, tenant_id: str) -> list[Missing]:
    """What is missing now that all was healed that could be, and that nobody else has told of."""
    of_tenant = look.missing[tenant_id]
    settled = await _settled(look.run, tenant_id)
    async with transaction(look.run.engine) as db:
        held = await sync.find_payment_owners(db, of_tenant)
    # As they were named before, then what is new.
    return [
        each for each in of_tenant.values() if each.payment_id not in held and each.payment_id not in settled
    ]


async def _settled(run: Run, tenant_id: str) -> set[str]:
    async with transaction(run.engine) as db:
        return await sync.find_settled_payments(db, tenant_id, check=PAYMENTS, closed_by=AUDITOR)


def _named(observed: Mapping[str, Any]) -> list[Missing]:
    lists = (observed.get(name, []) for name in ("paymentIds", "paise", "paidFor"))
    return [
        Missing(str(each), int(paise), str(paid_for)) for each, paise, paid_for in zip(*lists, strict=False)
    ]


def _observed(of_tenant: Sequence[Missing]) -> dict[str, Any]:
    return {
        "paymentIds": [each.payment_id for each in of_tenant[:NAMED_MAX]],
        "paise": [each.paise for each in of_tenant[:NAMED_MAX]],
        "paidFor": [each.paid_for for each in of_tenant[:NAMED_MAX]],
        "payments": len(of_tenant),
        "totalPaise": sum(each.paise for each in of_tenant),
        "nextStep": NEXT_STEP,
    }


def _notice(tenant_id: str, of_tenant: Sequence[Missing], finding_id: str, since: datetime | None) -> Notice:
    named = of_tenant[:NAMED_MAX]
    return Notice(
        f"subscriptions.{PAYMENTS}:{finding_id}",
        "critical",
        "The provider took money in a tenant's name that we do not hold",
        tenant_id,
        {
            "finding_id": finding_id,
            "payment_ids": ", ".join(each.payment_id for each in named),
            "paise": ", ".join(str(each.paise) for each in named),
            "paid_for": ", ".join(each.paid_for for each in named),
            "total": format_inr(sum(each.paise for each in of_tenant)),
            "next_step": NEXT_STEP,
        },
        since,
    )


def _left(payment: ProviderPayment) -> int:
    """What of a payment was not given back."""
    return max(payment.amount_paise - payment.amount_refunded_paise, 0)


def _tenants(run: Run) -> list[str] | None:
    return None if run.tenant_id is None else [run.tenant_id]


async def _find_place(run: Run) -> datetime | None:
    if run.tenant_id is not None:
        return None
    async with transaction(run.engine) as db:
        place = await audit.find_place(db, WALK)
    return datetime.fromisoformat(place) if place else None


async def _save_place(run: Run, place: datetime | None) -> None:
    if run.dry_run or run.tenant_id is not None:
        return
    async with transaction(run.engine) as db:
        await audit.save_place(db, WALK, place.isoformat() if place else "")
