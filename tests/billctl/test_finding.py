"""Runbook 2 as a command: each check has its way, and a finding is closed only when it is well."""

from __future__ import annotations

import re
import secrets as random

import pytest

from billctl.fixes import finding as fixes
from billctl.looks import checks
from tests.billctl.conftest import ACTOR, Books, Shell
from tests.suite.running import HOUSE


def opened(books: Books, tenant: str, check: str) -> str:
    (row,) = books.rows(
        "SELECT id FROM billing_integrity_reports"
        " WHERE tenant_id = %s AND check_type = %s AND resolved_at IS NULL",
        tenant,
        check,
    )
    return str(row["id"])


def test_an_edited_balance_is_rebuilt_proved_and_closed(shell: Shell, books: Books, customer: str) -> None:
    (right,) = books.rows("SELECT balance FROM tenant_credits WHERE tenant_id = %s", customer)
    books.rows("UPDATE tenant_credits SET balance = balance + 7 WHERE tenant_id = %s", customer)
    shell.applied("jobs", "run", "audit_integrity")
    finding = opened(books, customer, "balance_mismatch")

    planned = shell.told("fix", "finding", finding, exit=3)
    done = shell.applied("fix", "finding", finding)
    after = shell.told("fix", "finding", finding)

    steps = [f"mirrors:{customer}", f"verify:{customer}", f"resolve:{finding}"]
    assert [step["step"] for step in planned["plan"]] == steps
    assert [(each["step"], each["ok"]) for each in done["applied"]] == [(step, True) for step in steps]
    (now,) = books.rows("SELECT balance FROM tenant_credits WHERE tenant_id = %s", customer)
    assert now == right
    assert after["verdict"] == "ok"
    assert re.search(r"was closed by (asha|ledger\.\w+) at 2", after["summary"])


def test_a_sum_that_is_wrong_is_laid_open_and_left_to_a_person(shell: Shell, books: Books) -> None:
    tenant = f"astray_{random.token_hex(4)}"
    shell.begin_upgrade(tenant)
    stray = f"txn_{random.token_hex(8)}"
    books.rows(
        "INSERT INTO credit_transactions (tenant_id, id, idempotency_key, fingerprint, fingerprint_version, kind,"
        " amount, tx_status, reason, description, reference_id, hold_id, refunded_transaction_id, metadata, answer,"
        " first_seq, last_seq, created_at) VALUES (%s, %s, %s, '', 1, 'debit', -5, 'posted', 'blog.publish', '', '',"
        " '', '', '{}', '{}', 0, 0, now())",
        *(tenant, stray, stray),
        role="ledger_rw",
    )
    shell.applied("jobs", "run", "audit_integrity")
    finding = opened(books, tenant, "ledger_sum_mismatch")

    told = shell.told("fix", "finding", finding, exit=3)

    (wrong,) = told["facts"]["transactions that disagree with their lines"]
    assert (wrong["id"], wrong["amount"], wrong["amount_of_lines"]) == (stray, -5, 0)
    (sums,) = told["facts"]["sums"]
    assert sums["ledger_sum"] == sums["balance"] - 5
    assert told["plan"] == []
    assert any(f"billctl account adjust {tenant} --credits" in step for step in told["next"])


def test_a_pending_upgrade_is_cancelled_and_its_finding_closed(shell: Shell, books: Books) -> None:
    tenant, finding = f"abandoned_{random.token_hex(4)}", f"fnd_{random.token_hex(8)}"
    begun = shell.begin_upgrade(tenant)
    books.open_finding(finding, "orphan_pending_sub", tenant, razorpaySubscriptionId=begun)

    done = shell.applied("fix", "finding", finding)

    assert [each["ok"] for each in done["applied"]] == [True, True, True]
    (row,) = books.rows(
        "SELECT pending_razorpay_subscription_id FROM subscriptions WHERE tenant_id = %s", tenant
    )
    assert row["pending_razorpay_subscription_id"] is None
    (closed,) = books.rows("SELECT resolved_by FROM billing_integrity_reports WHERE id = %s", finding)
    assert closed["resolved_by"] == ACTOR


def test_entitlements_are_rebuilt_and_compared_before_the_finding_is_closed(
    shell: Shell, books: Books
) -> None:
    tenant, finding = f"limited_{random.token_hex(4)}", f"fnd_{random.token_hex(8)}"
    shell.begin_upgrade(tenant)
    books.rows(
        "UPDATE subscriptions SET entitlements = '[]' WHERE tenant_id = %s", tenant, role="subscriptions_rw"
    )
    books.open_finding(finding, "entitlements_differ", tenant, cause="plan_drift")

    done = shell.applied("fix", "finding", finding)

    assert [each["ok"] for each in done["applied"]] == [True, True, True]
    (row,) = books.rows(
        "SELECT jsonb_array_length(entitlements) AS services FROM subscriptions WHERE tenant_id = %s", tenant
    )
    assert row["services"] > 0


def test_what_froze_an_account_is_explained_and_changes_nothing(
    shell: Shell, books: Books, customer: str
) -> None:
    finding = f"fnd_{random.token_hex(8)}"
    books.open_finding(finding, "chain_mismatch", customer)

    told = shell.told("fix", "finding", finding, exit=3)

    assert told["plan"] == []
    assert told["next"][0].startswith("call an engineer")
    assert any(f"billctl account unfreeze {customer}" in step for step in told["next"])
    shell.applied("findings", "resolve", finding)


def named_in_the_page() -> set[str]:
    """Every check of docs/operations.md's tables."""
    text = (HOUSE / "docs" / "operations.md").read_text()
    tables = re.findall(r"^\| check \|.*?\n\n", text, flags=re.MULTILINE | re.DOTALL)
    firsts = [line.split("|")[1] for table in tables for line in table.splitlines()[2:] if "|" in line]
    return {name for cell in firsts for name in re.findall(r"`([a-z_]+)`", cell)}


def test_every_check_that_the_page_names_is_explained() -> None:
    page = named_in_the_page()

    assert len(page) > 30
    assert page - checks.CHECKS.keys() == set()


@pytest.mark.parametrize("check", sorted(fixes.PLANS))
def test_every_plan_is_of_a_check_that_is_explained(check: str) -> None:
    assert check in checks.CHECKS
