"""What the audit of a tenant's books finds wrong; each check looks at plain values and repairs nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from services.subscriptions.rules import due, entitlements
from services.subscriptions.rules.alerts import over_limits
from services.subscriptions.rules.catalog import Catalog
from services.subscriptions.rules.entitlements import ActiveAddon, Override, ServiceEntitlement
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.funding import PROVIDER
from services.subscriptions.rules.ladder import downgrade_at
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import LADDER, Step
from services.subscriptions.rules.tasks import Task

# Checks of our own tables, and those that cannot be judged while the ledger is silent.
OURS = frozenset(
    {
        "orphan_pending_sub",
        "active_without_entitlements",
        "stuck_task",
        "two_live_subscriptions",
        "charged_after_end",
        "overdue_task",
        "missed_escalation",
        "stuck_checkout",
    }
)
WITH_LEDGER = frozenset(
    {"paid_without_grant", "granted_without_payment", "entitlements_differ", "over_limit"}
)
# Reconcile reports each task that was given up, CheckHealth those that nobody attempts.
TOLD_ELSEWHERE = frozenset({"stuck_task", "overdue_task"})
# Opened, resolved and told by SyncWithProvider.
ORPHANS = "orphan_provider_sub"
PAYMENTS = "payment_not_held"
OF_SYNC = frozenset({ORPHANS, PAYMENTS})

PENDING_MAX = timedelta(hours=72)
# What is this young may be on its way: another reader of two databases would see only half of it.
IN_FLIGHT = timedelta(minutes=1)
# What time makes due, the end of an override or a month's credits, is done by jobs; only one that stayed away for a
# day is worth a person's time.
DUE_WITHIN = timedelta(hours=26)
# Tasks are attempted every minute, and the ladder climbs every hour.
TASK_OVERDUE = timedelta(hours=1)
STEP_OVERDUE = timedelta(hours=3)
# The provider ends with the cycle what it was told to end; its word of it may be late.
END_GRACE = timedelta(days=2)
# A charge begins its period at the moment of the charge, the end is told in whole seconds.
SAME_MOMENT = timedelta(minutes=5)
_CHARGING = frozenset({"active", "pending", "halted", "paused"})
_OURS_IN_LEDGER = ("razorpay:pay_", "trial:", "free:")
NAMED_MAX = 20

Severity = Literal["warning", "critical"]


@dataclass(frozen=True)
class Lot:
    """Credits that a grant created, as the ledger holds them."""

    reference_id: str
    granted: int
    created_at: datetime


@dataclass(frozen=True)
class Held:
    """A tenant's limits as the ledger holds them; version 0: none."""

    version: int
    plan_code: str
    services: tuple[ServiceEntitlement, ...]


@dataclass(frozen=True)
class LedgerView:
    """What the ledger says of a tenant."""

    held: Held
    lots: tuple[Lot, ...]
    # How much of each limit is used, by `blog.posts`.
    usage: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PaymentLine:
    """A payment of our mirror, as far as the audit needs it."""

    id: str
    purpose: str
    razorpay_subscription_id: str | None
    plan_id: str | None
    billing_cycle: str | None
    amount_paise: int
    # Refunded, or lost in a dispute.
    given_back_paise: int
    status: str
    period_start: datetime | None
    period_end: datetime | None
    received_at: datetime
    drip_credits: int | None


@dataclass(frozen=True)
class GrantLine:
    """Credits that we decided to create."""

    reference_id: str
    payment_id: str | None
    credits: int
    expires_at: datetime | None = None

    def lapsed(self, now: datetime) -> bool:
        """Nothing was paid for them and their time is over: the ledger may never have heard of them."""
        return self.payment_id is None and self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True)
