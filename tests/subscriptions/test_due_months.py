"""Which months are due, and when: decisions on plain values."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.subscriptions.rules import due
from services.subscriptions.rules.due import IST, DrippingYear, add_months, current_month, months_of
from services.subscriptions.rules.funding import Grant
from services.subscriptions.rules.periods import RENEWAL_GRACE
from tests.subscriptions.builders import a_known

HOUR = timedelta(hours=1)
FIRST = datetime(2023, 1, 1, tzinfo=UTC)
MOMENTS = st.timedeltas(timedelta(), timedelta(days=11 * 365)).map(lambda since: FIRST + since)


def a_year(start: datetime, **of: Any) -> DrippingYear:
    """A year as the provider bills it: it ends at midnight in India."""
    end = add_months(start, 12).replace(hour=0, minute=0, second=0, microsecond=0)
    year = DrippingYear(
        payment_id="pay_1",
        tenant_id="tn_1",
        razorpay_subscription_id="sub_1",
        plan_name="Pro",
        credits=15_000,
        amount_paise=2_358_820,
        given_back_paise=0,
        period_start=start,
        period_end=end,
        received_at=start,
    )
    return replace(year, **of)


def owed(
    year: DrippingYear, now: datetime, *, granted: frozenset[str] = frozenset(), **of: Any
) -> list[Grant]:
    """What is due of a year whose subscription is `a_known(**of)`."""
    known = [a_known(id="sub_1", paid_count=1, billing_cycle="yearly", **of)]
    return due.due_months(year, known, granted, now, prorated=True)


@given(MOMENTS)
@example(datetime(2024, 1, 31, 12, tzinfo=UTC))
@example(datetime(2024, 2, 29, 12, tzinfo=UTC))
@example(datetime(2025, 12, 31, 18, 30, tzinfo=UTC))
def test_twelve_months_are_the_year_without_gap_or_overlap(start: datetime) -> None:
    year = a_year(start)

    months = list(months_of(year))

    assert [month.name for month in months] == [str(k) for k in range(1, 13)]
    assert (months[0].start, months[-1].end) == (start, year.period_end)
    assert all(one.end == following.start for one, following in pairwise(months))
    assert all(timedelta(days=26) < month.end - month.start <= timedelta(days=31) for month in months)
    first = start.astimezone(IST)
    for number, month in enumerate(months):
        local = month.start.astimezone(IST)
        assert (local.year * 12 + local.month) - (first.year * 12 + first.month) == number
        # The same day, or the last one of a month that is too short.
        assert local.day == first.day or (local + timedelta(days=1)).day == 1


@pytest.mark.parametrize(
    ("start", "days"),
    [
        (
            datetime(2027, 8, 31, tzinfo=IST),
            [(8, 31), (9, 30), (10, 31), (11, 30), (12, 31), (1, 31), (2, 29)],
        ),
        (
            datetime(2026, 8, 31, tzinfo=IST),
            [(8, 31), (9, 30), (10, 31), (11, 30), (12, 31), (1, 31), (2, 28)],
        ),
        (datetime(2028, 2, 29, tzinfo=IST), [(2, 29), (3, 29), (4, 29)]),
        # 20:00 UTC on the 30th is the 31st in India.
        (datetime(2026, 1, 30, 20, tzinfo=UTC), [(1, 31), (2, 28), (3, 31)]),
    ],
)
def test_a_year_keeps_its_day(start: datetime, days: list[tuple[int, int]]) -> None:
    starts = [month.start.astimezone(IST) for month in months_of(a_year(start))]

    assert [(each.month, each.day) for each in starts][: len(days)] == days


@given(MOMENTS, st.lists(st.integers(0, 500 * 24), max_size=40), st.integers(1, 60 * 24))
def test_any_sequence_of_job_times_grants_each_month_once(
    start: datetime, hours: list[int], after_the_end: int
) -> None:
    year = a_year(start)
    times = sorted([*(start + hour * HOUR for hour in hours), year.period_end + after_the_end * HOUR])
    granted: dict[str, Grant] = {}

    for now in times:
        for grant in owed(year, now, granted=frozenset(granted)):
            assert grant.reference_id not in granted
            assert grant.period_start is not None
            assert grant.period_end is not None
            assert grant.expires_at is not None
            assert grant.expires_at > now >= grant.period_start
            on_time = now < grant.period_end
            length = grant.period_end - grant.period_start
            assert grant.expires_at == (grant.period_end + RENEWAL_GRACE if on_time else now + length)
            granted[grant.reference_id] = grant

    assert set(granted) == {f"razorpay:pay_1:m{k}" for k in range(1, 13)}
    assert sum(grant.credits for grant in granted.values()) == 12 * 15_000


@given(MOMENTS)
def test_a_moment_lies_in_one_month_of_india(now: datetime) -> None:
    month = current_month(now)

    assert month.start <= now < month.end
    assert month.name == f"{now.astimezone(IST):%Y-%m}"
    assert current_month(month.end).start == month.end
    assert current_month(month.end - timedelta(microseconds=1)) == month


def test_the_month_turns_at_midnight_in_india() -> None:
    before = datetime(2026, 11, 30, 18, 29, 59, tzinfo=UTC)

    assert current_month(before).name == "2026-11"
    assert current_month(before + timedelta(seconds=1)).name == "2026-12"


START = datetime(2026, 3, 10, 9, tzinfo=UTC)


def numbers(grants: list[Grant]) -> list[int]:
    return [int(grant.reference_id.rpartition(":m")[2]) for grant in grants]


@pytest.mark.parametrize(
    ("given_back", "months"), [(0, [1, 2, 3]), (2_358_819, [1, 2, 3]), (2_358_820, []), (3_000_000, [])]
)
def test_money_that_went_back_in_full_stops_the_year(given_back: int, months: list[int]) -> None:
    year = a_year(START, given_back_paise=given_back)

    assert numbers(owed(year, START + timedelta(days=70))) == months


def test_what_was_released_is_owed_the_months_that_had_begun() -> None:
    year, released = a_year(START), add_months(START, 2)

    late = START + timedelta(days=300)

    assert numbers(owed(year, late, released_at=released, released_paid_count=1)) == [1, 2]
    assert numbers(owed(year, late, released_at=released + HOUR, released_paid_count=1)) == [1, 2, 3]


def test_what_was_paid_after_the_release_is_owed_in_full() -> None:
    year = a_year(START, received_at=START + timedelta(days=16))

    revived = owed(
        year, START + timedelta(days=300), released_at=START + timedelta(days=14), released_paid_count=0
    )

    assert numbers(revived) == list(range(1, 11))


def replaced(now: datetime, *, paid_count: int, prorated: bool, started_at: datetime) -> list[Grant]:
    older = a_known(id="sub_1", paid_count=1, purchased_at=START)
    newer = a_known(
        id="sub_2",
        intent_id="int_2",
        paid_count=paid_count,
        purchased_at=START + timedelta(days=1),
        started_at=started_at,
    )
    return due.due_months(a_year(START), [newer, older], frozenset(), now, prorated=prorated)


def test_a_newer_purchase_takes_over_once_it_is_paid_and_has_begun() -> None:
    taken_over, now = add_months(START, 2), START + timedelta(days=100)

    assert numbers(replaced(now, paid_count=0, prorated=True, started_at=taken_over)) == [1, 2, 3, 4]
    assert numbers(replaced(now, paid_count=1, prorated=True, started_at=taken_over)) == [1, 2]


@pytest.mark.parametrize(("prorated", "credits"), [(True, 15_000 * 10 // 31), (False, 15_000)])
def test_of_the_month_in_which_it_was_taken_over_the_used_part_is_owed(prorated: bool, credits: int) -> None:
    """Where the money of the rest went back."""
    taken_over = START + timedelta(days=10)

    [grant] = replaced(START + timedelta(days=50), paid_count=1, prorated=prorated, started_at=taken_over)

    assert (numbers([grant]), grant.credits) == ([1], credits)
