"""The dashboards: valid, apart from each other, and every expression asks for what is exported."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.exported import FAMILIES, SERIES, TARGET_LABELS
from tests.deploy.rules import DASHBOARDS, GRAFANA, Asked, asked_by_dashboards, asked_by_rules

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Exported on purpose, and looked at by nobody's dashboard: none as yet. A name here needs its reason beside it.
LOOKED_AT_ELSEWHERE: dict[str, str] = {}

ASKED = asked_by_dashboards()


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, board in DASHBOARDS.items():
        yield from ((name, panel) for panel in board["panels"])


def test_they_are_the_five_that_the_page_describes() -> None:
    assert set(DASHBOARDS) == {
        "overview.json",
        "ledger.json",
        "webhooks.json",
        "subscriptions.json",
        "scheduler.json",
    }
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    assert len({board["title"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_can_be_loaded_anywhere(name: str) -> None:
    board = DASHBOARDS[name]

    assert board.get("id") is None, "an id belongs to one Grafana"
    assert re.fullmatch("[a-z-]{1,40}", board["uid"])
    assert board["editable"] is False
    [variable] = board["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_lie_beside_each_other(name: str) -> None:
    taken = set[tuple[int, int]]()
    for panel in DASHBOARDS[name]["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_panel_has_a_title_a_unit_and_asks_the_chosen_prometheus(name: str) -> None:
    titles = [panel["title"] for panel in DASHBOARDS[name]["panels"]]

    assert len(titles) == len(set(titles))
    for panel in DASHBOARDS[name]["panels"]:
        assert panel["type"] in {"timeseries", "stat"}
        assert panel["datasource"] == DATASOURCE
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert all(target["datasource"] == DATASOURCE for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.place)
def test_a_panel_names_only_metrics_and_labels_that_are_exported(asked: Asked) -> None:
    available = set[str]()
    for selector in asked.expression.selectors:
        assert selector.metric in SERIES, f"nobody exports {selector.metric}"
        labels = SERIES[selector.metric] | TARGET_LABELS
        assert {matcher.label for matcher in selector.matchers} <= labels, selector
        available |= labels

    assert asked.expression.selectors
    assert asked.expression.labels <= available
    assert set(re.findall(r"\{\{(\w+)\}\}", asked.legend)) <= (asked.expression.labels or available)


def test_everything_that_is_exported_is_looked_at() -> None:
    looked_at = set[str]().union(
        *(asked.expression.metrics for asked in (*asked_by_dashboards(), *asked_by_rules()))
    )

    unseen = {name for name, family in FAMILIES.items() if not looked_at & family.series().keys()}

    assert unseen == LOOKED_AT_ELSEWHERE.keys()


def test_compose_gives_grafana_this_prometheus_and_these_dashboards() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())
    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards/billing.yaml").read_text())
    [source], [provider] = sources["datasources"], providers["providers"]

    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    assert provider["allowUiUpdates"] is False
