"""The past-due ladder: each step once per tenant and cycle, recovery at any point, free on day 14."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from billing.ledger.v1 import ledger_funding_pb2, ledger_pb2
from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb
from billing.subscriptions.v1 import subscriptions_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.subscriptions.rules import alerts, lifecycle
from services.subscriptions.rules.ladder import DOWNGRADE, cycle_ref, due_steps
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.notices import TRIAL_ENDING_KIND
from services.subscriptions.rules.policy import LADDER, Step
from tests.ledger.conftest import Travel
from tests.subscriptions.builders import START, a_known
from tests.subscriptions.conftest import Room
from tests.subscriptions.holding import held

DAY = timedelta(days=1)
KINDS = [step.kind for step in LADDER]
REMINDERS = KINDS[:-1]


@given(st.lists(st.floats(0, 30), max_size=30))
def test_any_sequence_of_job_times_takes_each_step_once_and_sends_one_at_a_time(days: list[float]) -> None:
    taken: dict[str, float] = {}
    sent: list[str] = []

    for day in [*sorted(days), 31.0]:
        steps = due_steps(LADDER, START, taken.keys(), START + day * DAY)
        assert [step.kind for step in steps if step.kind in taken] == []
        assert [step.skipped for step in steps] == [True] * (len(steps) - 1) + [False] * bool(steps)
        taken |= {step.kind: day for step in steps}
        sent += [step.kind for step in steps if not step.skipped]

    assert set(taken) == set(KINDS)
    assert sent == sorted(sent, key=KINDS.index)
    assert sent[-1] == DOWNGRADE
    assert all(taken[step.kind] >= step.day for step in LADDER)


@pytest.mark.parametrize(
    ("days", "due"),
    [
        (0.99, []),
        (1, [("past_due_day_1", False)]),
        (3.5, [("past_due_day_1", True), ("past_due_day_3", False)]),
        (13.99, [("past_due_day_1", True), ("past_due_day_3", True), ("past_due_day_7", False)]),
        (14, [*((kind, True) for kind in REMINDERS), (DOWNGRADE, False)]),
    ],
)
def test_of_what_came_due_together_only_the_last_is_sent(days: float, due: list[tuple[str, bool]]) -> None:
    steps = due_steps(LADDER, START, (), START + days * DAY)

    assert [(step.kind, step.skipped) for step in steps] == due


def test_a_step_before_one_that_was_taken_is_not_sent_any_more() -> None:
    """The first failure turned out to be earlier than it seemed."""
    [step] = due_steps(LADDER, START, {"past_due_day_3"}, START + 4 * DAY)

    assert (step.kind, step.skipped) == ("past_due_day_1", True)


def test_the_ladder_is_configuration() -> None:
    ladder = (Step(2, "past_due_day_1"), Step(30, DOWNGRADE))

    assert due_steps(ladder, START, (), START + 1 * DAY) == []
    assert [step.kind for step in due_steps(ladder, START, {"past_due_day_1"}, START + 30 * DAY)] == [
        DOWNGRADE
    ]
    assert alerts.stage_of(29 * DAY, ladder) == "day_1"


@given(st.floats(0, 13.99))
def test_the_stage_is_the_reminder_that_was_due_last(days: float) -> None:
    now = START + days * DAY
    row = Subscription("sub", "tn", plan_id="pro", status="past_due", past_due_since=START)

    [alert] = alerts.alerts(row, (), {}, (), now)

    steps = due_steps(LADDER, START, (), now)
    assert alert.stage == (steps[-1].kind.removeprefix("past_due_") if steps else "day_1")


def test_a_cycle_keeps_its_name_when_an_earlier_failure_is_heard_of() -> None:
    known = a_known(failing_paid_count=3, failing_since=START)

    assert cycle_ref(replace(known, failing_since=START - DAY)) == cycle_ref(known)
    assert cycle_ref(replace(known, failing_paid_count=4)) != cycle_ref(known)


def test_a_successor_whose_first_charge_failed_lands_on_free_in_good_standing() -> None:
    """The plan before it ended as it should; what the ladder ended decides."""
    ended = a_known(
        id="sub_0",
        paid_count=1,
        status="cancelled",
        authorised=True,
        paid_until=START,
        started_at=START - DAY,
    )
    successor = a_known(
        id="sub_1",
        intent_id="int_2",
        purchased_at=START,
        starts_at=START,
        status="pending",
        authorised=True,
        failing_paid_count=0,
        failing_since=START,
        released_at=START + 14 * DAY,
        released_by="ladder",
    )
    row = Subscription(
        "sub",
        "tn",
        plan_id="starter",
        status="past_due",
        razorpay_subscription_id="sub_1",
        past_due_since=START,
    )

    derived = lifecycle.derive(row, [ended, successor], START + 14 * DAY).row

    assert (derived.plan_id, derived.status, derived.past_due_since) == ("free", "active", None)


async def run(room: Room, *, dry_run: bool = False) -> pb.EscalatePastDueResponse:
    return await room.maintenance.EscalatePastDue(
        pb.EscalatePastDueRequest(idempotency_key="job:escalation:test", dry_run=dry_run)
    )


def of(answer: pb.EscalatePastDueResponse, tenant: str) -> list[tuple[str, bool]]:
    return [(step.kind, step.skipped) for step in answer.steps if step.tenant_id == tenant]


def notices(room: Room, tenant: str) -> list[dict[str, Any]]:
    found = room.rows("SELECT * FROM billing_notifications WHERE tenant_id = %s", tenant)
    # Ids made within one millisecond have no order.
    return sorted(found, key=lambda row: (row["created_at"], [*KINDS, TRIAL_ENDING_KIND].index(row["kind"])))


def row_of(room: Room, tenant: str) -> dict[str, Any]:
    [row] = room.rows("SELECT * FROM subscriptions WHERE tenant_id = %s", tenant)
    return row


async def act(room: Room, subscription_id: str, what: str, **body: Any) -> None:
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/{what}", **body):
        await room.deliver(delivery)


async def failing(room: Room, tenant: str, travel: Travel, *, plan: str = "pro") -> str:
    """A tenant whose renewal failed a moment ago; answers the provider's subscription."""
    await room.provision(tenant)
    begun = await room.checkout(tenant, plan=plan)
    subscription_id = begun.checkout.subscription_id
    await act(room, subscription_id, "pay", method="card")
    [row] = room.rows("SELECT current_period_end FROM subscriptions WHERE tenant_id = %s", tenant)
    travel.forward(days=(row["current_period_end"] - room.clock()) / DAY + 0.01)
    await act(room, subscription_id, "fail")
    assert row_of(room, tenant)["status"] == "past_due"
    return subscription_id


