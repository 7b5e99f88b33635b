"""What the database itself promises about the ledger."""

import psycopg
import pytest

from services.ledger import SCHEMA, tables
from services.ledger.rules import chain
from services.ledger.rules.model import GENESIS
from shared import migrations
from tests.conftest import Database
from tests.ledger.builders import a_debit, a_grant, in_days
from tests.ledger.conftest import RunningLedger


def test_the_tables_that_the_code_declares_are_those_that_migrations_make(database: Database) -> None:
    differences = migrations.drift(database.admin_url, SCHEMA, tables.metadata)

    # Indexes and unique constraints are the migrations' own; columns and types are what code leans on.
    ours = [each for each in differences if "remove_index" not in each and "remove_constraint" not in each]
    assert ours == []


@pytest.mark.parametrize(
    "role",
    ["ledger_rw", "subscriptions_rw", "webhooks_rw", "scheduler_rw", "billing_operator", "billing_readonly"],
)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger.credit_entries SET d_posted = 0",
        "DELETE FROM ledger.credit_entries",
        "TRUNCATE ledger.credit_entries",
        "UPDATE ledger.credit_transactions SET amount = 0",
        "DELETE FROM ledger.credit_transactions",
        "ALTER TABLE ledger.credit_entries ADD COLUMN x int",
    ],
)
def test_nobody_changes_a_line(database: Database, role: str, statement: str) -> None:
    with psycopg.connect(database.url(role)) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute(statement)


@pytest.mark.parametrize("role", ["subscriptions_rw", "webhooks_rw", "scheduler_rw", "billing_readonly"])
def test_only_the_ledgers_role_writes_credits(database: Database, role: str) -> None:
    with psycopg.connect(database.url(role)) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("INSERT INTO ledger.credit_entries DEFAULT VALUES")
    with psycopg.connect(database.url(role)) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("UPDATE ledger.tenant_credits SET balance = 0")


def test_an_operator_corrects_the_mirror_and_nothing_else(database: Database) -> None:
    with psycopg.connect(database.url("billing_operator")) as db:
        db.execute("UPDATE tenant_credits SET balance = 1 WHERE tenant_id = 'nobody'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute("UPDATE tenant_credits SET subscription_balance = 1 WHERE tenant_id = 'nobody'")


async def test_mirrors_and_chain_agree_with_the_lines(
    ledger: RunningLedger, database: Database, tenant: str
) -> None:
    ends_at = in_days(30)
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=in_days(3)))
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=ends_at))
    await ledger.service.Debit(a_debit(tenant, 35))

    with psycopg.connect(database.url("billing_operator")) as db:
        mirror = db.execute(
            "SELECT balance, subscription_balance, permanent_balance, subscription_expires_at, chain_head, seq"
            " FROM tenant_credits WHERE tenant_id = %s",
            [tenant],
        ).fetchone()
        lines = db.execute(
            "SELECT e.seq, e.lot, e.d_posted, e.d_held, e.lot_posted_after, e.lot_held_after, e.account_posted_after,"
            " e.account_held_after, e.at, t.amount, e.hash, t.id, t.kind, t.idempotency_key, t.reason, t.reference_id"
            " FROM credit_entries e JOIN credit_transactions t ON t.tenant_id = e.tenant_id AND t.id = e.transaction_id"
            " WHERE e.tenant_id = %s ORDER BY e.seq",
            [tenant],
        ).fetchall()

    assert mirror is not None
    assert mirror[:4] == (125, 25, 100, ends_at)
    head = GENESIS
    for line in lines:
        words = chain.words(*line[11:])
        head = chain.line_hash(head, *line[:8], at=line[8], amount=line[9], words=words)
        assert head == line[10]
    assert (mirror[4], mirror[5]) == (head, len(lines))
