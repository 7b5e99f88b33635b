"""When credits that were paid for expire."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.subscriptions.rules.catalog import Cycle

# Debits start a day or more after the cycle ends, so credits outlive it by this much.
RENEWAL_GRACE = timedelta(hours=48)
_FALLBACK = {"monthly": timedelta(days=30), "yearly": timedelta(days=365)}


@dataclass(frozen=True)
class PaidPeriod:
    """What a charge paid for, and until when its credits can be spent."""

    start: datetime
    end: datetime
    credits_expire_at: datetime
    # The period was over before we heard of it: its credits would have been dead on arrival.
    late: bool


def paid_period(
    start: datetime | None, end: datetime | None, cycle: Cycle, received_at: datetime
) -> PaidPeriod:
    """The provider's own period, since its cycles are cut at midnight in India and not by date arithmetic."""
    if start is None or end is None or end <= start:
        start, end = received_at, received_at + _FALLBACK[cycle]
    if end <= received_at:
        return PaidPeriod(start, end, received_at + (end - start), late=True)
    return PaidPeriod(start, end, end + RENEWAL_GRACE, late=False)
