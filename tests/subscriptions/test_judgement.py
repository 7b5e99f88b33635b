"""What the audit holds to be wrong, and what only looks so, on plain values."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from services.subscriptions.rules import differences, entitlements
from services.subscriptions.rules import findings as rules
from services.subscriptions.rules.entitlements import ActiveAddon, Override
from services.subscriptions.rules.findings import (
    Books,
    GrantLine,
    Held,
    LedgerView,
    Lot,
    PaymentLine,
    judge,
)
from services.subscriptions.rules.ladder import DOWNGRADE
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import LADDER, Step
from services.subscriptions.rules.tasks import Task
from tests.subscriptions.builders import CATALOG, MONTH, START, a_known, a_snapshot

NOW = START + timedelta(days=3)
PAID = PaymentLine(
    id="pay_1",
    purpose="plan_cycle",
    razorpay_subscription_id="sub_IBCxfQBRsELuA7",
    plan_id="pro",
    billing_cycle="monthly",
    amount_paise=235_882,
    given_back_paise=0,
    status="captured",
    period_start=START,
    period_end=START + MONTH,
    received_at=START,
    drip_credits=None,
)
GRANTED = GrantLine("razorpay:pay_1", "pay_1", 15_000)
SERVICES = entitlements.build(CATALOG, "pro", [], [], NOW)
VIEW = LedgerView(Held(1, "pro", SERVICES), (Lot("razorpay:pay_1", 15_000, START),))
LIVE = a_known(status="active", paid_count=1, authorised=True, current_start=START, current_end=START + MONTH)
OTHER = replace(LIVE, id="sub_Another0000001", intent_id="int_2")
BOOKS = Books(
    row=Subscription(
        id="s",
        tenant_id="tn_1",
        plan_id="pro",
        billing_cycle="monthly",
        razorpay_subscription_id=LIVE.id,
        entitlements_version=1,
    ),
    services=SERVICES,
    known=(LIVE,),
    payments=(PAID,),
    grants=(GRANTED,),
    mirrored=frozenset({"pay_1"}),
)


def checks(books: Books, view: LedgerView | None = VIEW, now: datetime = NOW) -> list[str]:
    """The names of what is wrong."""
    return [found.check_type for found in judge(books, CATALOG, now, view)]


def a_task(task_type: str, key: str = "k", **of: Any) -> Task:
    return replace(
        Task(
            id="tsk_1",
            position=1,
            tenant_id="tn_1",
            task_type=task_type,
            counterpart="ledger",
            idempotency_key=key,
            payload={},
            attempts=1,
            last_error=None,
            next_attempt_at=NOW,
            completed_at=None,
            abandoned_at=None,
            created_at=NOW,
        ),
        **of,
    )


def test_books_in_order_have_nothing_wrong() -> None:
    assert checks(BOOKS) == []
    assert checks(BOOKS, None) == []


def test_credits_on_their_way_are_not_missing_but_given_up_ones_are() -> None:
    unfunded = LedgerView(VIEW.held, ())
    on_its_way = a_task("grant_credits", "grant:razorpay:pay_1")

    assert checks(BOOKS, unfunded) == ["paid_without_grant"]
    assert checks(replace(BOOKS, tasks=(on_its_way,)), unfunded) == []
    just_now = replace(on_its_way, completed_at=NOW)
    assert checks(replace(BOOKS, tasks=(just_now,)), unfunded) == []
    given_up = replace(on_its_way, abandoned_at=NOW)
    assert sorted(checks(replace(BOOKS, tasks=(given_up,)), unfunded)) == ["paid_without_grant", "stuck_task"]


@pytest.mark.parametrize(("paid_by", "found"), [(None, []), ("pay_1", ["paid_without_grant"])])
def test_credits_that_nobody_paid_for_may_lapse_before_the_ledger_heard_of_them(
    paid_by: str | None, found: list[str]
) -> None:
    free = GrantLine("free:tn_1:2026-09", paid_by, 100, expires_at=NOW)

    assert checks(replace(BOOKS, grants=(GRANTED, free))) == found


@pytest.mark.parametrize(
    ("given_back", "months", "expected"),
    [
        (0, 2, []),
        (0, 1, ["paid_without_grant"]),
        (PAID.amount_paise, 1, []),
        (PAID.amount_paise // 2, 1, ["paid_without_grant"]),
    ],
)
def test_a_dripping_year_owes_the_months_that_began(
    given_back: int, months: int, expected: list[str]
) -> None:
    year = replace(
        PAID,
        billing_cycle="yearly",
        drip_credits=15_000,
        given_back_paise=given_back,
        period_end=START + timedelta(days=365),
    )
    granted = [f"razorpay:pay_1:m{k}" for k in range(1, months + 1)]
    books = replace(
        BOOKS, payments=(year,), grants=tuple(GrantLine(each, "pay_1", 15_000) for each in granted)
    )
    view = replace(VIEW, lots=tuple(Lot(each, 15_000, START) for each in granted))
    second_month = START + timedelta(days=31)

    assert checks(books, view, second_month + timedelta(hours=27)) == expected
    assert checks(books, view, second_month + timedelta(hours=25)) == [], "the job may still come by"


def test_a_months_credits_stop_where_a_newer_purchase_began() -> None:
    year = replace(PAID, billing_cycle="yearly", drip_credits=15_000, period_end=START + timedelta(days=365))
    newer = replace(OTHER, purchased_at=START + timedelta(days=10), started_at=START + timedelta(days=10))
    ended = replace(LIVE, status="cancelled", ended_at=newer.started_at)
    books = replace(
        BOOKS,
        payments=(year,),
        grants=(GrantLine("razorpay:pay_1:m1", "pay_1", 15_000),),
        known=(ended, newer),
    )
    view = replace(VIEW, lots=(Lot("razorpay:pay_1:m1", 15_000, START),))

    assert checks(books, view, START + timedelta(days=100)) == []


def test_what_is_restored_refunded_or_adjusted_needs_no_payment_and_new_lots_are_left_alone() -> None:
    names = ("refund:txn_1", "adjustment:txn_2", "razorpay:disp_1:txn_3", "ticket-7")
    lots = tuple(Lot(name, 5, START) for name in names)
    assert checks(BOOKS, replace(VIEW, lots=VIEW.lots + lots)) == []

    for name in ("razorpay:pay_2", "razorpay:pay_1:m3", "trial:sub_2", "free:tn_1:2026-10"):
        strange = replace(VIEW, lots=(*VIEW.lots, Lot(name, 5, START)))
        fresh = replace(VIEW, lots=(*VIEW.lots, Lot(name, 5, NOW)))
        assert checks(BOOKS, strange) == ["granted_without_payment"]
        assert checks(BOOKS, fresh) == []


def test_an_override_that_has_just_ended_is_no_drift() -> None:
    override = Override("blog", "posts", 9_000, NOW - timedelta(minutes=1))
    lifted = entitlements.build(CATALOG, "pro", [], [override], NOW - timedelta(minutes=2))
    books = replace(BOOKS, services=lifted, overrides=(override,))
    view = replace(VIEW, held=replace(VIEW.held, services=lifted))

    assert checks(books, view) == []
    assert checks(books, view, NOW + timedelta(hours=27)) == ["entitlements_differ"]


def test_addons_count_and_a_push_on_its_way_is_no_difference() -> None:
    addon = ActiveAddon("seat", 3)
    with_seats = entitlements.build(CATALOG, "pro", [addon], [], NOW)
    books = replace(
        BOOKS,
        row=replace(BOOKS.row, entitlements_version=2),
        services=with_seats,
        addons=(addon,),
    )

    [found] = judge(books, CATALOG, NOW, VIEW)
    assert (found.observed["cause"], found.observed["limits"]) == ("ledger", ["platform.seats"])
    assert checks(replace(books, tasks=(a_task("push_entitlements"),))) == []
    assert checks(replace(BOOKS, addons=(addon,))) == ["entitlements_differ"]


def test_a_plan_that_is_none_is_named() -> None:
    [found] = judge(replace(BOOKS, row=replace(BOOKS.row, plan_id="platinum")), CATALOG, NOW, VIEW)
    assert (found.check_type, found.observed["cause"]) == ("entitlements_differ", "no_such_plan")


@pytest.mark.parametrize(
    ("change", "task", "expected"),
    [
        ({}, None, ["two_live_subscriptions"]),
        ({"status": "halted"}, None, ["two_live_subscriptions"]),
        ({"status": "cancelled"}, None, []),
        ({"status": "authenticated", "paid_count": 0}, None, []),
        ({"end_requested_at": NOW}, None, []),
        (
            {"end_requested_at": START, "current_end": NOW - timedelta(days=3)},
            None,
            ["two_live_subscriptions"],
        ),
        ({}, {}, []),
        ({}, {"abandoned_at": NOW}, ["stuck_task", "two_live_subscriptions"]),
    ],
)
def test_two_may_live_only_while_one_is_being_ended(
    change: dict[str, Any], task: dict[str, Any] | None, expected: list[str]
) -> None:
    other = replace(OTHER, **change)
    ending = a_task("cancel_provider_subscription", payload={"razorpaySubscriptionId": other.id})
    tasks = () if task is None else (replace(ending, **task),)

    assert sorted(checks(replace(BOOKS, known=(LIVE, other), tasks=tasks))) == expected


@pytest.mark.parametrize(
    ("ended_after", "given_back", "expected"),
    [
        (timedelta(days=1), 0, []),
        (timedelta(seconds=-30), 0, []),
        (timedelta(hours=-1), 0, ["charged_after_end"]),
        (timedelta(hours=-1), PAID.amount_paise, []),
    ],
)
def test_a_charge_belongs_to_a_period_that_began_before_the_end(
    ended_after: timedelta, given_back: int, expected: list[str]
) -> None:
    ended = replace(LIVE, status="cancelled", ended_at=START + ended_after)
    payment = replace(PAID, given_back_paise=given_back)

    assert checks(replace(BOOKS, known=(ended,), payments=(payment,))) == expected
    in_advance = replace(payment, period_start=START + MONTH)
    assert checks(replace(BOOKS, known=(ended,), payments=(in_advance,))) == expected


def test_an_upgrade_that_was_authorised_is_not_given_up() -> None:
    row = replace(
        BOOKS.row,
        pending_kind="upgrade",
        pending_plan_id="business",
        pending_since=NOW - timedelta(hours=73),
        pending_razorpay_subscription_id=OTHER.id,
    )
    waiting = replace(OTHER, status="created", paid_count=0, authorised=False)

    assert checks(replace(BOOKS, row=row, known=(LIVE, waiting))) == ["orphan_pending_sub"]
    authorised = replace(waiting, authorised=True)
    assert checks(replace(BOOKS, row=row, known=(LIVE, authorised))) == ["stuck_checkout"]
    later = replace(row, pending_effective_at=NOW - timedelta(hours=71))
    assert checks(replace(BOOKS, row=later, known=(LIVE, authorised))) == []
    [found] = judge(replace(BOOKS, row=row, known=(LIVE, replace(authorised, paid_count=1))), CATALOG, NOW)
    assert (found.check_type, found.severity) == ("stuck_checkout", "critical")
    for kind in ("downgrade", "cycle_switch"):
        assert checks(replace(BOOKS, row=replace(row, pending_kind=kind), known=(LIVE, waiting))) == []


@pytest.mark.parametrize(
    ("days", "expected"), [(14.1, []), (14.2, ["missed_escalation"])], ids=["in time", "forgotten"]
)
def test_who_should_be_on_free_by_now_was_forgotten(days: float, expected: list[str]) -> None:
    row = replace(BOOKS.row, status="past_due", past_due_since=NOW - timedelta(days=days))

    assert checks(replace(BOOKS, row=row)) == expected
    patient = (*LADDER[:3], Step(30, DOWNGRADE))
    assert judge(replace(BOOKS, row=row), CATALOG, NOW, VIEW, patient) == []


def test_a_task_that_waits_for_one_before_it_is_not_overdue() -> None:
    due = NOW - timedelta(hours=2)
    first = a_task("grant_credits", "a", next_attempt_at=NOW + timedelta(minutes=5))
    behind = a_task("grant_credits", "b", id="tsk_2", position=2, next_attempt_at=due)

    assert "overdue_task" not in checks(replace(BOOKS, tasks=(first, behind)))
    assert "overdue_task" in checks(replace(BOOKS, tasks=(behind,)))
    beside = replace(behind, counterpart="provider")
    assert "overdue_task" in checks(replace(BOOKS, tasks=(first, beside)))
    given_up = replace(first, abandoned_at=NOW)
    assert "overdue_task" in checks(replace(BOOKS, tasks=(given_up, behind)))


def test_equal_books_and_words_have_no_difference() -> None:
    assert differences.between(LIVE, a_snapshot(), payments=1, plan_of_row="pro") == []
    # Pauses and ends take the period away at the provider; what we know of it stays.
    paused = a_snapshot(status="paused", current_end=None)
    found = differences.between(LIVE, paused, payments=1, plan_of_row=None)
    assert [each.field for each in found] == ["status"]


@pytest.mark.parametrize(
    ("status", "paid_count", "expected"),
    [
        ("created", 0, False),
        ("authenticated", 0, False),
        ("authenticated", 1, True),
        ("active", 0, True),
        ("paused", 1, True),
        ("cancelled", 3, False),
        ("", 0, False),
    ],
)
def test_what_charges(status: str, paid_count: int, expected: bool) -> None:
    assert differences.is_charging(a_snapshot(status=status, paid_count=paid_count)) is expected


def test_every_check_is_one_of_those_that_the_audit_closes_again() -> None:
    assert rules.OURS.isdisjoint(rules.WITH_LEDGER)
    assert rules.ORPHANS not in rules.OURS | rules.WITH_LEDGER
