"""The tables that the code declares are the ones that the migrations make."""

from pathlib import Path

import psycopg
import pytest

from services.subscriptions import tables
from shared.migrations import Schema, drift
from tests.conftest import Database


def test_tables_are_what_the_migrations_make(database: Database) -> None:
    schema = Schema("subscriptions", Path("services/subscriptions/migrations"))

    assert drift(database.admin_url, schema, tables.metadata) == []


READ_ONLY = {"catalog_versions", "provider_plans", "processed_payment_events", "credit_grants", "invoices"}


@pytest.mark.parametrize("table", sorted(READ_ONLY))
def test_what_was_decided_can_be_neither_changed_nor_deleted(database: Database, table: str) -> None:
    with psycopg.connect(database.url("subscriptions_rw"), autocommit=True) as service:
        for statement in (
            f"UPDATE {table} SET created_at = now()",
            f"DELETE FROM {table}",
            f"TRUNCATE {table}",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                service.execute(statement)


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        (
            "INSERT INTO subscriptions (tenant_id, id, plan_id, status) VALUES ('t', 'i', 'free', 'free')",
            "subscriptions_status",
        ),
        (
            "INSERT INTO subscriptions (tenant_id, id, plan_id, status, past_due_since)"
            " VALUES ('t', 'i', 'free', 'active', now())",
            "subscriptions_past_due",
        ),
        (
            "INSERT INTO credit_grants (reference_id, tenant_id, id, kind, bucket, credits)"
            " VALUES ('r', 't', 'i', 'credit_pack', 'subscription', 5)",
            "credit_grants_expiry",
        ),
        (
            "INSERT INTO payments (id, tenant_id, provider, purpose, order_id, invoice_id, amount_paise, currency,"
            " status, method, received_at) VALUES ('p', 't', 'razorpay', 'plan_cycle', '', '', 1, 'INR', 'captured',"
            " '', now())",
            "payments_subscription",
        ),
    ],
)
def test_the_database_refuses_what_no_rule_allows(
    database: Database, statement: str, constraint: str
) -> None:
    with (
        psycopg.connect(database.url("subscriptions_rw"), autocommit=True) as service,
        pytest.raises(psycopg.errors.CheckViolation) as refused,
    ):
        service.execute(statement)

    assert refused.value.diag.constraint_name == constraint


def test_a_tenant_has_one_row_and_a_fact_funds_once(database: Database, tenant: str) -> None:
    row = "INSERT INTO subscriptions (tenant_id, id, plan_id, status) VALUES (%s, %s, 'free', 'active')"
    grant = (
        "INSERT INTO credit_grants (reference_id, tenant_id, id, kind, bucket, credits)"
        " VALUES ('razorpay:pay_1', %s, %s, 'credit_pack', 'permanent', 5)"
    )
    with psycopg.connect(database.url("subscriptions_rw"), autocommit=True) as service:
        for statement, constraint in (
            (row, "subscriptions_one_per_tenant"),
            (grant, "credit_grants_fund_once"),
        ):
            service.execute(statement, [tenant, f"{tenant}_1"])
            with pytest.raises(psycopg.errors.UniqueViolation) as refused:
                service.execute(statement, [tenant, f"{tenant}_2"])
            assert refused.value.diag.constraint_name == constraint


def test_an_operator_changes_what_the_runbooks_change_and_nothing_else(
    database: Database, tenant: str
) -> None:
    with psycopg.connect(database.url("billing_operator"), autocommit=True) as operator:
        operator.execute(
            "UPDATE subscriptions SET pending_plan_id = NULL, pending_billing_cycle = NULL,"
            " pending_razorpay_subscription_id = NULL, updated_at = NOW() WHERE tenant_id = %s",
            [tenant],
        )
        for statement in (
            "UPDATE subscriptions SET status = 'active'",
            "UPDATE billing_reconciliation_queue SET attempts = 0",
            "DELETE FROM billing_reconciliation_queue",
            "UPDATE credit_grants SET credits = 1",
            "INSERT INTO plans (id) VALUES ('x')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                operator.execute(statement)
