"""Billing cycles in Indian time: the first starts when it starts, all others at midnight IST."""

import calendar
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

IST = ZoneInfo("Asia/Kolkata")


def boundary(start: int, period: str, interval: int, cycles: int) -> int:
    """The 00:00 IST that ends the given number of cycles after a unix second, without drifting off month ends."""
    first_day = datetime.fromtimestamp(start, UTC).astimezone(IST).date()
    day = _advance(first_day, period, interval * cycles)
    return int(datetime(day.year, day.month, day.day, tzinfo=IST).timestamp())


def _advance(day: date, period: str, count: int) -> date:
    match period:
        case "daily":
            return day + timedelta(days=count)
        case "weekly":
            return day + timedelta(weeks=count)
        case "monthly":
            return _add_months(day, count)
        case "quarterly":
            return _add_months(day, 3 * count)
        case "yearly":
            return _add_months(day, 12 * count)
    raise ValueError(f"unknown period {period!r}")


def _add_months(day: date, months: int) -> date:
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))