async def test_who_never_pays_is_reminded_three_times_and_lands_on_free(
    room: Room, tenant: str, travel: Travel
) -> None:
    subscription_id = await failing(room, tenant, travel)
    since = row_of(room, tenant)["past_due_since"]
    assert of(await run(room), tenant) == []

    stages = []
    for days, kind in ((1, "past_due_day_1"), (2, "past_due_day_3"), (4, "past_due_day_7")):
        travel.forward(days=days)
        await act(room, subscription_id, "fail")
        answer = await run(room)
        assert of(answer, tenant) == [(kind, False)]
        assert of(await run(room), tenant) == []
        [alert] = (await room.current(tenant)).alerts
        stages.append(subscriptions_pb2.PastDueStage.Name(alert.stage))
    assert stages == ["PAST_DUE_STAGE_DAY_1", "PAST_DUE_STAGE_DAY_3", "PAST_DUE_STAGE_DAY_7"]
    assert row_of(room, tenant)["past_due_since"] == since

    travel.forward(days=7)
    answer = await run(room)

    assert of(answer, tenant) == [(DOWNGRADE, False)]
    row = row_of(room, tenant)
    assert (row["plan_id"], row["status"], row["past_due_since"]) == ("free", "active", None)
    assert row["razorpay_subscription_id"] is None
    at_provider = room.sandbox.sdk.subscription.fetch(subscription_id)
    assert at_provider["status"] == "cancelled"
    [reported] = [each for each in answer.alerts if each.tenant_id == tenant]
    assert (reported.severity, reported.is_event) == (alert_pb2.ALERT_SEVERITY_CRITICAL, True)
    assert reported.key == f"subscriptions.auto_downgraded:{tenant}:{subscription_id}:1"
    told = notices(room, tenant)
    assert [notice["kind"] for notice in told] == KINDS
    assert {notice["cycle_ref"] for notice in told} == {f"{subscription_id}:1"}
    assert told[0]["payload"]["amountPaise"] == 235_882
    assert told[0]["payload"]["downgradeAt"] == (since + 14 * DAY).isoformat()
    [audit] = room.rows(
        "SELECT * FROM billing_audit_log WHERE tenant_id = %s AND actor_id = 'EscalatePastDue'", tenant
    )
    assert audit["metadata"]["before"]["plan_id"] == "pro"
    assert audit["metadata"]["after"]["plan_id"] == "free"
    assert "auto_downgraded" in audit["metadata"]["reason"]
    again = await run(room)
    assert of(again, tenant) == []
    assert reported in again.alerts, "whoever lost the first answer hears of it from the next run"
    assert (await room.current(tenant)).alerts == []
    travel.forward(days=0.99)
    assert reported in (await run(room)).alerts
    travel.forward(days=0.02)
    assert [each for each in (await run(room)).alerts if each.tenant_id == tenant] == []


