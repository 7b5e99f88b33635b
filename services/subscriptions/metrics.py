"""What the subscriptions room tells Prometheus beside its RPCs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

from services.subscriptions.rules.health import Gauges
from shared import metrics

ROOM = "subscriptions"
PROVIDER = "razorpay"

# refused: it did nothing and never will. unavailable: it did nothing now. unknown: what it did it did not say.
CallOutcome = Literal["ok", "refused", "unavailable", "unknown"]

_calls = Counter(
    "billing_provider_calls",
    "Calls to the provider by outcome: ok, refused, unavailable (it did nothing), unknown (it may have)",
    ["provider", "operation", "outcome"],
)
_call_seconds = Histogram(
    "billing_provider_call_seconds",
    "From asking the provider to its answer, or to giving up",
    ["provider", "operation"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15),
)
_attempts = Counter(
    "billing_reconciliation_attempts",
    "Attempts at tasks that are owed to the ledger or the provider: completed, failed, abandoned",
    ["task_type", "outcome"],
)
_payments = Counter(
    "billing_payments", "Charges that were captured, and attempts to pay that failed", ["outcome"]
)
_notices = Counter("billing_notices", "Attempts to deliver notices to tenants: sent, failed", ["outcome"])

_tasks = Gauge(
    "billing_reconciliation_tasks",
    "Tasks that are not done: pending (of these due: their time has come), or abandoned",
    ["state"],
)
_oldest_due = Gauge(
    "billing_reconciliation_oldest_due_seconds",
    "How long the oldest due task that nothing holds up has waited",
)
_past_due = Gauge(
    "billing_past_due_tenants",
    "Tenants whose charge failed, by the ladder's step that was due last",
    ["stage"],
)
_subscriptions = Gauge("billing_subscriptions", "Tenants by plan and status", ["plan", "status"])
_notices_owed = Gauge("billing_notices_owed", "Notices to tenants that have not arrived")
_disputes_open = Gauge("billing_disputes_open", "Disputes that are not closed")
_plans_shown: set[tuple[str, str]] = set()

for _outcome in ("succeeded", "failed"):
    _payments.labels(_outcome)
for _outcome in ("sent", "failed"):
    _notices.labels(_outcome)


class Call:
    """One call to the provider; whoever makes it says how it ended."""

    outcome: CallOutcome = "unknown"


@contextmanager
def provider_call(operation: str) -> Iterator[Call]:
    """Counts and times the call inside."""
    call, began = Call(), time.monotonic()
    try:
        yield call
    finally:
        _calls.labels(PROVIDER, operation, call.outcome).inc()
        _call_seconds.labels(PROVIDER, operation).observe(time.monotonic() - began)


def task_attempted(task_type: str, outcome: Literal["completed", "failed", "abandoned"]) -> None:
    """One attempt at a task ended."""
    _attempts.labels(task_type, outcome).inc()


def payment_told(outcome: Literal["succeeded", "failed"]) -> None:
    """The provider told of a charge, or of an attempt that failed, for the first time."""
    _payments.labels(outcome).inc()


def notice_attempted(*, arrived: bool) -> None:
    """One attempt to deliver a notice ended."""
    _notices.labels("sent" if arrived else "failed").inc()


def show(gauges: Gauges, now: datetime) -> None:
    """The numbers that lie in the database; combinations that are no longer there fall to 0."""
    _tasks.labels("pending").set(gauges.pending)
    _tasks.labels("due").set(gauges.due)
    _tasks.labels("abandoned").set(gauges.abandoned)
    oldest = gauges.oldest_due_at
    _oldest_due.set(max(0.0, (now - oldest).total_seconds()) if oldest else 0.0)
    for stage, count in gauges.past_due.items():
        _past_due.labels(stage).set(count)
    _notices_owed.set(gauges.notices_owed)
    _disputes_open.set(gauges.disputes)
    metrics.show_findings(ROOM, gauges.findings)
    if gauges.subscriptions is not None:
        _plans_shown.update(gauges.subscriptions)
        for plan, status in _plans_shown:
            _subscriptions.labels(plan, status).set(gauges.subscriptions.get((plan, status), 0))
