"""What the rooms of a running suite show is what their code declares, and any Prometheus can read it."""

import shutil
import subprocess
from collections.abc import Mapping

import pytest

from tests.deploy.exported import BY_ROOM, FAMILIES, Shown
from tests.house.house import ROOMS

PROMTOOL = shutil.which("promtool")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_shows_what_it_declares(shown: Mapping[str, Shown], room: str) -> None:
    declared = {family.name: family.type for family in BY_ROOM[room]}
    # Its heading is on every page, for the code that two rooms share.
    page = {name: kind for name, kind in shown[room].types.items() if name in declared or name in FAMILIES}

    assert declared.items() <= page.items()
    assert shown[room].types.keys() - declared.keys() <= {"billing_integrity_findings_open"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_series_has_the_labels_that_are_declared(shown: Mapping[str, Shown], room: str) -> None:
    declared = {name: labels for family in FAMILIES.values() for name, labels in family.series().items()}

    assert shown[room].labels
    for series, labels in shown[room].labels.items():
        assert labels == declared[series], series


@pytest.mark.parametrize("room", ROOMS)
def test_a_heading_stands_once(pages: Mapping[str, str], room: str) -> None:
    headings = [line for line in pages[room].splitlines() if line.startswith("# TYPE ")]

    assert len(headings) == len({heading.split()[2] for heading in headings})


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH")
@pytest.mark.parametrize("room", ROOMS)
def test_promtool_reads_the_page(pages: Mapping[str, str], room: str) -> None:
    told = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=pages[room], capture_output=True, text=True, check=False
    )

    # The one name that its lint dislikes is a promise to dashboards that exist.
    remarks = [
        line for line in told.stderr.splitlines() if not line.startswith("grace_periods_active_total ")
    ]
    assert remarks == []
    assert told.returncode in (0, 3)
