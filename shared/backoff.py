"""How long to wait before the next attempt."""

import random
from datetime import timedelta


def delay(attempt: int, *, base_seconds: float, max_seconds: float) -> timedelta:
    """The wait after attempt 1, 2, …: doubling and capped, with jitter between half and all of it.

    The lower half is kept so that a retry never comes at once (AWS calls this equal jitter).
    """
    ceiling = min(max_seconds, base_seconds * 2 ** min(attempt - 1, 32))
    return timedelta(seconds=ceiling / 2 + random.uniform(0, ceiling / 2))
