"""A running suite's pages of /metrics, after a little of everything that needs no person."""

from collections.abc import Mapping

import httpx
import pytest

from tests.deploy import exported
from tests.deploy.exported import Shown
from tests.suite.running import RunningSuite


@pytest.fixture(scope="session")
def pages(running_suite: RunningSuite) -> Mapping[str, str]:
    """What each room shows, by room."""
    return {
        room: httpx.get(url, timeout=10).raise_for_status().text
        for room, url in running_suite.runtime["metrics_urls"].items()
    }


@pytest.fixture(scope="session")
def shown(pages: Mapping[str, str]) -> Mapping[str, Shown]:
    return {room: exported.read(page) for room, page in pages.items()}
