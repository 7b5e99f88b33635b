"""What the ledger tells Prometheus beside its RPCs.

What the write path counts is noted there in plain values and counted when somebody looks, or when much was noted: a
histogram costs as much as a debit's rules where its code is not in the processor's cache.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

from services.ledger.rules.model import Noted, Outcome
from services.ledger.rules.requests import Group, Operation
from services.ledger.rules.usage import NotAuthorized
from services.ledger.store import gauges
from shared import clock, metrics
from shared.errors import BillingError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

# What is noted and not yet counted: batches as (operations, seconds), and answers by kind and outcome.
_NOTED_MAX = 256
_batches: list[tuple[int, float]] = []
_answers: dict[tuple[str, str], int] = {}


class _Registry(CollectorRegistry):
    def collect(self) -> Iterable[Metric]:
        """Everything, with what was noted since."""
        _count_noted()
        return super().collect()


registry = _Registry()

Answered: TypeAlias = tuple[Sequence[Operation], Sequence[object]]

# A union would be made anew for every answer.
_DONE = (Outcome, Noted)

_lane_waiting = Gauge(
    "billing_ledger_lane_waiting", "Operations that wait on a lane", ["lane"], registry=registry
)
_batch_operations = Histogram(
    "billing_ledger_batch_operations",
    "Operations that were written together",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    registry=registry,
)
_batch_seconds = Histogram(
    "billing_ledger_batch_seconds",
    "From the begin of a batch's transaction to its commit",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=registry,
)
_operations = Counter(
    "billing_ledger_operations",
    "Operations by kind and outcome: ok, replayed, or why it was refused",
    ["kind", "outcome"],
    registry=registry,
)
grace_periods_expired = Counter(
    "grace_periods_expired", "Grace periods whose end was written down", registry=registry
)
_grace_periods_active = Gauge(
    "grace_periods_active_total",
    "Tenants that a grace period lets use more of a limit now",
    ["limit_key"],
    registry=registry,
)
_holds_open = Gauge(
    "billing_ledger_holds_open", "Holds that are neither closed nor lapsed", registry=registry
)
_holds_overdue = Gauge(
    "billing_ledger_holds_overdue",
    "Holds of active accounts that should have lapsed an hour ago or longer",
    registry=registry,
)
_accounts_frozen = Gauge(
    "billing_ledger_accounts_frozen", "Accounts whose credits stand still", registry=registry
)


class _Children(dict[tuple[str, str], Counter]):
    """Counters of operations by kind and outcome; asking for a child takes longer than counting."""

    def __missing__(self, key: tuple[str, str]) -> Counter:
        child = self[key] = _operations.labels(*key)
        return child


_by_kind_and_outcome = _Children()


def watch_lane(number: int, depth: Callable[[], int]) -> None:
    """Shows how many operations wait on this lane, asked for when somebody looks."""
    _lane_waiting.labels(number).set_function(depth)


def batch_written(answered: Iterable[Answered], seconds: float) -> None:
    """Counts a batch and what each of its operations was answered."""
    _batches.append((_note(answered), seconds))
    if len(_batches) >= _NOTED_MAX:
        _count_noted()


def operations_failed(operations: Sequence[Operation], error: Exception) -> None:
    """Counts operations that were given up or not taken."""
    _note([(operations, [error] * len(operations))])


async def refresh(engine: "AsyncEngine") -> None:
    """Reads what lies in the database; what is no longer there is no longer shown."""
    async with engine.connect() as db:
        found = await gauges.read(db, clock.offset())
    _grace_periods_active.clear()
    for limit_key, count in found.grace_periods:
        _grace_periods_active.labels(limit_key).set(count)
    _holds_open.set(found.holds_open)
    _holds_overdue.set(found.holds_overdue)
    _accounts_frozen.set(found.accounts_frozen)
    metrics.show_findings(
        "ledger", {(check_type, severity): count for check_type, severity, count in found.findings}
    )


def _count_noted() -> None:
    for size, seconds in _batches:
        _batch_operations.observe(size)
        _batch_seconds.observe(seconds)
    for key, count in _answers.items():
        _by_kind_and_outcome[key].inc(count)
    _batches.clear()
    _answers.clear()


def _note(answered: Iterable[Answered]) -> int:
    size = 0
    for operations, answers in answered:
        for operation, answer in zip(operations, answers, strict=True):
            if isinstance(operation, Group):
                told = answer if isinstance(answer, list) else [answer] * len(operation.debits)
                for debit, each in zip(operation.debits, told, strict=True):
                    key = debit.kind, _outcome(each)
                    _answers[key] = _answers.get(key, 0) + 1
                size += len(operation.debits)
            else:
                key = operation.kind, _outcome(answer)
                _answers[key] = _answers.get(key, 0) + 1
                size += 1
    return size


def _outcome(answer: object) -> str:
    if isinstance(answer, _DONE):
        return "replayed" if answer.replayed else "ok"
    if isinstance(answer, NotAuthorized):
        return answer.refusal.reason
    if isinstance(answer, BillingError):
        return answer.reason
    return "INTERNAL" if isinstance(answer, Exception) else "ok"
