"""Lists, and what operators do every day: nothing without --apply, and the same ticket once."""

from __future__ import annotations

import json
import os
import secrets as random
import signal
import subprocess
import sys
import time

import pytest

from tests.billctl.conftest import ACTOR, Books, Shell

TICKET = ("--apply", "--ticket", "T-same", "--reason", "a test", "--actor", ACTOR)


def test_a_job_is_run_when_it_is_said_and_its_dry_run_shown_when_not(shell: Shell, books: Books) -> None:
    looked = shell.told("jobs", "run", "audit_integrity", exit=3)
    first = shell.told("jobs", "run", "audit_integrity", *TICKET)
    again = shell.told("jobs", "run", "audit_integrity", *TICKET)

    calls = {row["call"]: row["outcome"] for row in looked["facts"]["what a run would do"]}
    assert calls == {"ledger.AuditIntegrity": "succeeded", "subscriptions.AuditSubscriptions": "succeeded"}
    assert not looked["carried_out"]
    assert first["applied"] == again["applied"]
    run_id = first["applied"][0]["result"].split()[0]
    (row,) = books.rows("SELECT trigger, dry_run, outcome FROM job_runs WHERE id = %s", run_id)
    assert row == {"trigger": "manual", "dry_run": False, "outcome": "succeeded"}


def test_a_job_is_paused_resumed_and_rescheduled_by_somebody_for_a_reason(shell: Shell, books: Books) -> None:
    shell.applied("jobs", "pause", "sync_provider")
    paused = shell.told("jobs", "list")["jobs"]
    again = shell.told("jobs", "pause", "sync_provider")
    shell.applied("jobs", "resume", "sync_provider")
    shell.applied("jobs", "schedule", "sync_provider", "15 4 * * *", "--deadline", "500")
    after = {row["job"]: row for row in shell.told("jobs", "list")["jobs"]}["sync_provider"]

    assert {row["job"]: row["state"] for row in paused}["sync_provider"] == "paused"
    assert again["summary"] == "sync_provider is paused already"
    assert (after["schedule"], after["deadline_seconds"], after["state"]) == ("15 4 * * *", 500, "ok")
    told = shell.told("audit-log", "--actor", ACTOR, "--since", "1h")["entries"]
    assert [entry["action"] for entry in told if entry["resource"] == "job sync_provider"][::-1] == [
        "job.pause",
        "job.resume",
        "job.schedule",
    ]
    assert all("a test" in entry["reason"] for entry in told)


def test_a_ticket_that_was_turned_round_since_is_not_said_to_be_done(shell: Shell) -> None:
    shell.told("jobs", "pause", "cleanup", *TICKET)
    shell.told("jobs", "resume", "cleanup", *TICKET)
    again = shell.told("jobs", "pause", "cleanup", *TICKET, exit=1)

    assert "use another ticket" in again["applied"][0]["result"]


def test_ctrl_c_in_the_middle_of_a_plan_says_what_was_done(shell: Shell, books: Books) -> None:
    tenant = f"stopped_{random.token_hex(4)}"
    shell.begin_upgrade(tenant)
    ledger = shell.suite.pid("ledger")
    assert ledger is not None
    waiting = (
        "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE application_name = 'billctl' AND state = 'idle'"
        " AND query LIKE '%frozen_reason%'"
    )
    os.kill(ledger, signal.SIGSTOP)
    try:
        command = subprocess.Popen(
            [sys.executable, "-m", "billctl", "account", "freeze", tenant, *TICKET, "--json"],
            cwd=shell.folder,
            env=shell.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not books.rows(waiting, role="billing_readonly")[0]["n"] and command.poll() is None:
            time.sleep(0.05)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=30)
    finally:
        os.kill(ledger, signal.SIGCONT)

    told = json.loads(out)
    assert (command.returncode, told["exit"], err) == (130, 130, "")
    assert [(each["step"], each["ok"]) for each in told["applied"]] == [(f"freeze:{tenant}", False)]
    assert "the same line again finds out" in told["applied"][0]["result"]


