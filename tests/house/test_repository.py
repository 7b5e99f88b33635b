"""What never enters the repository, and what its texts promise."""

import os
import re
import tomllib

import pytest

from tests.house.house import ROOT, text_files

LOCKS = ("requirements.lock", "requirements-traces.lock", "requirements-dev.lock")

# Spelled in pieces, so that this file does not contain them.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        *(("pypi", "org"), ("pythonhosted", "org"), ("pypi", "python", "org")),
        *(("npmjs", "org"), ("npmjs", "com"), ("yarnpkg", "com"), ("golang", "org"), ("crates", "io")),
        *(("docker", "io"), ("ghcr", "io"), ("quay", "io"), ("debian", "org"), ("astral", "sh")),
    )
]
NEVER = {
    "a registry's host": "|".join(re.escape(host) for host in REGISTRIES),
    "a folder of one machine": r"(?<![\w.~$}])/(?:root|work|home/\w+|Users/\w+)/",
    "a folder beside the repository": re.escape("/".join(("..", "shared"))) + r"(?!/\w+\.(?:py|proto))\b",
    "an unfinished thought": r"\b(?:"
    + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"))
    + r")\b",
    "a document that is not here": r"\b[Ss]eeds?[ /]00\d|\bthe " + r"seeds\b|\b[Ii]ssue #?\d",
    "a live key": r"\brzp_live_[A-Za-z0-9]{10,}|-----BEGIN [A-Z ]*PRIVATE"
    + r" KEY-----|\bwhsec_[A-Za-z0-9]{10,}",
}


@pytest.mark.parametrize("what", NEVER)
def test_the_repository_never_holds(what: str) -> None:
    pattern = re.compile(NEVER[what])

    found = [
        f"{place}:{number} {line.strip()[:120]}"
        for place, text in text_files()
        if pattern.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]

    assert not found, "\n".join(found)


def requirements(lock: str) -> dict[str, str]:
    """Every requirement of a lock: its name and version, and the lines that belong to it."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / lock).read_text(), flags=re.M)
    entries = re.split(r"\n(?=\S)", text.strip())
    return {entry.split(" ", 1)[0]: entry for entry in entries}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_is_pinned_and_hashed(lock: str) -> None:
    hashed = re.compile(
        r"[a-z0-9][a-z0-9.\-]*(\[[a-z0-9,\-]+\])?==[^\s;]+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+"
    )

    loose = [name for name, entry in requirements(lock).items() if not hashed.fullmatch(entry)]

    assert len(requirements(lock)) > 30
    assert not loose, f"{lock}: {loose}"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_host(lock: str) -> None:
    assert not re.findall(r".*(?:://|--(?:extra-)?index|--find-links|--trusted).*", (ROOT / lock).read_text())


def test_the_locks_agree_with_each_other_and_with_the_project() -> None:
    run, traces, everything = (set(requirements(lock)) for lock in LOCKS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"]
    pins = {
        re.sub(r"\[.*?\]", "", pin.split(";")[0].strip()).lower()
        for pin in (
            *asked,
            *project["dependency-groups"]["dev"],
            *project["project"]["optional-dependencies"]["traces"],
        )
        if "==" in pin
    }

    assert run < traces < everything
    assert pins <= {re.sub(r"\[.*?\]", "", name) for name in everything}, "run `make lock`"


def documents() -> list[tuple[str, str]]:
    return [(place, text) for place, text in text_files() if place.endswith(".md")]


def test_every_verb_that_the_documents_name_exists() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    code = re.compile(r"```.*?```|`[^`\n]+`", re.S)

    unknown = [
        f"{place}: make {verb}"
        for place, text in documents()
        for block in code.findall(text)
        for verb in re.findall(r"(?:^|[`$;&\s])make ([a-z-]+)", block)
        if verb not in verbs
    ]

    assert not unknown
    assert {"run", "test", "demo", "psql", "check", "proto"} <= verbs


def test_every_link_in_the_documents_leads_somewhere() -> None:
    broken = [
        f"{place}: {target}"
        for place, text in documents()
        for target in re.findall(r"\]\(([^)#\s]+)", text)
        if "://" not in target and not target.startswith("mailto:")
        if not ((ROOT / place).parent / target).exists()
    ]

    assert not broken


def test_continuous_integration_is_the_verb_that_a_person_types() -> None:
    script = ROOT / ".ci/run"

    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text().splitlines()
    assert "set -eu" in script.read_text().splitlines()


def test_the_licence_is_here() -> None:
    text = (ROOT / "LICENSE").read_text()

    assert "Apache License" in text
    assert "Copyright 2026 the billing suite authors" in text
