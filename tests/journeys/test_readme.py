"""The README's tour and the ingress by hand, typed as they are printed."""

from __future__ import annotations

import re

import pytest

from tests.journeys import shell
from tests.suite.running import HOUSE, RunningSuite

CUT = "---- end of block ----"
VARYING = (
    (re.compile(r"\b(sub|pay|txn|hold)_\w+"), r"\1_…"),
    (re.compile(r"INV/\d{4}/\d{6}"), "INV/…"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "<moment>"),
)


def blocks(page: str, heading: str) -> list[tuple[str, str]]:
    """What to type, and what the page says comes of it."""
    tour = (HOUSE / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    fenced = re.findall(r"^```(sh|text)\n(.*?)^```", tour, flags=re.MULTILINE | re.DOTALL)
    typed: list[tuple[str, str]] = []
    for kind, content in fenced:
        if kind == "sh":
            typed.append((content, ""))
        else:
            typed[-1] = (typed[-1][0], content)
    return typed


def without_what_varies(text: str) -> list[str]:
    """The lines; ids, moments and psql's padding differ from run to run."""
    for pattern, replacement in VARYING:
        text = pattern.sub(replacement, text)
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.skipif(
    not (HOUSE / ".venv" / ".ok").exists(), reason="the README types .venv/bin, which make setup makes"
)
@pytest.mark.parametrize(
    ("page", "heading", "count"), [("README.md", "Five minutes", 9), ("docs/webhooks.md", "By hand", 2)]
)
def test_a_tour_answers_what_the_page_prints(
    running_suite: RunningSuite, page: str, heading: str, count: int
) -> None:
    tour = blocks(page, heading)
    script = f"echo '{CUT}'\n".join([*(typed for typed, _ in tour), ""])

    told = shell.typed(running_suite, script)

    answers = told.stdout.split(f"{CUT}\n")
    for (typed, expected), answer in zip(tour, answers, strict=False):
        assert without_what_varies(answer) == without_what_varies(expected), f"{typed}\n{told.stderr}"
    assert len(tour) == count
