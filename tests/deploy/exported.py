"""What the rooms export: as their code declares it, and as a running suite shows it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from services.ledger import metrics as ledger
from services.scheduler import metrics as scheduler
from services.subscriptions import metrics as subscriptions
from services.webhooks import metrics as webhooks
from shared import metrics as shared

# Python's own numbers of a process; whoever wants them has dashboards for them.
NOT_OURS = ("python_", "process_")
# What Prometheus adds to every series, and the series that it makes itself.
TARGET_LABELS = {"job", "instance", "room"}
SYNTHETIC = {"up": TARGET_LABELS, "ALERTS": {"alertname", "alertstate", "severity"}}


@dataclass(frozen=True)
class Family:
    """One metric as its documentation names it: `_total` belongs to a counter's name."""

    name: str
    type: str
    labels: frozenset[str]

    def series(self) -> Mapping[str, frozenset[str]]:
        """The names that an expression may use, with their labels."""
        if self.type == "histogram":
            return {
                f"{self.name}_bucket": self.labels | {"le"},
                f"{self.name}_sum": self.labels,
                f"{self.name}_count": self.labels,
            }
        return {self.name: self.labels}


def _declared(collectors: Iterable[object]) -> list[Family]:
    families = []
    for collector in collectors:
        if isinstance(collector, MetricWrapperBase):
            [told] = collector.describe()
            name = f"{told.name}_total" if told.type == "counter" else told.name
            families.append(Family(name, told.type, frozenset(collector._labelnames)))
    return [family for family in families if not family.name.startswith(NOT_OURS)]


def _in_module(module: object) -> list[Family]:
    return _declared(vars(module).values())


def _in_registry(registry: CollectorRegistry) -> list[Family]:
    return _declared(set(registry._names_to_collectors.values()))


# Counted by shared code in each room, or in those that look for findings.
EVERY_ROOM = [family for family in _in_module(shared) if family.name != "billing_integrity_findings_open"]
FINDINGS = [family for family in _in_module(shared) if family.name == "billing_integrity_findings_open"]
BY_ROOM: Mapping[str, list[Family]] = {
    "ledger": [*EVERY_ROOM, *FINDINGS, *_in_registry(ledger.registry)],
    "subscriptions": [*EVERY_ROOM, *FINDINGS, *_in_module(subscriptions)],
    "webhooks": [*EVERY_ROOM, *_in_registry(webhooks.Metrics().registry)],
    "scheduler": [*EVERY_ROOM, *_in_registry(scheduler.registry)],
}
FAMILIES: Mapping[str, Family] = {family.name: family for families in BY_ROOM.values() for family in families}
SERIES: Mapping[str, frozenset[str]] = {
    name: labels for family in FAMILIES.values() for name, labels in family.series().items()
} | {name: frozenset(labels) for name, labels in SYNTHETIC.items()}


@dataclass(frozen=True)
class Shown:
    """One room's page: families with their type, and every value of every label of every series."""

    types: Mapping[str, str]
    values: Mapping[tuple[str, str], frozenset[str]]  # by (series, label)
    labels: Mapping[str, frozenset[str]]  # by series


def read(page: str) -> Shown:
    """What a page of /metrics says of our metrics."""
    types: dict[str, str] = {}
    values: dict[tuple[str, str], set[str]] = {}
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        if family.name.startswith(NOT_OURS):
            continue
        types[f"{family.name}_total" if family.type == "counter" else family.name] = family.type
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
            for label, value in sample.labels.items():
                values.setdefault((sample.name, label), set()).add(value)
    return Shown(
        types,
        {key: frozenset(found) for key, found in values.items()},
        {name: frozenset(found) for name, found in labels.items()},
    )
