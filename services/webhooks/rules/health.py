"""When the silence or the noise of deliveries deserves a person's attention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta, timezone
from typing import Literal

# India has had no summer time since 1945.
INDIA = timezone(timedelta(hours=5, minutes=30))
HOUR = timedelta(hours=1)
FIVE_MINUTES = timedelta(minutes=5)
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


@dataclass(frozen=True)
class Spike:
    """How many refused signatures are too many: in an hour, or sooner in five minutes."""

    in_an_hour: int
    in_five_minutes: int


@dataclass(frozen=True)
class _Peak:
    """The most failures in any hour, and in any five minutes, that ended within the last hour."""

    in_an_hour: int
    in_five_minutes: int

    def is_one(self, spike: Spike) -> bool:
        return self.in_an_hour >= spike.in_an_hour or self.in_five_minutes >= spike.in_five_minutes

    def told(self, spike: Spike) -> str:
        if self.in_an_hour >= spike.in_an_hour:
            return f"{self.in_an_hour} in an hour"
        return f"{self.in_five_minutes} in five minutes"


def signature_spikes(failures: Sequence[Failure], now: datetime, spike: Spike) -> list[Alert]:
    """One critical alert for each tenant that has too many, and one for each endpoint that has too many without them.

    It holds until nothing that ended within the last hour was too much: an attack at the threshold's own pace is one
    alert, not one every few minutes.
    """
    tenants = _spiking(failures, lambda failure: failure.tenant_id, now, spike)
    others = [failure for failure in failures if failure.tenant_id not in tenants]
    endpoints = _spiking(others, lambda failure: failure.address, now, spike)
    alerts = [
        Alert(
            key=f"webhooks.signature_spike:tenant:{tenant}",
            severity="critical",
            title=f"Signature-failure spike: {peak.told(spike)} for one tenant",
            tenant_id=tenant,
            evidence={"failures": str(peak.in_an_hour), "tenant_id": tenant},
        )
        for tenant, peak in sorted(tenants.items())
    ]
    return alerts + [
        Alert(
            key=f"webhooks.signature_spike:endpoint:{endpoint}",
            severity="critical",
            title=f"Signature-failure spike on {endpoint}: {peak.told(spike)}",
            evidence={"failures": str(peak.in_an_hour), "endpoint": endpoint},
        )
        for endpoint, peak in sorted(endpoints.items())
    ]


def _spiking(
    failures: Sequence[Failure], key: Callable[[Failure], str | None], now: datetime, spike: Spike
) -> dict[str, _Peak]:
    moments: dict[str, list[datetime]] = {}
    for failure in sorted(failures, key=lambda failure: failure.created_at):
        if name := key(failure):
            moments.setdefault(name, []).append(failure.created_at)
    peaks = {
        name: _Peak(_most(of_one, now, HOUR), _most(of_one, now, FIVE_MINUTES))
        for name, of_one in moments.items()
    }
    return {name: peak for name, peak in peaks.items() if peak.is_one(spike)}


def _most(moments: Sequence[datetime], now: datetime, span: timedelta) -> int:
    highest = first = 0
    for place, moment in enumerate(moments):
        while moments[first] <= moment - span:
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
