"""Every alert rule asks for what is exported, says what to do, and was tried at its threshold."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from billing.ledger.v1.ledger_pb2_grpc import LedgerServiceServicer

from services.scheduler.jobs import JOBS
from tests.deploy.exported import SERIES, SYNTHETIC, TARGET_LABELS, Shown
from tests.deploy.rules import PROMETHEUS, RULES, UNIT_TESTS, Asked, anchors, asked_by_rules, groups, seconds
from tests.house.house import ROOMS, ROOT

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH")

# What those who run other billing suites know these by: name, threshold, duration and severity are a promise.
KEPT = {
    "WebhookDeadLetterQueueHigh": ("webhook_dead_letter_queue_size > 10", "5m", "warning"),
    "WebhookRetryFailureRateHigh": (
        'rate(provider_webhook_events_total{status="failed"}[5m]) > 0.2',
        "10m",
        "critical",
    ),
    "GracePeriodExpirationsHigh": ("rate(grace_periods_expired_total[1h]) * 3600 > 10", "1h", "warning"),
}
# Values that a suite shows only when something happened; all others that a rule asks for have to be there.
SHOWN_WHEN_IT_HAPPENS = {
    ("grpc_server_handled_total", "grpc_code"),
    ("grpc_server_handled_total", "grpc_method"),
    ("grpc_server_handled_total", "grpc_service"),
    ("grpc_server_handling_seconds_bucket", "grpc_method"),
    ("grpc_server_handling_seconds_bucket", "grpc_service"),
    ("billing_integrity_findings_open", "severity"),
    ("billing_provider_calls_total", "outcome"),
    ("billing_scheduler_job_last_success_timestamp_seconds", "job"),
}


def promtool(*arguments: str) -> str:
    told = subprocess.run(
        [str(PROMTOOL), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yaml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yaml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    assert "SUCCESS" in promtool(*arguments)


@pytest.mark.parametrize("name", KEPT)
def test_a_rule_that_others_know_is_as_they_know_it(name: str) -> None:
    rule = RULES[name]

    assert (rule["expr"], rule["for"], rule["labels"]["severity"]) == KEPT[name]


def test_a_name_is_used_once_and_a_group_has_its_interval() -> None:
    names = [rule["alert"] for group in groups() for rule in group["rules"]]

    assert len(names) == len(set(names)) == len(RULES)
    assert all(group.keys() == {"name", "interval", "rules"} for group in groups())
    assert all(seconds(group["interval"]) == 30 for group in groups())


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_a_severity_a_time_and_words(name: str) -> None:
    rule: dict[str, Any] = RULES[name]

    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"[A-Z][A-Za-z]+", name)
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert seconds(rule.get("for", "0s")) <= 2 * 3600
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert "$value" in rule["annotations"]["description"]
    assert "{{" not in rule["annotations"]["summary"]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_where_to_read_on(name: str) -> None:
    page, _, anchor = RULES[name]["annotations"]["runbook"].partition("#")

    assert page in {"docs/runbooks.md", "docs/monitoring.md"}
    assert anchor in anchors((ROOT / page).read_text())


ASKED = asked_by_rules()


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.place)
def test_a_rule_names_only_metrics_and_labels_that_are_exported(asked: Asked) -> None:
    available = set[str]()
    for selector in asked.expression.selectors:
        assert selector.metric in SERIES, f"nobody exports {selector.metric}"
        labels = SERIES[selector.metric] | TARGET_LABELS
        assert {matcher.label for matcher in selector.matchers} <= labels, selector
        available |= labels

    assert asked.expression.selectors
    assert asked.expression.labels <= available


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.place)
def test_a_rule_tells_of_labels_that_its_alerts_have(asked: Asked) -> None:
    told = set(re.findall(r"\$labels\.(\w+)", RULES[asked.place]["annotations"]["description"]))
    aggregated = re.match(r"(sum|max|histogram_quantile)\b", RULES[asked.place]["expr"])
    labels = asked.expression.labels - {"le"}
    if not aggregated:
        labels |= {label for metric in asked.expression.metrics for label in SERIES[metric]} | TARGET_LABELS

    assert told <= labels


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.place)
def test_a_value_that_a_rule_asks_for_is_one_that_is_shown(asked: Asked, shown: Mapping[str, Shown]) -> None:
    for selector in asked.expression.selectors:
        for matcher in selector.matchers:
            if selector.metric in SYNTHETIC or (selector.metric, matcher.label) in SHOWN_WHEN_IT_HAPPENS:
                continue
            values = set[str]().union(
                *(page.values.get((selector.metric, matcher.label), ()) for page in shown.values())
            )
            assert set(matcher.value.split("|")) <= values, f"{selector.metric}: {matcher}"


def test_debits_are_counted_under_the_name_that_the_rules_ask_for() -> None:
    service = {"billing.ledger.v1.LedgerService"}
    asked = [
        matcher.value
        for each in ASKED
        for selector in each.expression.selectors
        for matcher in selector.matchers
        if matcher.label == "grpc_service"
    ]

    assert set(asked) == service
    assert hasattr(LedgerServiceServicer, "Debit")


def test_every_job_has_somebody_who_misses_it() -> None:
    missed: dict[str, int] = {}
    for asked in ASKED:
        for selector in asked.expression.selectors:
            if selector.metric == "billing_scheduler_job_last_success_timestamp_seconds":
                [matcher] = selector.matchers
                after = re.search(r"\} > ([\d* ]+)\s", RULES[asked.place]["expr"])
                assert after is not None
                limit = 1
                for factor in after[1].split("*"):
                    limit *= int(factor)
                missed |= dict.fromkeys(matcher.value.split("|"), limit)

    assert missed.keys() == {job.name for job in JOBS}
    for job in JOBS:
        assert missed[job.name] > 1.05 * _longest_gap_seconds(job.schedule) + job.deadline.total_seconds()


def _longest_gap_seconds(schedule: str) -> int:
    """Between two ticks of the schedules that the table has."""
    known = {"* * * * *": 60, "*/5 * * * *": 300, "0 * * * *": 3600}
    return known[schedule] if schedule in known else _daily(schedule)


def _daily(schedule: str) -> int:
    assert re.fullmatch(r"\d+ \d+ \* \* \*", schedule), f"{schedule}: say how often that is"
    return 86400


@pytest.mark.parametrize("name", RULES)
def test_a_rule_was_tried_below_its_threshold_and_above(name: str) -> None:
    tries = [try_ for test in UNIT_TESTS for try_ in test["alert_rule_test"] if try_["alertname"] == name]
    fired = [alert for try_ in tries for alert in try_["exp_alerts"]]

    assert any(not try_["exp_alerts"] for try_ in tries)
    assert fired
    for alert in fired:
        assert alert["exp_labels"]["severity"] == RULES[name]["labels"]["severity"]
        assert alert["exp_annotations"]["runbook"] == RULES[name]["annotations"]["runbook"]
        assert "{{" not in str(alert)


def test_the_tries_are_of_rules_that_exist_and_of_metrics_that_do() -> None:
    series = [each["series"] for test in UNIT_TESTS for each in test["input_series"]]

    assert {try_["alertname"] for test in UNIT_TESTS for try_ in test["alert_rule_test"]} == RULES.keys()
    assert {re.split("[{]", each)[0] for each in series} <= SERIES.keys()


def test_prometheus_asks_every_room_where_compose_puts_it() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "billing"]
    targets = {
        target["labels"]["room"]: address for target in job["static_configs"] for address in target["targets"]
    }

    assert config["rule_files"] == ["alerts.yaml"]
    assert job["honor_labels"] is True
    assert seconds(job["scrape_timeout"]) >= 5
    assert targets.keys() == set(ROOMS)
    for room, address in targets.items():
        listen = services[room]["environment"][f"{room.upper()}_METRICS_LISTEN"]
        assert (address.split(":")[0], address.split(":")[1]) == (room, listen.rpartition(":")[2])