class Books:
    """Everything that we hold about a tenant, at one moment."""

    row: Subscription
    services: tuple[ServiceEntitlement, ...]
    addons: tuple[ActiveAddon, ...] = ()
    overrides: tuple[Override, ...] = ()
    known: tuple[KnownSubscription, ...] = ()
    payments: tuple[PaymentLine, ...] = ()
    # Of the payments that these grants name, those that we hold, of whichever tenant.
    grants: tuple[GrantLine, ...] = ()
    mirrored: frozenset[str] = frozenset()
    # Open and abandoned tasks, and those that were completed a moment ago.
    tasks: tuple[Task, ...] = ()


@dataclass(frozen=True)
class Found:
    """Something wrong about one tenant."""

    tenant_id: str
    check_type: str
    severity: Severity
    observed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenFinding:
    """A finding that nobody has resolved."""

    id: str
    check_type: str
    tenant_id: str | None
    severity: str
    observed: Mapping[str, Any]
    created_at: datetime


def judge(
    books: Books,
    catalog: Catalog,
    now: datetime,
    ledger: LedgerView | None = None,
    ladder: Sequence[Step] = LADDER,
) -> list[Found]:
    """All that is wrong, at most one of each check; what only the ledger knows is judged with its view."""
    found = [
        *_pending(books, now),
        *_missed_escalation(books, now, ladder),
        *_entitlements(books, catalog, now, ledger.held if ledger else None),
        *_stuck(books),
        *_overdue(books, now),
        *_two_live(books, now),
        *_charged_after_end(books),
        *_paid_without_grant(books, catalog, now, ledger.lots if ledger else None),
        *_granted_without_payment(books, now, ledger.lots if ledger else ()),
        *_over_limit(books, ledger.usage if ledger else {}),
    ]
    first: dict[str, Found] = {}
    for each in found:
        first.setdefault(each.check_type, each)
    return list(first.values())


def _pending(books: Books, now: datetime) -> Iterator[Found]:
    """An upgrade that was begun days ago: nobody authorised it, or somebody did and it is still not in force."""
    row = books.row
    if row.pending_kind != "upgrade" or row.pending_razorpay_subscription_id is None:
        return
    if (
        row.pending_since is None
        or now - max(row.pending_since, row.pending_effective_at or row.pending_since) <= PENDING_MAX
    ):
        return
    known = next((k for k in books.known if k.id == row.pending_razorpay_subscription_id), None)
    used = known is not None and (known.authorised or known.paid_count > 0)
    yield _found(
        books,
        "stuck_checkout" if used else "orphan_pending_sub",
        "critical" if known is not None and known.paid_count > 0 else "warning",
        razorpaySubscriptionId=row.pending_razorpay_subscription_id,
        planId=row.pending_plan_id,
        pendingSince=row.pending_since.isoformat(),
        **({"status": known.status} if known is not None and used else {}),
    )


def _missed_escalation(books: Books, now: datetime, ladder: Sequence[Step]) -> Iterator[Found]:
    """A tenant who should be on free by now."""
    row = books.row
    due = downgrade_at(ladder, row.past_due_since) if row.past_due_since else None
    if row.status == "past_due" and row.past_due_since and due is not None and now - due > STEP_OVERDUE:
        yield _found(
            books,
            "missed_escalation",
            "warning",
            planId=row.plan_id,
            pastDueSince=row.past_due_since.isoformat(),
            downgradeDueAt=due.isoformat(),
        )


def _entitlements(books: Books, catalog: Catalog, now: datetime, held: Held | None) -> Iterator[Found]:
    """Limits that are not those of the plan, in our row or in the ledger."""
    row = books.row
    if not any(service.enabled for service in books.services) and row.status != "incomplete":
        yield _found(books, "active_without_entitlements", "critical", planId=row.plan_id, status=row.status)
        return
    if row.entitling_plan_id not in catalog.plans:
        yield _found(books, "entitlements_differ", "warning", planId=row.plan_id, cause="no_such_plan")
        return
    # An override that has just ended is taken out by the next run of the job that does so.
    rightful = [
        entitlements.build(catalog, row.entitling_plan_id, books.addons, books.overrides, moment)
        for moment in (now, now - DUE_WITHIN)
    ]
    if books.services not in rightful:
        yield _found(
            books,
            "entitlements_differ",
            "warning",
            planId=row.plan_id,
            cause="plan_drift",
            limits=differing(books.services, rightful[0]),
        )
        return
    if held is None or _open(books, "push_entitlements"):
        return
    if held.version != row.entitlements_version or differing(books.services, held.services):
        yield _found(
            books,
            "entitlements_differ",
            "critical",
            planId=row.plan_id,
            cause="ledger",
            version=row.entitlements_version,
            ledgerVersion=held.version,
            limits=differing(books.services, held.services),
        )


