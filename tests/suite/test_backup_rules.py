"""When a backup is due and when it is no longer needed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.backups.errors import BackupFailed
from suite.backups.retention import Keep, expired
from suite.backups.rounds import interval, keep_on, next_due

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
SIX_HOURS = timedelta(hours=6)
moments = st.timedeltas(timedelta(), timedelta(days=1000)).map(lambda age: NOON - age)
keeps = st.lists(st.integers(1, 400), min_size=3, max_size=3).map(lambda days: Keep(*sorted(days)))


def every_six_hours(days: int) -> Iterator[datetime]:
    """Back from noon."""
    return (NOON - SIX_HOURS * number for number in range(days * 4))


def test_seven_thirty_and_three_hundred_and_sixty_five_days() -> None:
    taken = set(every_six_hours(800))

    kept = taken - expired(taken, NOON, Keep())

    ages = sorted((NOON - moment).total_seconds() / 86400 for moment in kept)
    assert [age for age in ages if age <= 7] == [number / 4 for number in range(29)]
    daily = [age for age in ages if 7 < age <= 30]
    assert daily == [number + 0.5 for number in range(7, 30)], "midnight's of each day"
    assert {moment.weekday() for moment in kept if NOON - moment > timedelta(days=30)} == {0}
    assert len([age for age in ages if age > 30]) == 48
    assert ages[-1] <= 365


@given(st.sets(moments, min_size=1), moments, keeps)
def test_the_newest_stays_and_asking_again_deletes_no_more(
    taken: set[datetime], now: datetime, keep: Keep
) -> None:
    gone = expired(taken, now, keep)

    assert gone <= taken
    assert max(taken) not in gone
    assert expired(taken, now, keep) == gone
    assert expired(taken - gone, now, keep) == set()


@given(st.sets(moments, min_size=1, max_size=60), keeps)
def test_it_makes_no_difference_how_often_one_asks(taken: set[datetime], keep: Keep) -> None:
    there: set[datetime] = set()
    for moment in sorted(taken):
        there.add(moment)
        there -= expired(there, moment, keep)

    assert there == taken - expired(taken, max(taken), keep)


@given(st.sets(moments, min_size=1), moments, st.timedeltas(timedelta(), timedelta(days=400)), keeps)
def test_what_is_gone_is_never_needed_again(
    taken: set[datetime], now: datetime, later: timedelta, keep: Keep
) -> None:
    assert expired(taken, now, keep) <= expired(taken, now + later, keep)


@pytest.mark.parametrize("text", ["7/30", "30/7/365", "0/30/365", "7/30/365/1", "a/b/c", ""])
def test_what_is_no_retention_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="7/30/365"):
        Keep.parse(text)


@pytest.mark.parametrize(
    ("newest", "due"),
    [
        (None, "now"),
        ("2026-11-21T06:00:01", "2026-11-21T12:00:00"),
        ("2026-11-21T11:59:00", "2026-11-21T12:00:00"),
        ("2026-11-21T05:59:59", "now"),
        ("2026-11-01T00:00:00", "now"),
    ],
)
def test_they_are_due_at_full_intervals_and_a_missed_one_at_once(newest: str | None, due: str) -> None:
    now = datetime(2026, 11, 21, 11, 59, 30, tzinfo=UTC)
    last = datetime.fromisoformat(newest).replace(tzinfo=UTC) if newest else None

    found = next_due(last, now, SIX_HOURS)

    assert found == (now if due == "now" else datetime.fromisoformat(due).replace(tzinfo=UTC))


@pytest.mark.parametrize(("text", "seconds"), [("6h", 21600), ("30m", 1800), ("1d", 86400), ("2s", 2)])
def test_an_interval_is_read(text: str, seconds: int) -> None:
    assert interval(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["6", "h", "0h", "-1h", "6 h", "1.5h"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="6h"):
        interval(text)


def test_one_that_fails_is_said_and_tried_again() -> None:
    stop, said, tries = Event(), [], []

    def take() -> None:
        tries.append(len(tries))
        if len(tries) == 1:
            raise BackupFailed("no space left")
        stop.set()

    keep_on(take, lambda: None, timedelta(seconds=1), say=said.append, stop=stop)

    assert (tries, said) == ([0, 1], ["the backup failed: no space left"])
