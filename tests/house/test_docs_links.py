"""Every link between our pages leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.house import ROOT

PAGES = [ROOT / "README.md", ROOT / "sandbox" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What its headings are called in addresses, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", LINK.sub("", heading).lower())
        found.add(plain.replace(" ", "-"))
    return found


def broken(page: Path) -> list[str]:
    """Its links to nowhere."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lost = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_link_of_a_page_is_broken(page: Path) -> None:
    assert broken(page) == []


def test_a_link_to_nowhere_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One: `two_three`\n[a](#one-two_three) [b](#four) [c](page.md#one-two_three) [d](no.md) [e](https://x.y)\n"
    )
    assert broken(page) == ["#four", "no.md"]


def test_alerts_and_billctl_name_runbooks_that_exist() -> None:
    known = anchors(ROOT / "docs" / "runbooks.md")
    named: set[str] = set()
    for folder, kind in (
        ("deploy", "*.yaml"),
        ("deploy", "*.json"),
        ("billctl", "*.py"),
        ("services", "*.py"),
    ):
        for file in (ROOT / folder).rglob(kind):
            named |= set(re.findall(r"runbooks\.md#([\w-]+)", file.read_text()))
    assert named <= known
