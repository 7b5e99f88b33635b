"""`python -m suite migrate`: what a container runs before the rooms start."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from suite.migrate import LOGINS, SCHEMAS, migrate, passwords_from
from tests.conftest import Database

HOUSE = Path(__file__).resolve().parents[2]


def as_a_container_gets_it(database: Database) -> dict[str, str]:
    return {
        "DATABASE_URL": database.admin_url,
        **{variable: database.url(role) for role, variable in LOGINS.items()},
    }


def test_the_command_takes_its_settings_from_the_environment(database: Database) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "suite", "migrate"],
        cwd=HOUSE,
        env={**os.environ, **as_a_container_gets_it(database)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stderr
    for role in LOGINS:
        with psycopg.connect(database.url(role)) as db:
            assert db.execute("SELECT current_user").fetchone() == (role,)


def test_every_schema_is_there_and_a_repeat_changes_nothing(database: Database) -> None:
    with psycopg.connect(database.admin_url) as db:
        tables = db.execute(
            "SELECT table_schema, count(*) FROM information_schema.tables WHERE table_schema = ANY(%s) GROUP BY 1",
            [[schema.name for schema in SCHEMAS]],
        ).fetchall()
    assert {name for name, count in tables if count > 1} == {schema.name for schema in SCHEMAS}

    assert migrate(database.admin_url, database.passwords) == []


def test_all_that_is_missing_is_named_at_once_and_no_password_shown(database: Database) -> None:
    environment = as_a_container_gets_it(database)
    del environment["DATABASE_URL"], environment["LEDGER_DATABASE_URL"]
    environment["WEBHOOKS_DATABASE_URL"] = database.url("ledger_rw")

    with pytest.raises(SystemExit) as refusal:
        passwords_from(environment)

    message = str(refusal.value)
    assert "LEDGER_DATABASE_URL must be postgresql://ledger_rw:" in message
    assert "WEBHOOKS_DATABASE_URL must be postgresql://webhooks_rw:" in message
    assert "\n  DATABASE_URL must" in message
    assert not any(password in message for password in database.passwords.values())
