"""A copy of the checkout with one bug in it, and the tests that have to notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.planted import patching
from tests.planted.bugs import Bug

ROOT = Path(__file__).parents[2]
PARTS = ("gen", "proto", "sandbox", "services", "shared", "suite", "tests", "third_party", "pyproject.toml")
TESTS_FAILED = 1  # what pytest answers when tests ran and one failed; everything else is no proof


@dataclass(frozen=True)
class Verdict:
    """What the tests said about a copy."""

    code: int
    seconds: float
    output: str

    @property
    def caught(self) -> bool:
        return self.code == TESTS_FAILED

    @property
    def said(self) -> str:
        """What failed, in the words of the test."""
        words = [line[1:].strip() for line in self.output.splitlines() if line.startswith("E ")]
        return next((each for each in words if each), "")[:80]


@contextmanager
def copy_of_the_checkout() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="billing-planted-"))
    folder.chmod(0o711)
    try:
        for name in PARTS:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, tests: Sequence[str]) -> Verdict:
    """Runs tests in a copy, in a process and on a PostgreSQL of their own."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "TEST_CLUSTER", "BILLING_"))
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(folder / "gen")])
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
    began = time.monotonic()
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    return Verdict(ended.returncode, time.monotonic() - began, ended.stdout + ended.stderr)


def plant(bug: Bug) -> Verdict:
    """The verdict of the bug's tests on a copy that has it."""
    with copy_of_the_checkout() as folder:
        patching.apply(bug.patch, folder)
        return run(folder, bug.caught_by)