def differing(ours: Sequence[ServiceEntitlement], theirs: Sequence[ServiceEntitlement]) -> list[str]:
    """The limits that two sets of entitlements do not have in common, as `blog.posts`."""
    one, other = _flat(ours), _flat(theirs)
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))[:NAMED_MAX]


def _flat(services: Sequence[ServiceEntitlement]) -> dict[str, Any]:
    return {
        f"{service.service}.{limit.key}": limit
        for service in services
        if service.enabled
        for limit in service.limits
    }


def _stuck(books: Books) -> Iterator[Found]:
    """Tasks that were given up and wait for a person."""
    stuck = [task for task in books.tasks if task.abandoned_at is not None and task.completed_at is None]
    if stuck:
        yield _found(
            books,
            "stuck_task",
            "critical",
            taskIds=[task.id for task in stuck][:NAMED_MAX],
            taskTypes=sorted({task.task_type for task in stuck}),
            lastError=stuck[0].last_error or "",
        )


def _overdue(books: Books, now: datetime) -> Iterator[Found]:
    """Tasks that are due for long, were not given up, and wait for none before them: nobody attempts them."""
    first: dict[str, Task] = {}
    for task in books.tasks:
        if task.completed_at is None and task.abandoned_at is None:
            first.setdefault(task.counterpart, task)
    late = [task for task in first.values() if now - task.next_attempt_at > TASK_OVERDUE]
    if late:
        yield _found(
            books,
            "overdue_task",
            "warning",
            taskIds=[task.id for task in late],
            taskTypes=sorted({task.task_type for task in late}),
            dueSince=min(task.next_attempt_at for task in late).isoformat(),
        )


def _two_live(books: Books, now: datetime) -> Iterator[Found]:
    """Two subscriptions that may both charge, and nothing on its way that ends one."""
    ending = {
        task.payload.get("razorpaySubscriptionId") for task in _open(books, "cancel_provider_subscription")
    }
    live = [
        k
        for k in books.known
        if k.status in _CHARGING and k.paid_count > 0 and k.id not in ending and not _ends_with_cycle(k, now)
    ]
    if len(live) > 1:
        yield _found(
            books,
            "two_live_subscriptions",
            "critical",
            razorpaySubscriptionIds=sorted(k.id for k in live)[:NAMED_MAX],
            relyingOn=books.row.razorpay_subscription_id,
        )


def _ends_with_cycle(known: KnownSubscription, now: datetime) -> bool:
    if known.end_requested_at is None:
        return False
    return known.current_end is None or known.current_end > now - END_GRACE


def _charged_after_end(books: Books) -> Iterator[Found]:
    """Money taken for a time after the subscription had ended, and not given back."""
    ended = {k.id: k.ended_at for k in books.known if k.ended and k.ended_at is not None}
    late = [
        payment
        for payment in books.payments
        if payment.given_back_paise < payment.amount_paise
        and payment.period_start is not None
        and (ended_at := ended.get(payment.razorpay_subscription_id or "")) is not None
        and min(payment.period_start, payment.received_at) > ended_at + SAME_MOMENT
    ]
    if late:
        yield _found(
            books,
            "charged_after_end",
            "critical",
            paymentIds=[payment.id for payment in late][:NAMED_MAX],
            razorpaySubscriptionIds=sorted({p.razorpay_subscription_id or "" for p in late})[:NAMED_MAX],
        )


