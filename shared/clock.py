"""The one clock: aware UTC, moved as a whole by the test clock."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

Clock = Callable[[], datetime]

_cached: tuple[tuple[str, int, int], timedelta] | None = None


def now() -> datetime:
    """The present moment in UTC, plus the test clock's offset when one is set."""
    return datetime.now(UTC) + offset()


def offset() -> timedelta:
    """How far the test clock is ahead of the wall clock; zero unless BILLING_TEST_CLOCK names a readable file."""
    global _cached
    path = os.environ.get("BILLING_TEST_CLOCK")
    if not path:
        return timedelta()
    try:
        status = os.stat(path)
        # The inode as well: two moves within one tick of the file system's clock have the same time.
        version = (path, status.st_ino, status.st_mtime_ns)
        if _cached is None or _cached[0] != version:
            _cached = (version, timedelta(seconds=float(Path(path).read_text() or 0)))
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"BILLING_TEST_CLOCK: {path} must be a file that holds a number of seconds"
        ) from error
    return _cached[1]


def move_to(path: Path, ahead: timedelta) -> None:
    """Sets the test clock's file; readers see the old offset or the new one, never half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(str(ahead.total_seconds()))
    fresh.replace(path)
