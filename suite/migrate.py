"""Brings a database to the newest schema: every room's migrations, roles and grants, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg

from shared import migrations
from shared.dsn import address_flaw
from shared.migrations import Schema

HOUSE = Path(__file__).resolve().parent.parent

# `ops` comes first: the rooms' roles are granted inserts on its tables.
SCHEMAS = (
    Schema("ops", HOUSE / "shared/ops/migrations"),
    Schema("ledger", HOUSE / "services/ledger/migrations"),
    Schema("subscriptions", HOUSE / "services/subscriptions/migrations"),
    Schema("webhooks", HOUSE / "services/webhooks/migrations"),
    Schema("scheduler", HOUSE / "services/scheduler/migrations"),
)

# Who logs in, and the variable that says how.
LOGINS = {
    "ledger_rw": "LEDGER_DATABASE_URL",
    "subscriptions_rw": "SUBSCRIPTIONS_DATABASE_URL",
    "webhooks_rw": "WEBHOOKS_DATABASE_URL",
    "scheduler_rw": "SCHEDULER_DATABASE_URL",
    "billing_operator": "OPERATOR_DATABASE_URL",
    "billing_readonly": "READONLY_DATABASE_URL",
}


def migrate(admin_url: str, passwords: Mapping[str, str]) -> list[str]:
    """Applies what is missing and names it, sets the roles' passwords; many at once apply each once."""
    return migrations.migrate(admin_url, schemas=list(SCHEMAS), passwords=dict(passwords))


def passwords_from(environment: Mapping[str, str]) -> dict[str, str]:
    """The roles' passwords, out of the URLs that the rooms are given; names all that is missing."""
    passwords = {}
    problems = []
    for role, variable in LOGINS.items():
        given = environment.get(variable, "")
        url = urlsplit("" if address_flaw(given) else given)
        if url.username != role or not url.password:
            problems.append(f"  {variable} must be postgresql://{role}:<password>@<host>:<port>/<database>")
        else:
            passwords[role] = unquote(url.password)
    if "DATABASE_URL" not in environment:
        problems.append("  DATABASE_URL must name the database and its administrator")
    elif wrong := address_flaw(environment["DATABASE_URL"]):
        problems.append(f"  DATABASE_URL: {wrong}")
    if problems:
        raise SystemExit("\n".join(["The settings are not complete:", *problems]))
    return passwords


def migrate_from_environment() -> None:
    """`python -m suite migrate`: for containers, where nobody generates passwords."""
    passwords = passwords_from(os.environ)
    try:
        applied = migrate(os.environ["DATABASE_URL"], passwords)
    except psycopg.OperationalError as error:
        raise SystemExit(f"DATABASE_URL: the database did not answer: {error}") from None
    for revision in applied:
        print(f"applied {revision}")