def _paid_without_grant(
    books: Books, catalog: Catalog, now: datetime, lots: Sequence[Lot] | None
) -> Iterator[Found]:
    """Captured money without its credits, in our decisions or in the ledger."""
    decided = {grant.reference_id for grant in books.grants}
    missing = [
        payment.id
        for payment in books.payments
        if _brings_credits(payment, catalog) and f"{PROVIDER}:{payment.id}" not in decided
    ]
    for payment in filter(_drips, books.payments):
        # How much a month cut short by an upgrade brings does not matter here.
        owed = due.due_months(_year(payment, books), books.known, decided, now - DUE_WITHIN, prorated=True)
        missing += [grant.reference_id for grant in owed]
    unfunded: list[str] = []
    if lots is not None:
        funded = {lot.reference_id for lot in lots}
        on_their_way = {task.idempotency_key for task in _open(books, "grant_credits")}
        unfunded = [
            grant.reference_id
            for grant in books.grants
            if grant.reference_id not in funded
            and f"grant:{grant.reference_id}" not in on_their_way
            and not grant.lapsed(now)
        ]
    if missing or unfunded:
        yield _found(
            books,
            "paid_without_grant",
            "critical",
            notDecided=missing[:NAMED_MAX],
            notInLedger=unfunded[:NAMED_MAX],
        )


def _brings_credits(payment: PaymentLine, catalog: Catalog) -> bool:
    if _drips(payment) or payment.status not in ("captured", "refunded"):
        return False
    plan = catalog.plans.get(payment.plan_id or "")
    return payment.purpose == "credit_pack" or plan is None or plan.base_credits > 0


def _drips(payment: PaymentLine) -> bool:
    return payment.drip_credits is not None and payment.period_start is not None


def _year(payment: PaymentLine, books: Books) -> due.DrippingYear:
    start = payment.period_start or payment.received_at
    return due.DrippingYear(
        payment_id=payment.id,
        tenant_id=books.row.tenant_id,
        razorpay_subscription_id=payment.razorpay_subscription_id,
        plan_name=payment.plan_id or "",
        credits=payment.drip_credits or 0,
        amount_paise=payment.amount_paise,
        given_back_paise=payment.given_back_paise,
        period_start=start,
        period_end=payment.period_end or due.add_months(start, due.MONTHS),
        received_at=payment.received_at,
    )


def _granted_without_payment(books: Books, now: datetime, lots: Sequence[Lot]) -> Iterator[Found]:
    """Credits without the money that they name, or that we never decided to create."""
    unpaid = [
        grant.reference_id
        for grant in books.grants
        if grant.payment_id is not None and grant.payment_id not in books.mirrored
    ]
    decided = {grant.reference_id for grant in books.grants}
    strange = [
        lot.reference_id
        for lot in lots
        if lot.reference_id.startswith(_OURS_IN_LEDGER)
        and lot.reference_id not in decided
        and lot.created_at < now - IN_FLIGHT
    ]
    if unpaid or strange:
        yield _found(
            books,
            "granted_without_payment",
            "critical",
            notMirrored=unpaid[:NAMED_MAX],
            notDecided=strange[:NAMED_MAX],
        )


def _over_limit(books: Books, usage: Mapping[str, int]) -> Iterator[Found]:
    """More is used than the tenant may, as after a downgrade: its customer has to be told what stops working."""
    over = list(over_limits(books.services, usage))
    if over:
        used = {each.path: f"{each.used} of {each.allowed}" for each in over[:NAMED_MAX]}
        yield _found(books, "over_limit", "warning", planId=books.row.entitling_plan_id, limits=used)


def _open(books: Books, task_type: str) -> list[Task]:
    """Tasks that are still on their way, or were until a moment ago; given up is neither."""
    return [
        task
        for task in books.tasks
        if task.task_type == task_type and (task.completed_at is not None or task.abandoned_at is None)
    ]


def _found(books: Books, check_type: str, severity: Severity, **observed: Any) -> Found:
    return Found(books.row.tenant_id, check_type, severity, observed)
