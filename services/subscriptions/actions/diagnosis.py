"""DiagnoseTenant: our books beside the provider's word and the ledger's, and the command to run next."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions.audit import ask_ledger
from services.subscriptions.actions.current import Current, get_current
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import ProviderNotConfigured, ProviderRefused, ProviderUnavailable
from services.subscriptions.rules import findings as rules
from services.subscriptions.rules.differences import (
    MENDED_BY_FETCHING,
    NOBODY,
    Commands,
    Difference,
    between,
)
from services.subscriptions.rules.events import TERMINAL, ProviderSubscription
from services.subscriptions.rules.findings import Books, Found, LedgerView
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.rules.purchases import was_begun_by
from services.subscriptions.rules.tasks import Task
from services.subscriptions.store import audit, purchases, sync
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store.sync import Compared
from shared import logs
from shared.clock import Clock
from shared.database import transaction
from shared.errors import BillingError

AT_ONCE = 4
# Somebody waits for the answer: a provider that is slower counts as silent.
PROVIDER_SECONDS = 6.0
# The provider's lists name no customer, so only the newest are gone through; SyncWithProvider finds older strangers.
STRANGERS_WITHIN = timedelta(days=2)
COMPARED_MAX = 50

_log = logs.get_logger()


@dataclass(frozen=True)
class View:
    """A provider's subscription, and what it is to us: live, pending or orphan."""

    snapshot: ProviderSubscription
    role: str


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a tenant, on both sides."""

    current: Current
    views: list[View]
    differences: list[Difference]
    open_tasks: list[Task]
    provider_unavailable: bool


async def diagnose_tenant(
    engine: AsyncEngine,
    ledger: Ledger,
    razorpay: Razorpay,
    policy: Policy,
    *,
    tenant_id: str,
    clock: Clock,
) -> Diagnosis:
    """Where we, the provider and the ledger differ about a tenant; whoever is silent leaves its part out."""
    now = clock()
    current = await get_current(engine, ledger, policy, tenant_id=tenant_id, now=now)
    async with transaction(engine) as db:
        catalog = await catalog_store.read_catalog(db, with_retired=True)
        [books] = await audit.read_books(db, [tenant_id], completed_since=now - rules.IN_FLIGHT)
        compared = await sync.list_of_tenant(db, tenant_id)
        standing = await audit.list_open(db, checks={rules.ORPHANS}, tenants=[tenant_id])
    named = {str(each) for finding in standing for each in finding.observed["razorpaySubscriptionIds"]}
    view, snapshots = await asyncio.gather(
        _ask_ledger(ledger, tenant_id),
        _ask_provider(razorpay, tenant_id, compared[-COMPARED_MAX:], named, now),
    )
    lost = await _lost_answers(engine, compared, (snapshots or {}).values())
    commands = Commands(tenant_id, now)
    differences = [
        *_between(books, compared, snapshots or {}, commands),
        *_strangers(books, lost, snapshots or {}, commands),
        *_found(rules.judge(books, catalog, now, view, policy.ladder), books, snapshots or {}, commands),
        *_tasks(books, commands),
    ]
    return Diagnosis(
        current=current,
        views=_views(books.row, lost, snapshots or {}),
        differences=list(dict.fromkeys(differences)),
        open_tasks=[task for task in books.tasks if task.completed_at is None],
        provider_unavailable=snapshots is None,
    )


async def _ask_ledger(ledger: Ledger, tenant_id: str) -> LedgerView | None:
    try:
        return await ask_ledger(ledger, tenant_id)
    except BillingError as error:
        _log.warning("ledger_silent", tenant_id=tenant_id, reason=error.reason)
        return None


async def _ask_provider(
    razorpay: Razorpay, tenant_id: str, compared: Sequence[Compared], named: Iterable[str], now: datetime
) -> dict[str, ProviderSubscription] | None:
    """The provider's subscriptions of a tenant by id; None when it did not answer."""
    few = asyncio.Semaphore(AT_ONCE)

    async def fetch(subscription_id: str) -> ProviderSubscription | None:
        async with few:
            try:
                return await razorpay.fetch_subscription(subscription_id)
            except ProviderRefused:
                return None  # of another account, or of a sandbox that forgot it

    try:
        async with asyncio.timeout(PROVIDER_SECONDS):
            listed = await razorpay.list_subscriptions(now - STRANGERS_WITHIN, now)
            theirs = {each.id for each in listed if each.notes.get("tenant_id") == tenant_id}
            wanted = sorted(theirs | set(named) | {each.known.id for each in compared})
            found = await asyncio.gather(*(fetch(each) for each in wanted))
    except (ProviderUnavailable, ProviderNotConfigured, TimeoutError) as error:
        _log.warning("provider_silent", tenant_id=tenant_id, error=type(error).__name__)
        return None
    return {each.id: each for each in found if each is not None}


async def _lost_answers(
    engine: AsyncEngine, compared: Sequence[Compared], snapshots: Iterable[ProviderSubscription]
) -> set[str]:
    """Subscriptions that are purchases of ours whose answer never came: no orphans, though we do not hold them."""
    held, lost = {each.known.id for each in compared}, set()
    async with transaction(engine) as db:
        for snapshot in snapshots:
            intent_id = snapshot.notes.get("intent_id")
            matters = snapshot.status not in TERMINAL or snapshot.paid_count > 0
            if snapshot.id not in held and intent_id and matters:
                intent = await purchases.find_intent(db, intent_id)
                if intent is not None and was_begun_by(intent, snapshot):
                    lost.add(snapshot.id)
    return lost


