"""One tenant over all rooms."""

from __future__ import annotations

import re

import psycopg
import pytest

from billctl.looks import asking, findings, lists, tenant, timeline
from tests.billctl.conftest import Books, Shell


def test_its_balance_is_numbers_in_the_order_in_which_they_are_spent(
    shell: Shell, books: Books, customer: str
) -> None:
    told = shell.told("tenant", "balance", customer)

    (row,) = books.rows("SELECT balance, held FROM tenant_credits WHERE tenant_id = %s", customer)
    assert told["balance"][0]["posted"] == row["balance"] == sum(lot["remaining"] for lot in told["lots"])
    assert [lot["bucket"] for lot in told["lots"]] == ["subscription", "permanent"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["lots"][0]["expires_at"])


def test_its_transactions_come_newest_first_with_the_balance_after_each(shell: Shell, customer: str) -> None:
    told = shell.told("tenant", "transactions", customer)["transactions"]
    blogged = shell.told(
        "tenant", "transactions", customer, "--reason", "blog", "--since", "1h", "--limit", "2"
    )

    assert [row["id"] for row in told] == sorted((row["id"] for row in told), reverse=True)
    running = 0
    for row in reversed(told):
        running += row["amount"]
        assert row["balance_after"] in {None, running}
    assert {row["reason"] for row in blogged["transactions"]} == {"blog.publish"}
    assert (len(blogged["transactions"]), blogged["more_transactions"]) == (2, 1)


def test_its_timeline_is_everything_in_every_room_in_order(shell: Shell, customer: str) -> None:
    lines = shell.told("tenant", "timeline", customer, "--limit", "1000")["timeline"]

    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert {line["room"] for line in lines} >= {"ledger", "subscriptions", "webhooks"}
    assert {"event received", "event decided", "payment", "task done", "grant", "subscription.changed"} <= {
        line["what"] for line in lines
    }
    (spent,) = (line for line in lines if line["what"] == "debit" and "rejected" not in line["detail"])
    assert "blog.publish -15,500 in 2 until" in spent["detail"]


def test_everything_that_is_open_is_shown_with_what_to_type_next(
    shell: Shell, books: Books, customer: str
) -> None:
    done = shell.run("tenant", "show", customer, "--sql")

    assert done.returncode == 0, done.stderr
    assert re.search(r"^plan_id +business$", done.stdout, re.MULTILINE)
    assert re.search(r"^platform.seats +50 +0 +hard", done.stdout, re.MULTILINE)
    statement = done.stdout.split("FROM subscriptions\n")[1].split(";")[0]
    assert statement == f"WHERE tenant_id = '{customer}'"


def test_an_unknown_tenant_is_said_to_be_unknown_and_its_name_does_no_harm(shell: Shell) -> None:
    done = shell.run("tenant", "timeline", "[red]x\x1b[31m\u202e")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "there is no tenant '[red]x\\x1b[31m\\u202e'\n"


STATEMENTS = {
    **{
        f"show_{name.lower()}": getattr(tenant, name)
        for name in (
            *("SUBSCRIPTION", "ACCOUNT", "LIMITS", "PROVIDER", "OVERRIDES", "ADDONS", "TASKS", "FINDINGS"),
            *("NOTICES", "HOLDS", "TRANSACTIONS", "KNOWN"),
        )
    },
    **{f"timeline_{told.__name__}": statement for statement, told in timeline.SOURCES},
    "findings": findings.LIST,
    "audit_log": lists.AUDIT_LOG,
    "alerts": lists.ALERTS,
    "tasks": lists.TASKS.replace("{condition}", "true"),
}


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_nothing_about_a_tenant_reads_a_whole_table(books: Books, name: str) -> None:
    values = {"tenant": "acme", "since": "2026-11-01T00:00Z", "reason": "blog"}
    values |= dict.fromkeys(("check", "severity", "action", "actor", "all"))
    statement = asking.typed(asking.asked(STATEMENTS[name], values), values)

    with psycopg.connect(books.urls["billing_readonly"], autocommit=True) as db:
        # Its own tables are small here; the question is whether a large one could be asked otherwise.
        db.execute("SET enable_seqscan = off")
        plan = "\n".join(row[0] for row in db.execute("EXPLAIN " + statement))  # type: ignore[arg-type]

    assert "Seq Scan" not in plan, plan
    # Open alerts are few, and have an index of their own.
    assert name == "alerts" or re.search(r"Index Cond: .*tenant_id = ", plan), plan
