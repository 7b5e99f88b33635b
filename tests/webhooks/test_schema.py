"""The tables are what the code says, and nobody may do more with them than they need."""

from typing import Any

import psycopg
import pytest

from services.webhooks import SCHEMA
from services.webhooks.tables import metadata
from shared.migrations import drift


def test_the_tables_match_the_migrations(database: Any) -> None:
    assert drift(database.admin_url, SCHEMA, metadata) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE webhook_events SET body_sha256 = repeat('0', 64)",
        "UPDATE webhook_events SET received_at = now()",
        "UPDATE webhook_events SET account_id = 'x'",
        "UPDATE webhook_dead_letter_queue SET reason = 'x'",
        "UPDATE webhook_admin_requests SET request = '{}'",
        "TRUNCATE webhook_events",
    ],
)
def test_the_room_cannot_rewrite_what_was_received(database: Any, statement: str) -> None:
    with (
        psycopg.connect(database.url("webhooks_rw")) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement)


@pytest.mark.parametrize("role", ["billing_operator", "billing_readonly"])
def test_people_look_and_do_not_touch(database: Any, role: str) -> None:
    with psycopg.connect(database.url(role), autocommit=True) as connection:
        connection.execute("SELECT * FROM webhooks.webhook_events LIMIT 1")
        for statement in (
            "UPDATE webhooks.webhook_events SET processed = false",
            "DELETE FROM webhooks.webhook_dead_letter_queue",
            "INSERT INTO webhooks.webhook_admin_requests VALUES ('k', '{}')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
