"""docs/billctl.md names every command there is, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import typer

from billctl.app import app
from billctl.looks import health
from billctl.screen import harmless, shown
from tests.billctl.conftest import Shell
from tests.suite.running import HOUSE

PAGE = HOUSE / "docs" / "billctl.md"


def commands(group: typer.Typer, before: str = "billctl") -> Iterator[str]:
    for each in group.registered_commands:
        yield f"{before} {each.name}"
    for sub in group.registered_groups:
        assert sub.typer_instance is not None
        yield from commands(sub.typer_instance, f"{before} {sub.name}")


def test_the_page_names_every_command_there_is_and_no_other() -> None:
    named = re.findall(r"^\| `(billctl [a-z -]+?)(?: [A-Z\[\"][^`]*)?` \|", PAGE.read_text(), re.MULTILINE)

    assert sorted(named) == sorted(commands(app))


def test_help_tells_of_every_group_and_what_the_exit_status_means(shell: Shell) -> None:
    done = shell.run("--help")

    groups = {name.split()[1] for name in commands(app)}
    listed = {line.split()[1] for line in done.stdout.splitlines() if re.match(r"│ [a-z]", line)}
    assert (done.returncode, done.stderr) == (0, "")
    assert groups <= listed
    assert "4 only partly done" in " ".join(done.stdout.split())


def test_the_page_says_when_each_signal_rings() -> None:
    page = PAGE.read_text()

    assert f"{len(health.LOOKS)} signals" in page


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("plain", "plain"),
        ("[red]no markup[/red]", "[red]no markup[/red]"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\r\nb\u202ec\u2028", "a\\r\\nb\\u202ec\\u2028"),
        ("क्\u200dष ₹", "क्\u200dष ₹"),
    ],
    ids=["plain", "markup", "escape", "lines", "devanagari"],
)
def test_what_is_not_seen_is_shown_by_its_number(value: str, said: str) -> None:
    assert harmless(shown(value)) == said
