"""A tenant's credits by hand: given and taken once for each ticket, frozen and unfrozen, each in somebody's name."""

from __future__ import annotations

import secrets as random

import pytest

from tests.billctl.conftest import ACTOR, Books, Shell

WHY = ("--apply", "--reason", "a test", "--actor", ACTOR)


@pytest.fixture
def tenant(shell: Shell) -> str:
    """A tenant on free, with an account."""
    tenant = f"account_{random.token_hex(4)}"
    shell.begin_upgrade(tenant)
    return tenant


def credits(books: Books, tenant: str) -> int:
    (row,) = books.rows("SELECT balance FROM tenant_credits WHERE tenant_id = %s", tenant)
    return int(row["balance"])


def lines(books: Books, tenant: str, action: str) -> list[tuple[str, str]]:
    return [
        (row["actor_id"], row["reason"])
        for row in books.rows(
            "SELECT actor_id, metadata ->> 'reason' AS reason FROM billing_audit_log"
            " WHERE tenant_id = %s AND action = %s ORDER BY created_at",
            *(tenant, action),
        )
    ]


def test_credits_are_given_and_taken_once_for_each_ticket(shell: Shell, books: Books, tenant: str) -> None:
    had = credits(books, tenant)
    give = ("account", "adjust", tenant, "--credits", "70")

    looked = shell.told(*give, exit=3)
    assert credits(books, tenant) == had
    for _ in range(2):
        given = shell.told(*give, *WHY, "--ticket", "A-1")
    other = shell.told("account", "adjust", tenant, "--credits", "71", *WHY, "--ticket", "A-1", exit=1)
    taken = shell.told("account", "adjust", tenant, "--credits", "-30", *WHY, "--ticket", "A-2")
    too_much = shell.told(
        "account", "adjust", tenant, "--credits", "-999999", *WHY, "--ticket", "A-3", exit=1
    )

    assert looked["facts"]["what it can spend"] == [{"before": had, "after": had + 70}]
    assert "booked earlier under this ticket" in given["applied"][0]["result"]
    assert "IDEMPOTENCY_KEY_REUSED" in other["applied"][0]["result"]
    assert taken["applied"][0]["result"].endswith(f"{had + 40} available")
    assert "INSUFFICIENT_CREDITS" in too_much["applied"][0]["result"]
    assert credits(books, tenant) == had + 40
    assert lines(books, tenant, "adjust_credits") == [(ACTOR, "A-1: a test"), (ACTOR, "A-2: a test")]


def test_credits_with_an_end_go_to_the_subscriptions_bucket(shell: Shell, books: Books, tenant: str) -> None:
    words = ("account", "adjust", tenant, "--credits", "5", "--refund", "--expires", "2199-01-01T00:00+05:30")

    shell.told(*words, *WHY, "--ticket", "A-4")

    (lot,) = books.rows(
        "SELECT bucket, remaining, expires_at::text FROM credit_buckets WHERE tenant_id = %s"
        " AND reference_id LIKE 'adjustment:%%'",
        tenant,
    )
    assert lot == {"bucket": "subscription", "remaining": 5, "expires_at": "2198-12-31 18:30:00+00"}
    (row,) = books.rows(
        "SELECT reason FROM credit_transactions WHERE tenant_id = %s AND kind = 'adjustment'", tenant
    )
    assert row["reason"] == "admin.refund"


def test_a_frozen_account_takes_no_adjustment_until_somebody_unfreezes_it(
    shell: Shell, books: Books, tenant: str
) -> None:
    shell.told("account", "freeze", tenant, exit=3)
    shell.told("account", "freeze", tenant, *WHY, "--ticket", "A-5")
    again = shell.told("account", "freeze", tenant, *WHY, "--ticket", "A-5")
    adjusted = shell.told("account", "adjust", tenant, "--credits", "1", *WHY, "--ticket", "A-6", exit=3)
    shell.told("account", "unfreeze", tenant, *WHY, "--ticket", "A-5")
    stale = shell.told("account", "freeze", tenant, *WHY, "--ticket", "A-5", exit=1)

    assert (again["verdict"], again["plan"]) == ("ok", [])
    assert (adjusted["verdict"], adjusted["plan"]) == ("critical", [])
    assert any(f"billctl account unfreeze {tenant}" in step for step in adjusted["next"])
    assert "use another ticket" in stale["applied"][0]["result"]
    (row,) = books.rows("SELECT state FROM tenant_credits WHERE tenant_id = %s", tenant)
    assert row["state"] == "active"
    assert lines(books, tenant, "freeze_account") == [(ACTOR, "A-5: a test")]
    assert lines(books, tenant, "unfreeze_account") == [(ACTOR, "A-5: a test")]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("adjust", "nobody_of_this_name", "--credits", "1"), 1, "there is no tenant 'nobody_of_this_name'"),
        (("adjust", "t", "--credits", "0"), 2, "changes nothing"),
        (("adjust", "t", "--credits", "-1", "--expires", "2199-01-01T00:00Z"), 2, "in the usual order"),
        (("adjust", "t", "--credits", "1", "--expires", "2020-01-01T00:00Z"), 2, "is past"),
        (("freeze", "x" * 10_000), 1, "there is no tenant"),
        (("freeze", "a\tb\x1b[31m"), 1, "there is no tenant"),
        (("thaw", "t"), 2, "No such command 'thaw'"),
    ],
    ids=["nobody", "nothing", "taken-until", "past", "long", "control", "no-command"],
)
def test_refusals_are_sentences_and_documents(
    shell: Shell, words: tuple[str, ...], status: int, said: str
) -> None:
    done = shell.run("account", *words)
    told = shell.told("account", *words, exit=status)

    assert (done.returncode, done.stdout) == (status, "")
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert set(told) == {"error", "exit"}
    assert (said in told["error"], told["exit"]) == (True, status)
