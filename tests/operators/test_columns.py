"""What every table that the runbooks name has in common."""

import psycopg
import pytest

from tests.conftest import Database

NAMED = (
    *("tenant_credits", "credit_transactions", "tenant_services"),
    *("subscriptions", "billing_reconciliation_queue", "billing_notifications", "processed_payment_events"),
    *("billing_integrity_reports", "billing_signature_failures", "billing_audit_log"),
    "webhook_events",
)


def columns(database: Database, table: str) -> dict[str, str]:
    """Name and type, as the operator sees them."""
    with psycopg.connect(database.url("billing_operator")) as db:
        found = db.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            [table],
        ).fetchall()
    return dict(found)


@pytest.mark.parametrize("table", NAMED)
def test_an_operator_finds_the_same_three_columns_everywhere(database: Database, table: str) -> None:
    expected = {"id": "text", "tenant_id": "text", "created_at": "timestamp with time zone"}

    assert columns(database, table).items() >= expected.items()


def test_a_tenant_is_text_in_every_table_and_a_moment_knows_its_zone(database: Database) -> None:
    with psycopg.connect(database.url("billing_operator")) as db:
        strange = db.execute(
            "SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns"
            " WHERE table_schema IN ('ledger', 'subscriptions', 'webhooks', 'scheduler', 'ops')"
            " AND ((column_name = 'tenant_id' AND data_type <> 'text')"
            "   OR data_type IN ('timestamp without time zone', 'real', 'double precision', 'numeric', 'money'))"
        ).fetchall()

    assert strange == []


def test_a_subscription_says_when_it_was_changed(database: Database) -> None:
    assert columns(database, "subscriptions")["updated_at"] == "timestamp with time zone"
