"""How charging goes: what must not wait for the nightly audit, and the numbers that dashboards show."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.subscriptions.rules.alerts import STAGES
from services.subscriptions.rules.findings import OpenFinding

HOUR = timedelta(hours=1)
# Tasks are attempted every minute: what waits so long has nobody who attempts it.
TASKS_OVERDUE = timedelta(hours=1)
# Longer than ten eager attempts take.
NOTICES_OWED_LONG = timedelta(days=1)


@dataclass(frozen=True)
class OpenDispute:
    """A dispute that is not closed."""

    id: str
    tenant_id: str | None
    payment_id: str
    phase: str
    status: str
    amount_paise: int
    created_at: datetime


@dataclass(frozen=True)
class Overdue:
    """Tasks that somebody should have attempted long ago; none is the first of them."""

    count: int = 0
    oldest_due_at: datetime | None = None


@dataclass(frozen=True)
class Health:
    """How charging goes at one moment."""

    succeeded: int
    failed: int
    fails_often: bool
    disputes: list[OpenDispute]
    open_disputes: int
    findings: list[OpenFinding]
    more_findings: int
    critical: int
    abandoned: int
    overdue: Overdue
    notices_owed_long: int


def fails_often(succeeded: int, failed: int, *, pct: int, at_least: int) -> bool:
    """Whether more of an hour's charges failed than should, and enough of them that it is no chance."""
    return failed >= at_least and failed * 100 > pct * (succeeded + failed)


# Past due and no step due yet; then by the step that was due last. Who is past the last one was forgotten.
PAST_DUE_STAGES = ("none", *STAGES, "overdue")


@dataclass(frozen=True)
class Gauges:
    """What Prometheus shows of the room's tables."""

    pending: int
    due: int
    abandoned: int
    oldest_due_at: datetime | None
    # By stage, each of them named.
    past_due: Mapping[str, int]
    notices_owed: int
    disputes: int
    # By check and severity.
    findings: Mapping[tuple[str, str], int]
    # By plan and status; None: as they were.
    subscriptions: Mapping[tuple[str, str], int] | None
