"""When the silence or the noise of deliveries deserves a person's attention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta, timezone
from typing import Literal

# India has had no summer time since 1945.
INDIA = timezone(timedelta(hours=5, minutes=30))
HOUR = timedelta(hours=1)
# How far back silence is counted: whoever did not look for so long needs no more days.
_DAYS_COUNTED = 14


@dataclass(frozen=True)
class Alert:
    """One condition; the scheduler sends, deduplicates and recovers it by its key."""

    key: str
    severity: Literal["warning", "critical"]
    title: str
    tenant_id: str | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BusinessHours:
    """Opening hours in India on the named days; Monday is 0."""

    opens_at: time
    closes_at: time
    days: frozenset[int]

    def between(self, start: datetime, end: datetime) -> list[timedelta]:
        """The business time of each day from one moment to another."""
        first, last = start.astimezone(INDIA), end.astimezone(INDIA)
        found = []
        for number in range(min((last.date() - first.date()).days, _DAYS_COUNTED) + 1):
            day = first.date() + timedelta(days=number)
            if day.weekday() in self.days:
                opens = datetime.combine(day, self.opens_at, INDIA)
                closes = datetime.combine(day, self.closes_at, INDIA)
                found.append(max(timedelta(), min(closes, last) - max(opens, first)))
        return found


@dataclass(frozen=True)
class Failure:
    """One refused signature: where, for whom if that is known, and when."""

    endpoint: str
    tenant_id: str | None
    created_at: datetime
    path: str | None = None

    @property
    def address(self) -> str:
        """The endpoint, by the last part of its path where a provider has several: each has secrets of its own."""
        return f"{self.endpoint}/{self.path}" if self.path else self.endpoint


def silence(
    now: datetime, last_received_at: datetime | None, hours: BusinessHours, longest: timedelta
) -> list[Alert]:
    """A warning when one day's business was open for a while and nothing came in it, until something comes: night and
    weekend end no silence. A new installation expects nothing."""
    if last_received_at is None or last_received_at >= now:
        return []
    silent = hours.between(last_received_at, now)
    if not any(of_day >= longest for of_day in silent):
        return []
    minutes = int(sum(silent, timedelta()).total_seconds() // 60)
    return [
        Alert(
            key="webhooks.silence",
            severity="warning",
            title=f"No provider event for {minutes} minutes in business hours",
            evidence={"last_received_at": last_received_at.isoformat(), "silent_minutes": str(minutes)},
        )
    ]


def signature_spikes(failures: Sequence[Failure], now: datetime, threshold: int) -> list[Alert]:
    """One critical alert for each tenant over the threshold, and one for each endpoint that is over it without them.

    It holds until no hour that ended within the last one had so many: an attack at the threshold's own pace is one
    alert, not one every few minutes.
    """
    tenants = _spiking(failures, lambda failure: failure.tenant_id, now, threshold)
    others = [failure for failure in failures if failure.tenant_id not in tenants]
    endpoints = _spiking(others, lambda failure: failure.address, now, threshold)
    alerts = [
        Alert(
            key=f"webhooks.signature_spike:tenant:{tenant}",
            severity="critical",
            title=f"Signature-failure spike: {count} in an hour for one tenant",
            tenant_id=tenant,
            evidence={"failures": str(count), "tenant_id": tenant},
        )
        for tenant, count in sorted(tenants.items())
    ]
    return alerts + [
        Alert(
            key=f"webhooks.signature_spike:endpoint:{endpoint}",
            severity="critical",
            title=f"Signature-failure spike on {endpoint}: {count} in an hour",
            evidence={"failures": str(count), "endpoint": endpoint},
        )
        for endpoint, count in sorted(endpoints.items())
    ]


def _spiking(
    failures: Sequence[Failure], key: Callable[[Failure], str | None], now: datetime, threshold: int
) -> dict[str, int]:
    """The most failures in any hour that ended within the last one, of those that had enough of them."""
    moments: dict[str, list[datetime]] = {}
    for failure in sorted(failures, key=lambda failure: failure.created_at):
        if name := key(failure):
            moments.setdefault(name, []).append(failure.created_at)
    peaks = {name: _peak(of_one, now) for name, of_one in moments.items()}
    return {name: peak for name, peak in peaks.items() if peak >= threshold}


def _peak(moments: Sequence[datetime], now: datetime) -> int:
    highest = first = 0
    for place, moment in enumerate(moments):
        while moments[first] <= moment - HOUR:
            first += 1
        if moment > now - HOUR:
            highest = max(highest, place - first + 1)
    return highest


def dead_letters(waiting: int, threshold: int) -> list[Alert]:
    """A warning when the queue of dead letters grows beyond what happens now and then."""
    if waiting <= threshold:
        return []
    return [
        Alert(
            key="webhooks.dead_letters",
            severity="warning",
            title=f"{waiting} webhook events wait for a person in the dead-letter queue",
            evidence={"waiting": str(waiting)},
        )
    ]