def test_the_wrong_key_names_the_setting(shell: Shell) -> None:
    tenant = f"locked_{random.token_hex(4)}"
    shell.begin_upgrade(tenant)
    keys = {"a wrong key": "wrong", "the products' key": shell.suite.runtime["secrets"]["gateway_secret"]}

    for key in keys.values():
        told = shell.told("fix", "wrong-plan", tenant, exit=1, OPERATOR_SECRET=key)
        assert "Is OPERATOR_SECRET this suite's" in told["error"]
    broken = shell.told("fix", "wrong-plan", tenant, exit=1, OPERATOR_SECRET="two\nlines")
    assert broken["error"].startswith("OPERATOR_SECRET holds what no key holds")


def test_a_finding_is_closed_in_somebodys_name_by_the_room_that_opened_it(
    shell: Shell, books: Books, customer: str
) -> None:
    finding = f"fnd_{random.token_hex(8)}"
    books.open_finding(finding, "late_charge", customer, note="[bold]\x1b[31m")

    listed = shell.told("findings", "list", "--tenant", customer, "--check", "late_charge")
    shown = shell.run("findings", "show", finding)
    closed = shell.applied("findings", "resolve", finding)
    again = shell.told("findings", "resolve", finding)

    assert [row["id"] for row in listed["findings"]] == [finding]
    assert "[bold]\\u001b[31m" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert closed["applied"] == [{"step": f"resolve:{finding}", "ok": True, "result": f"closed by {ACTOR}"}]
    assert "was closed by asha" in again["summary"]


def test_a_task_is_attempted_again_and_is_done_only_when_it_is(
    shell: Shell, books: Books, customer: str
) -> None:
    (task,) = books.rows(
        "UPDATE billing_reconciliation_queue SET completed_at = NULL, abandoned_at = now(), attempts = 10"
        " WHERE id = (SELECT id FROM billing_reconciliation_queue WHERE tenant_id = %s"
        " AND task_type = 'push_entitlements' ORDER BY position DESC LIMIT 1) RETURNING id",
        *(customer,),
        role="subscriptions_rw",
    )

    listed = shell.told("tasks", "list", "--tenant", customer, "--state", "abandoned")
    planned = shell.told("tasks", "retry", task["id"], exit=3)
    done = shell.applied("tasks", "retry", task["id"])

    assert [row["id"] for row in listed["tasks"]] == [task["id"]]
    assert planned["verdict"] == "critical"
    assert [step["step"] for step in planned["plan"]] == [f"retry:{task['id']}"]
    assert done["applied"][0]["result"].startswith("done at 2")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("findings", "show", "fnd_none"), 1, "there is no finding 'fnd_none'"),
        (("tasks", "retry", "tsk_none"), 1, "there is no task 'tsk_none'"),
        (("jobs", "run", "nap"), 1, "there is no job 'nap'; there are: addon_renewals, "),
        (("jobs", "schedule", "reconcile", "61 * * * *"), 2, "is no schedule of five fields"),
        (("audit-log", "--since", "lately"), 2, "say how long ago"),
        (("jobs", "pause", "cleanup", "--apply"), 2, "--apply needs --ticket, --reason, --actor as well"),
    ],
    ids=["finding", "task", "job", "schedule", "since", "apply"],
)
def test_what_makes_no_sense_is_said_in_one_sentence(
    shell: Shell, words: tuple[str, ...], status: int, said: str
) -> None:
    done = shell.run(*words)

    assert (done.returncode, done.stdout) == (status, "")
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_whoever_has_seen_enough_of_a_list_is_not_complained_to(shell: Shell, customer: str) -> None:
    command = f"{sys.executable} -m billctl tenant timeline {customer} --limit 1000 | head -n 1"

    done = subprocess.run(
        ["bash", "-c", f"for way in '' --json; do {command.replace(' |', ' $way |')}; done"],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 2)


def test_without_a_suite_it_says_what_to_set(shell: Shell) -> None:
    done = shell.run("alerts", OPERATOR_SECRET="", READONLY_DATABASE_URL="")

    assert done.returncode == 1
    assert done.stderr == (
        "no suite runs in this checkout, so say where one is: set OPERATOR_SECRET, READONLY_DATABASE_URL\n"
    )
