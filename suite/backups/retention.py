"""Which backups are no longer needed. Pure: moments in, moments out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta


@dataclass(frozen=True)
class Keep:
    """Every backup for so many days, the first of each UTC day for more, the first of each ISO week for most."""

    every_days: int = 7
    daily_days: int = 30
    weekly_days: int = 365

    @classmethod
    def parse(cls, text: str) -> Keep:
        """`7/30/365`."""
        days = re.fullmatch(r"(\d{1,5})/(\d{1,5})/(\d{1,5})", text)
        kept = cls(*(int(number) for number in days.groups())) if days else None
        if kept is None or not 1 <= kept.every_days <= kept.daily_days <= kept.weekly_days:
            raise ValueError("three numbers of days, none less than the one before, as in 7/30/365")
        return kept


def expired(taken: Collection[datetime], now: datetime, keep: Keep) -> set[datetime]:
    """Those to delete; never the newest.

    A week's first is also its day's first, and which is first does not depend on what was deleted after it: so it
    makes no difference whether one asks after each backup or once a year.
    """
    if not taken:
        return set()
    kept = {max(taken)}
    kept |= {moment for moment in taken if now - moment <= timedelta(days=keep.every_days)}
    for first, days in (
        (_firsts(taken, _day), keep.daily_days),
        (_firsts(taken, _week), keep.weekly_days),
    ):
        kept |= {moment for moment in first if now - moment <= timedelta(days=days)}
    return set(taken) - kept


def _firsts(taken: Collection[datetime], period: Callable[[datetime], date]) -> set[datetime]:
    found: dict[date, datetime] = {}
    for moment in sorted(taken):
        found.setdefault(period(moment), moment)
    return set(found.values())


def _day(moment: datetime) -> date:
    return moment.astimezone(UTC).date()


def _week(moment: datetime) -> date:
    day = _day(moment)
    return day - timedelta(days=day.weekday())
