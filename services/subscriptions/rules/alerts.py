"""What deserves a tenant's attention."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.subscriptions.rules.entitlements import ServiceEntitlement
from services.subscriptions.rules.lifecycle import Subscription

TRIAL_ENDING = timedelta(days=3)
NEAR_LIMIT_PCT = 95
# Days since the first failed charge, the latest stage first.
STAGES = ((7, "day_7"), (3, "day_3"), (0, "day_1"))


@dataclass(frozen=True)
class Alert:
    """One thing that deserves attention; `stage` only for past_due."""

    kind: str
    message: str
    since: datetime | None = None
    stage: str | None = None
    subject: str = ""


def alerts(
    row: Subscription,
    services: Iterable[ServiceEntitlement],
    usage: Mapping[str, int],
    paused_addons: Iterable[tuple[str, datetime]],
    now: datetime,
) -> list[Alert]:
    """Everything that holds now, the most urgent first."""
    found = []
    if row.status == "past_due" and row.past_due_since is not None:
        days = (now - row.past_due_since).days
        stage = next(name for least, name in STAGES if days >= least or least == 0)
        found.append(
            Alert("past_due", "A payment failed: update the payment method.", row.past_due_since, stage)
        )
    if row.status == "trialing" and row.trial_end is not None and row.trial_end - now <= TRIAL_ENDING:
        found.append(Alert("trial_ending", "The trial ends soon.", row.trial_end))
    found += _limits(services, usage)
    for addon, since in paused_addons:
        found.append(Alert("addon_paused", f"{addon} is paused: credits ran out.", since, subject=addon))
    return found


def _limits(services: Iterable[ServiceEntitlement], usage: Mapping[str, int]) -> Iterable[Alert]:
    for service in services:
        for limit in service.limits:
            path = f"{service.service}.{limit.key}"
            used = usage.get(path)
            if used is None or limit.value is None:
                continue
            if used > limit.value:
                yield Alert("over_limit", f"{used} of {limit.value} {path} are used.", subject=path)
            elif used and used * 100 >= limit.value * NEAR_LIMIT_PCT:
                yield Alert("near_limit_95", f"{used} of {limit.value} {path} are used.", subject=path)