async def test_the_downgrade_says_what_is_used_beyond_free(room: Room, tenant: str, travel: Travel) -> None:
    await failing(room, tenant, travel)
    await room.ledger.service.SetUsage(
        ledger_pb2.SetUsageRequest(tenant_id=tenant, idempotency_key="used", limit_key="blog.posts", used=37)
    )
    travel.forward(days=14)

    answer = await run(room)

    [alert] = [each for each in answer.alerts if each.tenant_id == tenant]
    assert alert.evidence["over_limit.blog.posts"] == "37 of 10"
    assert notices(room, tenant)[-1]["payload"]["overLimit"] == [
        {"limit": "blog.posts", "used": 37, "allowed": 10}
    ]
    assert [each.subject for each in (await room.current(tenant)).alerts] == ["blog.posts"]
    entitled = await room.ledger.funding.GetEntitlements(
        ledger_funding_pb2.GetEntitlementsRequest(tenant_id=tenant)
    )
    assert entitled.plan_code == "free"


async def test_steps_that_came_due_while_the_job_was_down_are_recorded_and_one_is_sent(
    room: Room, tenant: str, travel: Travel
) -> None:
    await failing(room, tenant, travel)
    travel.forward(days=8)

    answer = await run(room)

    assert of(answer, tenant) == [
        ("past_due_day_1", True),
        ("past_due_day_3", True),
        ("past_due_day_7", False),
    ]
    told = notices(room, tenant)
    assert [notice["skipped_at"] is not None for notice in told] == [True, True, False]
    assert told[0]["payload"]["skippedFor"] == "past_due_day_7"
    assert answer.reminders == sum(not step.skipped and step.kind != DOWNGRADE for step in answer.steps)
    travel.forward(days=7)
    assert of(await run(room), tenant) == [(DOWNGRADE, False)]


async def test_a_dry_run_says_who_would_be_hit_and_does_nothing(
    room: Room, tenant: str, travel: Travel
) -> None:
    await failing(room, tenant, travel)
    travel.forward(days=15)
    before = row_of(room, tenant)

    answer = await run(room, dry_run=True)

    assert of(answer, tenant) == [*((kind, True) for kind in REMINDERS), (DOWNGRADE, False)]
    assert (answer.auto_downgraded, answer.past_due) >= (1, 1)
    assert row_of(room, tenant) == before
    assert notices(room, tenant) == []
    assert of(await run(room), tenant) == of(answer, tenant)


@pytest.mark.parametrize("recovers_after", [0.5, 2, 13.9])
async def test_who_pays_is_left_alone(room: Room, tenant: str, travel: Travel, recovers_after: float) -> None:
    subscription_id = await failing(room, tenant, travel)
    travel.forward(days=recovers_after)
    await run(room)
    told = len(notices(room, tenant))

    await act(room, subscription_id, "pay")

    assert row_of(room, tenant)["status"] == "active"
    assert (await room.current(tenant)).alerts == []
    travel.forward(days=14)
    assert of(await run(room), tenant) == []
    assert len(notices(room, tenant)) == told
    assert row_of(room, tenant)["plan_id"] == "pro"