def _views(row: Subscription, lost: set[str], snapshots: dict[str, ProviderSubscription]) -> list[View]:
    views = [
        View(snapshot, "pending" if snapshot.id in lost else _role(row, snapshot.id))
        for snapshot in snapshots.values()
    ]
    # What ended and is relied on by nobody is history.
    return [view for view in views if view.role != "orphan" or view.snapshot.status not in TERMINAL]


def _role(row: Subscription, subscription_id: str) -> str:
    if subscription_id == row.razorpay_subscription_id:
        return "live"
    return "pending" if subscription_id == row.pending_razorpay_subscription_id else "orphan"


def _between(
    books: Books,
    compared: Sequence[Compared],
    snapshots: dict[str, ProviderSubscription],
    commands: Commands,
) -> Iterator[Difference]:
    """What the provider says otherwise, subscription by subscription."""
    for each in compared:
        snapshot = snapshots.get(each.known.id)
        if snapshot is None:
            continue
        is_pending = _role(books.row, snapshot.id) == "pending"
        mend = (
            commands.promote_pending_change() if is_pending and snapshot.paid_count > 0 else commands.sync()
        )
        for found in between(each.known, snapshot, payments=each.payments, plan_of_row=each.plan_of_row):
            yield replace(found, next_command=mend) if found.field in MENDED_BY_FETCHING else found
    row = books.row
    if (
        row.has_pending_change
        and row.pending_kind != "cancellation"
        and not row.pending_razorpay_subscription_id
    ):
        yield Difference(
            "pending_change", row.pending_kind or NOBODY, NOBODY, commands.cancel_pending_change()
        )


def _strangers(
    books: Books, lost: set[str], snapshots: dict[str, ProviderSubscription], commands: Commands
) -> Iterator[Difference]:
    """Subscriptions that nobody relies on, and purchases that were used although their answer was lost."""
    for subscription_id in sorted(lost):
        status = snapshots[subscription_id].status
        if status != "created":  # otherwise the customer's next click finds it
            yield Difference("lost_answer", NOBODY, f"{subscription_id} {status}", commands.sync())
    ending = {
        task.payload.get("razorpaySubscriptionId")
        for task in books.tasks
        if task.task_type == "cancel_provider_subscription"
    }
    for view in _views(books.row, lost, snapshots):
        if view.role == "orphan" and view.snapshot.id not in ending:
            yield Difference(
                "orphan",
                NOBODY,
                f"{view.snapshot.id} {view.snapshot.status}",
                commands.cancel_orphan(view.snapshot.id),
            )


def _found(
    found: Iterable[Found], books: Books, snapshots: dict[str, ProviderSubscription], commands: Commands
) -> Iterator[Difference]:
    """What the audit would report."""
    for each in found:
        observed = each.observed
        match each.check_type:
            case "entitlements_differ" | "active_without_entitlements":
                cause = observed.get("cause", "none built")
                limits = ", ".join(observed.get("limits", ()))
                ours = f"{observed.get('planId')}: {cause}"
                yield Difference("entitlements_differ", ours, limits, commands.rebuild_entitlements())
            case "paid_without_grant":
                yield from _without_grant(observed["notDecided"], observed["notInLedger"], books, commands)
            case "granted_without_payment":
                for reference in [*observed["notMirrored"], *observed["notDecided"]]:
                    yield Difference(each.check_type, reference, NOBODY, commands.sync())
            case "charged_after_end":
                for payment_id in observed["paymentIds"]:
                    yield Difference(each.check_type, NOBODY, payment_id, commands.refund_payment(payment_id))
            case "two_live_subscriptions":
                for subscription_id in observed["razorpaySubscriptionIds"]:
                    if _role(books.row, subscription_id) == "orphan" and subscription_id not in snapshots:
                        mend = commands.cancel_orphan(subscription_id)
                        yield Difference("orphan", NOBODY, subscription_id, mend)
            case "missed_escalation":
                yield Difference(
                    each.check_type, f"{observed['planId']} since {observed['pastDueSince']}", NOBODY
                )
            case "orphan_pending_sub" | "stuck_checkout":
                pending = snapshots.get(observed["razorpaySubscriptionId"])
                if pending is None or pending.paid_count == 0:
                    yield Difference(
                        "pending_change",
                        f"{observed['planId']} since {observed['pendingSince']}",
                        pending.status if pending else NOBODY,
                        commands.cancel_pending_change(),
                    )


def _without_grant(
    undecided: Iterable[str], unfunded: Iterable[str], books: Books, commands: Commands
) -> Iterator[Difference]:
    for each in undecided:
        is_payment = each.startswith("pay_")
        mend = commands.refund_payment(each) if is_payment else ""
        yield Difference("payment_without_grant", each, NOBODY, mend)
    tasks = {task.idempotency_key: task.id for task in books.tasks if task.completed_at is None}
    for reference in unfunded:
        task_id = tasks.get(f"grant:{reference}")
        mend = commands.retry_task(task_id) if task_id else ""
        yield Difference("missing_grant", reference, f"{NOBODY} in the ledger", mend)


def _tasks(books: Books, commands: Commands) -> Iterator[Difference]:
    """Tasks that were given up, and those that failed so far."""
    for task in books.tasks:
        if task.completed_at is not None or task.attempts == 0:
            continue
        state = "abandoned_task" if task.abandoned_at else "open_task"
        words = f"{task.attempts} attempts: {task.last_error or ''}".strip()
        yield Difference(state, f"{task.task_type} {task.id}", words, commands.retry_task(task.id))
