"""docs/monitoring.md says of metrics, alerts, dashboards and ports what is true."""

import re

import psycopg

from services.scheduler.jobs import JOBS
from suite import addresses
from tests.deploy.exported import BY_ROOM, FAMILIES
from tests.deploy.rules import DASHBOARDS, PAGE, RULES, anchors
from tests.house.house import ROOMS, ROOT
from tests.suite.running import RunningSuite

TEXT = PAGE.read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its own heading."""
    section = re.split(rf"^## {heading}$", TEXT, maxsplit=1, flags=re.M)[1]
    rows = re.search(r"(?:^\|.*\n)+", section, re.M)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[0].splitlines()[2:]]


def named(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_every_metric_is_described_as_it_is() -> None:
    described = {}
    for name, room, kind, labels, meaning in table("Metrics"):
        assert len(meaning) > 10
        described[name.strip("`")] = (room, kind, named(labels))

    assert described.keys() == FAMILIES.keys()
    for name, (rooms, kind, labels) in described.items():
        family = FAMILIES[name]
        exporting = {room for room, families in BY_ROOM.items() if name in {each.name for each in families}}
        assert (kind, labels) == (family.type, family.labels), name
        assert (set(ROOMS) if rooms == "every room" else set(rooms.split(", "))) == exporting, name


def test_every_alert_is_described_as_it_is() -> None:
    described = {name.strip("`"): (severity, time, link) for name, severity, _, time, link in table("Alerts")}

    assert list(described) == list(RULES)
    for name, (severity, time, link) in described.items():
        rule = RULES[name]
        page, _, anchor = rule["annotations"]["runbook"].removeprefix("docs/").partition("#")
        assert severity == rule["labels"]["severity"], name
        assert time == rule.get("for", "at once"), name
        expected = f"(#{anchor})" if page == PAGE.name else f"({page}#{anchor})"
        assert link.endswith(expected), name


def test_every_dashboard_is_described() -> None:
    assert {(name.strip("`"), title) for name, title, _ in table("Dashboards")} == {
        (name, board["title"]) for name, board in DASHBOARDS.items()
    }


def test_every_address_is_the_one_that_is_used() -> None:
    rows = {row[0]: row for row in table("Where the numbers are")}

    assert rows.keys() == set(ROOMS)
    for room, (_, here, inside, setting) in rows.items():
        usual = addresses.DEFAULTS[f"{room}_metrics"]
        assert here.startswith(usual)
        assert inside.startswith(f"{room}:{usual.rpartition(':')[2]}")
        assert setting == f"`{room.upper()}_METRICS_LISTEN`"


def test_every_metric_that_the_text_names_exists() -> None:
    words = set(re.findall(r"`((?:billing|grpc|webhook|provider|grace_periods)_[a-z_]+)`", TEXT))
    labels = set[str]().union(*(family.labels for family in FAMILIES.values()))

    assert words - labels - {job.name for job in JOBS} <= FAMILIES.keys()


def test_every_statement_of_the_page_runs_as_an_operator(running_suite: RunningSuite) -> None:
    statements = [re.sub(r"\s+", " ", each) for each in re.findall(r"`(SELECT [^`]+)`", TEXT)]

    assert statements
    with psycopg.connect(running_suite.runtime["database"]["urls"]["billing_operator"]) as db:
        for statement in statements:
            assert db.execute(statement.encode()).description


def test_every_link_within_the_pages_leads_to_a_heading() -> None:
    for page, anchor in re.findall(r"\]\(([a-z]*\.?m?d?)#([^)]+)\)", TEXT):
        target = ROOT / "docs" / page if page else PAGE
        assert anchor in anchors(target.read_text()), f"{page}#{anchor}"


def test_the_welcome_says_where_the_numbers_are(running_suite: RunningSuite) -> None:
    said = running_suite.output()

    for room, url in running_suite.runtime["metrics_urls"].items():
        assert re.search(rf"{room} \(metrics\)\s+{re.escape(url)}\n", said)
