"""The tables that the code declares are the ones that the migrations make."""

from pathlib import Path

from services.subscriptions import tables
from shared.migrations import Schema, drift


def test_tables_are_what_the_migrations_make(database) -> None:
    schema = Schema("subscriptions", Path("services/subscriptions/migrations"))

    assert drift(database.admin_url, schema, tables.metadata) == []
