"""What deserves a tenant's attention."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.subscriptions.rules.entitlements import ServiceEntitlement
from services.subscriptions.rules.ladder import DOWNGRADE
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import LADDER, Step

TRIAL_ENDING = timedelta(days=3)
NEAR_LIMIT_PCT = 95
# The reminders in their order; the first holds from the first failure on.
STAGES = ("day_1", "day_3", "day_7")


@dataclass(frozen=True)
class Alert:
    """One thing that deserves attention; `stage` only for past_due."""

    kind: str
    message: str
    since: datetime | None = None
    stage: str | None = None
    subject: str = ""


@dataclass(frozen=True)
class Over:
    """More is used than allowed."""

    path: str
    used: int
    allowed: int


def alerts(
    row: Subscription,
    services: Iterable[ServiceEntitlement],
    usage: Mapping[str, int],
    paused_addons: Iterable[tuple[str, datetime]],
    now: datetime,
    ladder: Sequence[Step] = LADDER,
) -> list[Alert]:
    """Everything that holds now, the most urgent first."""
    found = []
    if row.status == "past_due" and row.past_due_since is not None:
        stage = stage_of(now - row.past_due_since, ladder)
        found.append(
            Alert("past_due", "A payment failed: update the payment method.", row.past_due_since, stage)
        )
    if row.status == "trialing" and row.trial_end is not None and row.trial_end - now <= TRIAL_ENDING:
        found.append(Alert("trial_ending", "The trial ends soon.", row.trial_end))
    found += _limits(services, usage)
    for addon, since in paused_addons:
        found.append(Alert("addon_paused", f"{addon} is paused: credits ran out.", since, subject=addon))
    return found


def stage_of(past_due_for: timedelta, ladder: Sequence[Step] = LADDER) -> str:
    """How far the ladder is: the reminder that was due last, and the first one before any."""
    reminders = [step for step in ladder if step.kind != DOWNGRADE]
    reached = sum(past_due_for >= timedelta(days=step.day) for step in reminders)
    return STAGES[min(max(reached, 1), len(STAGES)) - 1]


def over_limits(services: Iterable[ServiceEntitlement], usage: Mapping[str, int]) -> Iterator[Over]:
    """The limits that usage exceeds, as after a downgrade."""
    for service in services:
        for limit in service.limits:
            path = f"{service.service}.{limit.key}"
            used = usage.get(path, 0)
            if limit.value is not None and used > limit.value:
                yield Over(path, used, limit.value)


def _limits(services: Iterable[ServiceEntitlement], usage: Mapping[str, int]) -> Iterator[Alert]:
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
