"""docs/scheduler.md says what the code does: jobs, settings, and every alert that a room reports."""

import re
from pathlib import Path

from services.scheduler.config import SchedulerSettings
from services.scheduler.jobs import JOBS
from shared.config import RoomSettings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scheduler.md").read_text()
ALERT = re.compile(r'f?"((?:ledger|subscriptions|webhooks|scheduler)\.[a-z_.]+[:a-z_]*)[{"]')


def table(heading: str) -> list[list[str]]:
    """The cells of a section's table."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:].split("|")] for line in lines[2:]]


def test_the_jobs_are_those_of_the_code() -> None:
    told = [row[:4] for row in table("Jobs")]
    assert told == [
        [
            f"`{job.name}`",
            f"`{job.schedule}`",
            ", ".join(f"{target.room} `{target.method}`" for target in job.targets),
            f"{job.deadline.total_seconds():.0f} s",
        ]
        for job in JOBS
    ]


def test_the_settings_are_those_of_the_code() -> None:
    fields = {
        name: field
        for name, field in SchedulerSettings.model_fields.items()
        if name not in RoomSettings.model_fields
        and not name.endswith(("_listen", "_address", "_database_url"))
    }
    told = {row[0].strip("`").lower(): (row[1], row[2]) for row in table("Settings")}
    assert told.keys() == fields.keys()
    for name, (default, bounds) in told.items():
        given = fields[name].default
        assert default == ("none" if given is None else str(given))
        limits = {
            key: getattr(each, key)
            for each in fields[name].metadata
            for key in ("ge", "le")
            if hasattr(each, key)
        }
        assert bounds == (f"{limits['ge']} to {limits['le']}" if limits else "")


def test_every_alert_that_a_room_reports_is_explained() -> None:
    """By the literals of the keys: what begins with a room's name and is no request, role or lock."""
    explained = {
        re.split(r"[:<]", key)[0] for row in table("Alerts") for key in re.findall(r"`([^`]+)`", row[0])
    }
    reported = {
        re.split(r"[:{]", key)[0]
        for folder in ("rpc", "rpc.py", "rules", "rules.py", "actions/sync")
        for room in ("ledger", "subscriptions", "webhooks", "scheduler")
        for path in _modules(ROOT / "services" / room / folder)
        for key in ALERT.findall(path.read_text())
    }
    reported -= {"subscriptions.", "subscriptions.sync"}  # a finding's check follows; the walk's own name
    assert len(reported) > 20
    assert {key for key in reported if key not in explained and key.rstrip(".") not in explained} == set()


def _modules(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place] if place.exists() else []
