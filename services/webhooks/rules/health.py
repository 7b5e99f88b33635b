"""When the silence or the noise of deliveries deserves a person's attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

INDIA = ZoneInfo("Asia/Kolkata")


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

    def open_since(self, now: datetime) -> datetime | None:
        """When today's business began, or None outside business hours."""
        here = now.astimezone(INDIA)
        if here.weekday() not in self.days or not self.opens_at <= here.time() < self.closes_at:
            return None
        return here.replace(
            hour=self.opens_at.hour, minute=self.opens_at.minute, second=self.opens_at.second, microsecond=0
        )


@dataclass(frozen=True)
class FailureCount:
    """Signature failures of the last hour at one endpoint, for one tenant or for none known."""

    endpoint: str
    tenant_id: str | None
    failures: int


def silence(
    now: datetime, last_received_at: datetime | None, hours: BusinessHours, longest: timedelta
) -> list[Alert]:
    """A warning when business has been open for a while and nothing came in it; a new installation expects nothing."""
    opened_at = hours.open_since(now)
    if opened_at is None or last_received_at is None:
        return []
    silent_for = now - max(opened_at, last_received_at)
    if silent_for < longest:
        return []
    minutes = int(silent_for.total_seconds() // 60)
    return [
        Alert(
            key="webhooks.silence",
            severity="warning",
            title=f"No provider event for {minutes} minutes in business hours",
            evidence={"last_received_at": last_received_at.isoformat(), "silent_minutes": str(minutes)},
        )
    ]


def signature_spikes(counts: Sequence[FailureCount], threshold: int) -> list[Alert]:
    """One critical alert for each tenant over the threshold, and one for each endpoint that is over it without them."""
    by_tenant: dict[str, int] = {}
    for count in counts:
        if count.tenant_id:
            by_tenant[count.tenant_id] = by_tenant.get(count.tenant_id, 0) + count.failures
    alerts = [
        Alert(
            key=f"webhooks.signature_spike:tenant:{tenant}",
            severity="critical",
            title=f"Signature-failure spike: {failures} in an hour for one tenant",
            tenant_id=tenant,
            evidence={"failures": str(failures), "tenant_id": tenant},
        )
        for tenant, failures in sorted(by_tenant.items())
        if failures >= threshold
    ]
    told = {alert.tenant_id for alert in alerts}
    by_endpoint: dict[str, int] = {}
    for count in counts:
        if count.tenant_id is None or count.tenant_id not in told:
            by_endpoint[count.endpoint] = by_endpoint.get(count.endpoint, 0) + count.failures
    return alerts + [
        Alert(
            key=f"webhooks.signature_spike:endpoint:{endpoint}",
            severity="critical",
            title=f"Signature-failure spike on {endpoint}: {failures} in an hour",
            evidence={"failures": str(failures), "endpoint": endpoint},
        )
        for endpoint, failures in sorted(by_endpoint.items())
        if failures >= threshold
    ]


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