async def test_the_next_failing_cycle_climbs_the_ladder_anew(room: Room, tenant: str, travel: Travel) -> None:
    subscription_id = await failing(room, tenant, travel)
    travel.forward(days=1)
    await run(room)
    await act(room, subscription_id, "pay")
    travel.forward(days=(row_of(room, tenant)["current_period_end"] - room.clock()) / DAY + 0.01)
    await act(room, subscription_id, "fail")
    travel.forward(days=1)

    assert of(await run(room), tenant) == [("past_due_day_1", False)]
    assert [notice["cycle_ref"] for notice in notices(room, tenant)] == [
        f"{subscription_id}:1",
        f"{subscription_id}:2",
    ]


async def test_a_charge_that_comes_after_the_downgrade_revives_the_plan(
    room: Room, tenant: str, travel: Travel
) -> None:
    subscription_id = await failing(room, tenant, travel)
    travel.forward(days=13)
    # Taken by the bank before the downgrade, told of after it.
    late = room.sandbox.act(f"subscriptions/{subscription_id}/pay")
    travel.forward(days=1)
    await run(room)
    assert row_of(room, tenant)["plan_id"] == "free"

    for delivery in late:
        await room.deliver(delivery)
    await room.reconcile()

    row = row_of(room, tenant)
    assert (row["plan_id"], row["status"]) == ("pro", "active")
    # The subscription itself was ended: what was paid is kept to its end.
    assert row["cancel_at_period_end"] is True


async def test_runs_at_the_same_time_take_each_step_once(room: Room, tenant: str, travel: Travel) -> None:
    await failing(room, tenant, travel)
    travel.forward(days=7)
    reminders = await asyncio.gather(*(run(room) for _ in range(4)))
    travel.forward(days=7)
    downgrades = await asyncio.gather(*(run(room) for _ in range(4)))

    assert sorted(step for each in reminders for step in of(each, tenant)) == [
        ("past_due_day_1", True),
        ("past_due_day_3", True),
        ("past_due_day_7", False),
    ]
    assert [step for each in downgrades for step in of(each, tenant)] == [(DOWNGRADE, False)]
    audits = room.rows(
        "SELECT 1 FROM billing_audit_log WHERE tenant_id = %s AND actor_id = 'EscalatePastDue'", tenant
    )
    assert len(audits) == 1


async def test_a_tenant_that_fails_stops_no_other_and_is_named(
    room: Room, tenant: str, travel: Travel
) -> None:
    stuck, fine = f"{tenant}-a", f"{tenant}-b"
    await failing(room, stuck, travel)
    await failing(room, fine, travel)
    travel.forward(days=1)

    with held(room, stuck):
        answer = await run(room)

    assert of(answer, stuck) == []
    assert notices(room, stuck) == []
    assert of(answer, fine) == [("past_due_day_1", False)]
    [alert] = [each for each in answer.alerts if each.key == "subscriptions.escalation_failed"]
    assert (alert.tenant_id, answer.still_due) == (stuck, 1)
    assert ("past_due_day_1", True) in of(await run(room), stuck)


async def test_the_end_of_a_trial_is_announced_once_three_days_before(
    room: Room, tenant: str, travel: Travel
) -> None:
    travel.forward(days=12)
    await run(room)  # other tests' trials are announced before this one begins
    await room.provision(tenant)
    begun = await room.checkout(tenant, trial=True)
    subscription_id = begun.checkout.subscription_id
    await act(room, subscription_id, "authenticate", method="card")
    assert row_of(room, tenant)["status"] == "trialing"
    travel.forward(days=10.9)
    assert (await run(room)).trials_ending == 0
    travel.forward(days=0.2)
    dry = await run(room, dry_run=True)
    assert (dry.trials_ending, notices(room, tenant)) == (1, [])

    answers = [await run(room), *await asyncio.gather(run(room), run(room))]

    assert [answer.trials_ending for answer in answers] == [1, 0, 0]
    [notice] = notices(room, tenant)
    assert (notice["kind"], notice["cycle_ref"]) == ("trial_ending", subscription_id)
    assert datetime.fromisoformat(notice["payload"]["trialEndAt"]) == row_of(room, tenant)["trial_end"]
    assert datetime.fromisoformat(notice["payload"]["trialEndAt"]).astimezone(UTC) > room.clock()
