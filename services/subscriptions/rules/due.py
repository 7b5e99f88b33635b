"""Credits that time makes due: free months, and the months of a year that was paid at once.

Months are those of India. Month k of a paid year begins k-1 calendar months after the year, always counted from its
first day, so that a year begun on the 31st does not creep towards the beginning of the month.
"""

from calendar import monthrange
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.funding import PROVIDER, Grant
from services.subscriptions.rules.lifecycle import newest
from services.subscriptions.rules.periods import RENEWAL_GRACE

# India keeps one offset all year.
IST = timezone(timedelta(hours=5, minutes=30), "IST")
MONTHS = 12


@dataclass(frozen=True)
class Month:
    """A month, and what it is called: `2026-11`, or its number within a year."""

    name: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class DrippingYear:
    """A payment whose credits arrive month by month, and how much of it went back."""

    payment_id: str
    tenant_id: str
    razorpay_subscription_id: str | None
    plan_name: str
    credits: int
    amount_paise: int
    given_back_paise: int
    period_start: datetime
    period_end: datetime
    received_at: datetime

    @property
    def reference_id(self) -> str:
        """What its months' references begin with."""
        return f"{PROVIDER}:{self.payment_id}"

    def month_reference(self, month: Month) -> str:
        """The reference of one month."""
        return f"{self.reference_id}:m{month.name}"


def current_month(now: datetime) -> Month:
    """The calendar month of India that a moment lies in."""
    first = now.astimezone(IST).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Month(f"{first:%Y-%m}", first, add_months(first, 1))


def free_month(tenant_id: str, month: Month, credits: int, plan_name: str) -> Grant:
    """A tenant's credits of a month on free; they end with it."""
    return Grant(
        tenant_id=tenant_id,
        reference_id=f"free:{tenant_id}:{month.name}",
        kind="free_month",
        bucket="subscription",
        credits=credits,
        expires_at=month.end,
        payment_id=None,
        description=f"{plan_name}, {month.name}",
        period_start=month.start,
        period_end=month.end,
    )


def months_of(year: DrippingYear) -> Iterator[Month]:
    """Its twelve months; together they are the period that was paid, without gap or overlap."""
    starts = [min(add_months(year.period_start, k), year.period_end) for k in range(MONTHS)]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], year.period_end], strict=True), 1):
        yield Month(str(number), start, end)


def due_months(
    year: DrippingYear,
    known: Sequence[KnownSubscription],
    granted: Collection[str],
    now: datetime,
    *,
    prorated: bool,
) -> list[Grant]:
    """The months that have begun, were not granted and are still owed; `granted` are references.

    With `prorated` the money of the time after a newer purchase went back, so that credits are owed up to it.
    """
    if year.given_back_paise >= year.amount_paise:
        return []
    released_at, replaced_at = _stops(year, known)
    stops_at = min((stop for stop in (released_at, replaced_at) if stop is not None), default=None)
    grants = []
    for month in months_of(year):
        if month.start > now or year.month_reference(month) in granted:
            continue
        if stops_at is not None and month.start >= stops_at:
            continue
        credits = year.credits
        if prorated and replaced_at is not None and month.start < replaced_at < month.end:
            credits = credits * _whole(replaced_at - month.start) // _whole(month.end - month.start)
        if credits:
            grants.append(_grant(year, month, credits, now))
    return grants


def add_months(moment: datetime, count: int) -> datetime:
    """So many calendar months later in India, on the last day of a month that is too short."""
    local = moment.astimezone(IST)
    years, month = divmod(local.month - 1 + count, 12)
    year = local.year + years
    day = min(local.day, monthrange(year, month + 1)[1])
    return local.replace(year=year, month=month + 1, day=day)


def _stops(year: DrippingYear, known: Sequence[KnownSubscription]) -> tuple[datetime | None, datetime | None]:
    """Since when nothing more is owed: its subscription was released; a newer one was paid and began."""
    own = next((k for k in known if k.id == year.razorpay_subscription_id), None)
    if own is None:
        return None, None
    newer = [k for k in known if k.paid_count > 0 and newest(k) > newest(own)]
    replaced_at = min((k.started_at or k.purchased_at for k in newer), default=None)
    # What was paid after the release revived the subscription, and is owed in full.
    stopped = own.released_at is not None and (own.released or year.received_at < own.released_at)
    return own.released_at if stopped else None, replaced_at


def _grant(year: DrippingYear, month: Month, credits: int, now: datetime) -> Grant:
    # Nobody came while the month lasted: its credits would be dead on arrival.
    late = month.end <= now
    return Grant(
        tenant_id=year.tenant_id,
        reference_id=year.month_reference(month),
        kind="plan.month",
        bucket="subscription",
        credits=credits,
        expires_at=now + _length(year, month) if late else month.end + RENEWAL_GRACE,
        payment_id=year.payment_id,
        description=f"{year.plan_name}, month {month.name} of {MONTHS}",
        razorpay_subscription_id=year.razorpay_subscription_id,
        period_start=month.start,
        period_end=month.end,
    )


def _length(year: DrippingYear, month: Month) -> timedelta:
    # A period shorter than twelve months leaves nothing to its last ones, and their credits are owed all the same.
    return (month.end - month.start) or add_months(year.period_start, 1) - year.period_start


def _whole(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
