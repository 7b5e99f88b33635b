"""The main job through the whole suite: what `make demo` tells, and what a request id shows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.suite.running import HOUSE, RunningSuite


@pytest.fixture(scope="module")
def told(running_suite: RunningSuite) -> subprocess.CompletedProcess[str]:
    """What the demo printed."""
    return subprocess.run(
        [sys.executable, "-m", "suite", "demo"],
        cwd=HOUSE,
        env=running_suite.environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_the_demo_tells_the_main_job_to_its_end(told: subprocess.CompletedProcess[str]) -> None:
    assert told.returncode == 0, told.stdout + told.stderr
    assert "Every step was what it should be." in told.stdout


@pytest.mark.usefixtures("told")
def test_one_request_id_follows_a_delivery_from_the_ingress_to_the_ledger(
    running_suite: RunningSuite,
) -> None:
    lines = [line.partition("| ")[2] for line in running_suite.output().splitlines()]
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    grants = [
        each for each in entries if each.get("method", "").endswith("/GrantCredits") and each["code"] == "OK"
    ]
    assert grants, "the demo before this test granted credits"

    followed = [
        {each["room"] for each in entries if each.get("request_id") == grant["request_id"]}
        for grant in grants
    ]

    assert {"webhooks", "subscriptions", "ledger"} in followed
