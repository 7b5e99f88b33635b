"""The alert rules, the dashboards and what they ask, as tests read them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.deploy import promql
from tests.house.house import ROOT

PROMETHEUS = ROOT / "deploy/prometheus"
GRAFANA = ROOT / "deploy/grafana"
PAGE = ROOT / "docs/monitoring.md"

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


@dataclass(frozen=True)
class Asked:
    """One expression and where it stands."""

    place: str
    expression: promql.Expression
    legend: str = ""


def groups() -> list[dict[str, Any]]:
    content: dict[str, list[dict[str, Any]]] = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())
    return content["groups"]


RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in groups() for rule in group["rules"]}
UNIT_TESTS: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.name: json.loads(path.read_text()) for path in sorted(GRAFANA.glob("*.json"))
}


def seconds(duration: str) -> int:
    """`1h30m` in seconds; anything else is a ValueError."""
    match = _DURATION.fullmatch(duration)
    if not duration or match is None:
        raise ValueError(f"{duration!r} is no duration")
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))


def asked_by_rules() -> list[Asked]:
    return [Asked(name, promql.read(rule["expr"])) for name, rule in RULES.items()]


def asked_by_dashboards() -> list[Asked]:
    return list(_panels())


def _panels() -> Iterator[Asked]:
    for name, board in DASHBOARDS.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                place = f"{name}: {panel['title']} ({target['refId']})"
                yield Asked(place, promql.read(target["expr"]), target["legendFormat"])


def anchors(text: str) -> set[str]:
    """What a link may name on a page: its headings as the usual renderers write them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}
