"""The triage and the verification of a deploy: every signal by itself, whatever the others say."""

from __future__ import annotations

import secrets as random
from typing import Any

import pytest

from billctl.looks import deploy, health, signals
from tests.billctl.conftest import Books, Shell
from tests.operators.statements import STATEMENTS

NOWHERE = "postgresql://billing_readonly:no_such_password@127.0.0.1:1/billing"


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        (signals.PENDING, "runbook_0_1"),
        (signals.FINDINGS, "runbook_0_2"),
        (signals.SIGNATURES, "runbook_0_3"),
        (signals.PAST_DUE, "runbook_0_4"),
    ],
    ids=["pending", "findings", "signatures", "past_due"],
)
def test_the_triage_asks_as_the_runbook_does(statement: str, name: str) -> None:
    assert statement == STATEMENTS[name]


def test_a_deploy_is_verified_as_the_checklist_does() -> None:
    printed = [statement.split() for statement in STATEMENTS.values()]

    for statement in (deploy.TABLES, deploy.CREDIT_COLUMNS, deploy.PENDING_COLUMNS, deploy.LAST_EVENT):
        assert statement.split() in printed


def states(told: dict[str, Any]) -> dict[str, str]:
    return {line["signal"]: line["state"] for line in told["signals"]}


def test_every_signal_that_is_not_well_has_its_line_its_rows_and_a_next_command(
    shell: Shell, books: Books, customer: str
) -> None:
    finding = f"fnd_{random.token_hex(8)}"
    books.open_finding(finding, "refund_failed", customer)
    books.rows(
        "UPDATE subscriptions SET status = 'past_due', past_due_since = now() - INTERVAL '15 days'"
        " WHERE tenant_id = %s",
        *(customer,),
        role="subscriptions_rw",
    )
    for number in range(10):
        books.rows(
            "INSERT INTO billing_signature_failures (id, room, endpoint, tenant_id, remote_ip)"
            " VALUES (%s, 'subscriptions', '/payment/verify', %s, '192.0.2.7')",
            *(f"sig_{random.token_hex(8)}{number}", customer),
            role="subscriptions_rw",
        )
    books.rows(
        "UPDATE billing_reconciliation_queue SET completed_at = NULL, abandoned_at = now()"
        " WHERE id = (SELECT id FROM billing_reconciliation_queue WHERE tenant_id = %s ORDER BY position LIMIT 1)",
        *(customer,),
        role="subscriptions_rw",
    )
    try:
        told = shell.told("health", exit=3)
    finally:
        books.rows(
            "UPDATE subscriptions SET status = 'active', past_due_since = NULL WHERE tenant_id = %s",
            *(customer,),
            role="subscriptions_rw",
        )
        books.rows(
            "UPDATE billing_reconciliation_queue SET completed_at = now(), abandoned_at = NULL"
            " WHERE tenant_id = %s",
            *(customer,),
            role="subscriptions_rw",
        )
        books.rows(
            "UPDATE billing_integrity_reports SET resolved_at = now(), resolved_by = 'a test' WHERE id = %s",
            *(finding,),
        )

    assert told["verdict"] == "critical"
    found = states(told)
    assert found["rooms serving"] == found["database"] == "ok"
    for name in ("open findings", "signature failures, 1 h", "past due > 14 days", "reconciliation queue"):
        assert found[name] == "critical", told["signals"]
    assert told["signals"][-1]["value"].startswith(str(len(told["changes"])))
    (late,) = (row for row in told["past_due"] if row["tenant_id"] == customer)
    assert 14.9 < late["days_past_due"] < 15.1
    assert {
        "billctl fix escalation",
        "billctl fix signatures",
        "billctl tasks list --state abandoned",
    } <= set(told["next"])


def test_without_the_database_the_rooms_are_still_looked_at(shell: Shell) -> None:
    told = shell.told("health", exit=3, READONLY_DATABASE_URL=NOWHERE)

    found = states(told)
    assert told["verdict"] == "critical"
    assert (found.pop("rooms serving"), found.pop("database")) == ("ok", "critical")
    assert set(found.values()) == {"unknown"}


def test_a_room_that_is_down_is_named_beside_everything_else(shell: Shell) -> None:
    done = shell.run("health", LEDGER_ADDRESS="127.0.0.1:1")

    lines = {line[:24].strip(): line[24:] for line in done.stdout.splitlines()}
    assert done.returncode == 3
    assert "critical" in lines["rooms serving"]
    assert "ledger down" in lines["rooms serving"]
    assert "ok" in lines["database"]
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160


def test_a_fresh_suite_is_as_deployed(shell: Shell) -> None:
    told = shell.told("verify-deploy", exit=3 if _tick_missing(shell) else 0)

    checks = {line["check"]: line["state"] for line in told["checks"]}
    checks.pop("first cron tick")
    assert set(checks.values()) == {"ok"}, told["checks"]
    assert {row["state"] for row in told["revisions"]} == {"ok"}
    assert len(told["tables"]) == 5


def _tick_missing(shell: Shell) -> bool:
    """The first tick comes within a minute of the suite's start, which may be before this test or after."""
    ticks = shell.told("jobs", "runs", "--limit", "1000")["runs"]
    return not any(run["trigger"] == "schedule" for run in ticks)


def job(**row: Any) -> dict[str, Any]:
    from datetime import UTC, datetime

    now = datetime(2026, 11, 21, 7, 3, tzinfo=UTC)
    tick = datetime(2026, 11, 21, 7, 0, tzinfo=UTC)
    created = datetime(2026, 11, 1, tzinfo=UTC)
    fresh = {"schedule": "0 * * * *", "paused": False, "created_at": created, "last_tick": tick, "now": now}
    return fresh | {"last_outcome": "succeeded"} | row


def test_a_job_is_late_when_its_tick_passed_and_nobody_ran_it() -> None:
    early = job()["last_tick"].replace(hour=6)

    assert health.job_state(job()) == "ok"
    assert health.job_state(job(last_tick=early)) == "late"
    assert health.job_state(job(last_tick=early, paused=True)) == "paused"
    assert health.job_state(job(last_tick=None, created_at=job()["now"])) == "ok"
    assert health.job_state(job(last_outcome="failed")) == "failed"
