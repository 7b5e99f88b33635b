"""One running suite for every test of the operators' command, and the command as an operator's shell runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.suite.running import HOUSE, RunningSuite

ACTOR = "asha"


@dataclass
class Shell:
    """A shell that knows a suite by the environment alone, in a folder that is nobody's checkout."""

    suite: RunningSuite
    folder: Path
    tickets: int = field(default=0)

    @property
    def environment(self) -> dict[str, str]:
        runtime = self.suite.runtime
        rooms = {f"{room.upper()}_ADDRESS": address for room, address in runtime["addresses"].items()}
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{HOUSE}:{HOUSE / 'gen'}",
            "BILLING_DATA_DIR": str(self.folder / "no-suite-is-here"),
            "OPERATOR_SECRET": runtime["secrets"]["operator_secret"],
            "READONLY_DATABASE_URL": runtime["database"]["urls"]["billing_readonly"],
            **rooms,
        }

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`billctl <words>`; no secret is ever in what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "billctl", *words],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        for secret in (*self.suite.runtime["secrets"].values(), "no_such_password"):
            assert secret not in done.stdout + done.stderr
        return done

    def told(self, *words: str, exit: int = 0, **environment: str) -> dict[str, Any]:
        """What `billctl <words> --json` says."""
        done = self.run(*words, "--json", **environment)
        assert done.returncode == exit, done.stdout + done.stderr
        content: dict[str, Any] = json.loads(done.stdout)
        return content

    def applied(self, *words: str, exit: int = 0) -> dict[str, Any]:
        """The same, carried out under a ticket of its own."""
        self.tickets += 1
        ticket = ("--ticket", f"T-{self.tickets}", "--reason", "a test", "--actor", ACTOR)
        return self.told(*words, "--apply", *ticket, exit=exit)


@dataclass(frozen=True)
class Books:
    """The suite's database, as any of its roles."""

    urls: Mapping[str, str]

    def rows(self, statement: str, *values: Any, role: str = "billing_operator") -> list[dict[str, Any]]:
        with psycopg.connect(self.urls[role], autocommit=True, row_factory=dict_row) as db:
            answer = db.execute(statement, values)
            return answer.fetchall() if answer.description else []

    def open_finding(self, finding_id: str, check_type: str, tenant: str, **observed: Any) -> None:
        """A finding of the subscriptions room, as its audit writes one."""
        self.rows(
            "INSERT INTO billing_integrity_reports (id, room, tenant_id, check_type, severity, observed)"
            " VALUES (%s, 'subscriptions', %s, %s, 'critical', %s)",
            *(finding_id, tenant, check_type, json.dumps(observed)),
            role="subscriptions_rw",
        )


@pytest.fixture(scope="session")
def suite() -> Iterator[RunningSuite]:
    folder = Path(tempfile.mkdtemp(prefix="billing-suite-"))
    folder.chmod(0o711)
    # Whoever tests types more than a hundred commands in a quarter of an hour.
    running = RunningSuite(folder, ADMIN_CALLS_PER_15_MINUTES="0")
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shell(suite: RunningSuite, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(suite, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def books(suite: RunningSuite) -> Books:
    return Books(suite.runtime["database"]["urls"])


@pytest.fixture(scope="session")
def customer(suite: RunningSuite, books: Books) -> str:
    """A tenant with a life: it bought, spent, held, was given back and changed its plan."""
    done = subprocess.run(
        [sys.executable, "-m", "suite", "demo"],
        cwd=HOUSE,
        env=suite.environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (newest,) = books.rows(
        "SELECT tenant_id FROM subscriptions WHERE tenant_id LIKE 'demo%' ORDER BY created_at DESC LIMIT 1"
    )
    return str(newest["tenant_id"])
