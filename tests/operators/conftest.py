"""An operator at a database of its own, and the real rooms that write what the operator reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncEngine

from shared import clock
from shared.database import create_engine
from tests.conftest import TEMPLATE, Database
from tests.operators.statements import filled
from tests.subscriptions.conftest import _calm, clock_file, ledger, room, sandbox

__all__ = ["_calm", "clock_file", "ledger", "room", "sandbox"]

ROOMS = ("ledger", "subscriptions", "webhooks", "scheduler")
SCHEMAS = (*ROOMS, "ops")


@dataclass
class Answer:
    """What a statement of the runbooks brought back."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    changed: int = 0

    @property
    def row(self) -> dict[str, Any]:
        """The only row."""
        [only] = self.rows
        return only

    def of(self, tenant: str) -> list[dict[str, Any]]:
        """The rows about one tenant."""
        return [row for row in self.rows if row["tenant_id"] == tenant]


class Operator:
    """Somebody in psql under one role, with the search path that the role has."""

    def __init__(self, url: str) -> None:
        self.db = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def run(self, name: str, **values: str) -> Answer:
        """Runs a statement of the runbooks as psql would, all of it in one go."""
        return self._run(filled(name, **values))

    def _run(self, statement: str) -> Answer:
        answer = Answer()
        cursor = self.db.execute(statement)
        while True:
            if cursor.description is not None:
                answer.rows = cursor.fetchall()
            elif (cursor.statusmessage or "").startswith("UPDATE"):
                answer.changed += cursor.rowcount
            if not cursor.nextset():
                return answer

    def edit(self, statement: str, *values: Any) -> int:
        """What somebody does by hand; answers how many rows changed."""
        return self.db.execute(statement, values).rowcount

    def look(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Another look, not from the runbooks."""
        return self.db.execute(query, values).fetchall()


@pytest.fixture(scope="session")
def database(database: Database, worker_id: str) -> Database:
    """A database that only these tests use: the runbooks look at all tenants at once."""
    return _clone(database, f"operators_{worker_id}")


@pytest.fixture
def fresh(database: Database, worker_id: str) -> Iterator[Operator]:
    """The operator of a suite that was deployed a moment ago."""
    name = f"operators_fresh_{worker_id}"
    operator = Operator(_clone(database, name).url("billing_operator"))
    yield operator
    operator.db.close()
    with psycopg.connect(database.admin_url, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _clone(like: Database, name: str) -> Database:
    with psycopg.connect(like.admin_url, autocommit=True) as db:
        db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        db.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    return replace(like, admin_url=urlunsplit(urlsplit(like.admin_url)._replace(path=f"/{name}")))


@pytest.fixture(scope="session")
def operator(database: Database) -> Iterator[Operator]:
    """Who follows the runbooks."""
    operator = Operator(database.url("billing_operator"))
    yield operator
    operator.db.close()


@pytest.fixture(scope="session")
async def engines(database: Database) -> AsyncIterator[dict[str, AsyncEngine]]:
    """Each room's own sessions, for what the room records by the shared store."""
    engines = {
        name: create_engine(database.url(f"{name}_rw"), application_name="test_operators", pool_size=2)
        for name in ROOMS
    }
    yield engines
    for engine in engines.values():
        await engine.dispose()


@pytest.fixture(scope="session")
def write_as(database: Database) -> Iterator[Callable[..., None]]:
    """Rows that a room's own role writes, where its code comes in a later release or time cannot be waited for."""
    sessions = {name: psycopg.connect(database.url(f"{name}_rw"), autocommit=True) for name in ROOMS}

    def write(name: str, statement: str, *values: Any) -> None:
        sessions[name].execute(statement, values)

    yield write
    for session in sessions.values():
        session.close()


@pytest.fixture
def travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Moves the clock of the rooms; the database's own, which the runbooks ask, stays."""
    number = count()

    def move(ahead: timedelta) -> None:
        # A file for each move: two moves within one tick of the file system's clock would look like one.
        path = tmp_path / f"clock-{next(number)}"
        clock.move_to(path, ahead)
        monkeypatch.setenv("BILLING_TEST_CLOCK", str(path))

    move(timedelta())
    return move
