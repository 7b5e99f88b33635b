"""Takes a backup at every full interval of the UTC day, for as long as it is left to."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Event

from shared import clock
from suite.backups.errors import BackupFailed

RETRY = timedelta(minutes=5)
# Short, so that a machine that slept, or a clock that was set, is noticed.
LOOK_SECONDS_MAX = 30.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def interval(text: str) -> timedelta:
    """`6h`; also s, m and d."""
    found = re.fullmatch(r"([1-9]\d{0,5})([smhd])", text)
    if found is None:
        raise ValueError("a number with s, m, h or d, as in 6h")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def next_due(newest: datetime | None, now: datetime, every: timedelta) -> datetime:
    """Now, if none was taken since the last full interval; else the next one: 00, 06, 12 and 18 UTC for six hours."""
    last = now - (now - _EPOCH) % every
    return last + every if newest is not None and newest >= last else now


def keep_on(
    take: Callable[[], None],
    newest: Callable[[], datetime | None],
    every: timedelta,
    *,
    say: Callable[[str], None],
    stop: Event,
) -> None:
    """Returns when `stop` is set. One that failed is said, and tried again before its interval is over."""
    failed_at: datetime | None = None
    while not stop.is_set():
        now = clock.now()
        due = next_due(newest(), now, every)
        if failed_at is not None:
            due = max(due, failed_at + min(RETRY, every / 4))
        if (wait := (due - now).total_seconds()) > 0:
            stop.wait(min(wait, LOOK_SECONDS_MAX))
            continue
        try:
            take()
        except BackupFailed as error:
            failed_at = clock.now()
            say(f"the backup failed: {error}")
        else:
            failed_at = None
