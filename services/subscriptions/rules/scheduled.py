"""What a scheduled end asks of the provider, and when."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.lifecycle import Subscription


@dataclass(frozen=True)
class End:
    """What we know of the subscription once the provider is to be told."""

    known: KnownSubscription
    at_cycle_end: bool


def end(row: Subscription, live: KnownSubscription | None, now: datetime, lead: timedelta) -> End | None:
    """Tell the provider before it prepares the next debit; after the end rely on the subscription no longer.

    An active one is told to end with its cycle. A trial is cancelled outright, since what the provider does at the
    end of a cycle that never began is not documented: our row keeps its plan until the trial ends.
    """
    ends_at = row.ends_at
    if live is None or live.ended or not row.cancel_at_period_end or ends_at is None:
        return None
    if ends_at <= now:
        if live.released:
            return None
        released = replace(
            live, released_at=now, released_paid_count=live.paid_count, released_by="cancellation"
        )
        return End(released, at_cycle_end=False)
    if ends_at - lead <= now and live.end_requested_at is None and live.status in ("active", "authenticated"):
        return End(replace(live, end_requested_at=now), at_cycle_end=live.status == "active")
    return None
