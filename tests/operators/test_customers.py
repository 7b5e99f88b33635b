"""Runbooks 1, 4, 6 and 7: what a customer complains about."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from billing.ledger.v1 import ledger_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as maintenance_pb
from google.protobuf import json_format

from shared import clock
from shared.errors import FailedPrecondition
from tests.ledger.builders import a_debit, a_grant
from tests.ledger.conftest import RunningLedger
from tests.operators import staging
from tests.operators.conftest import Operator
from tests.subscriptions.conftest import Room

WriteAs = Callable[..., None]
Travel = Callable[[timedelta], None]


def posts(operator: Operator, tenant: str) -> int:
    """How many blog posts runbook 4 shows as the limit."""
    rows = operator.run("runbook_4_1_limits", TENANT_ID=tenant).rows
    [blog] = [row for row in rows if row["service_code"] == "blog"]
    return int(blog["limits"]["posts"]["limit"])


async def rebuild(room: Room, tenant: str) -> None:
    """The runbook's line after a plan was changed by hand."""
    await room.admin.RebuildEntitlements(
        subscriptions_admin_pb2.RebuildEntitlementsRequest(
            tenant_id=tenant, idempotency_key="rebuild", actor="asha", reason="ticket 7"
        )
    )


async def test_1_2_shows_one_subscription_and_at_most_one_pending(
    room: Room, operator: Operator, tenant: str
) -> None:
    pending = await staging.pending(room, tenant)
    row = operator.run("runbook_1_2", TENANT_ID=tenant).row
    assert (row["razorpay_subscription_id"], row["pending_razorpay_subscription_id"]) == (None, pending)
    assert (row["plan_id"], row["status"]) == ("free", "active")

    for delivery in room.sandbox.act(f"subscriptions/{pending}/pay", method="card"):
        await room.deliver(delivery)

    after = operator.run("runbook_1_2", TENANT_ID=tenant).row
    assert (after["razorpay_subscription_id"], after["pending_razorpay_subscription_id"]) == (pending, None)
    assert (after["plan_id"], after["status"]) == ("pro", "active")
    assert after["created_at"] == row["created_at"]
    assert after["updated_at"] > row["updated_at"]


async def test_1_3_shows_that_the_orphan_was_cancelled(
    room: Room, operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    orphan = await staging.replaced(room, tenant, write_as, fails=0)

    task = operator.run("runbook_1_3", TENANT_ID=tenant, ORPHAN_SUB_ID=orphan).row

    assert (task["task_type"], task["attempts"]) == ("cancel_provider_subscription", 1)
    assert (task["abandoned_at"], task["last_error"]) == (None, None)
    [done] = operator.look("SELECT completed_at FROM billing_reconciliation_queue WHERE id = %s", task["id"])
    assert done["completed_at"] is not None
    assert room.sandbox.sdk.subscription.fetch(orphan)["status"] == "cancelled"


async def test_1_3_shows_no_cancellation_when_nobody_ever_tried(
    room: Room, operator: Operator, tenant: str
) -> None:
    subscription_id = await staging.paid(room, tenant)

    tasks = operator.run("runbook_1_3", TENANT_ID=tenant, ORPHAN_SUB_ID=subscription_id).rows
    assert "cancel_provider_subscription" not in [task["task_type"] for task in tasks]
    assert operator.run("runbook_1_3", TENANT_ID=tenant, ORPHAN_SUB_ID="sub_unknown").rows == []


async def test_1_7_closes_a_task_that_was_given_up_and_keeps_the_operators_word(
    room: Room, operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    orphan = await staging.replaced(room, tenant, write_as, fails=staging.ABANDONED_AFTER)
    task = operator.run("runbook_1_3", TENANT_ID=tenant, ORPHAN_SUB_ID=orphan).row
    assert task["attempts"] == staging.ABANDONED_AFTER
    assert task["abandoned_at"] is not None
    assert task["last_error"]
    assert room.sandbox.sdk.subscription.fetch(orphan)["status"] == "created"
    signals = operator.run("runbook_0_1").row
    key = f"subscriptions.task_abandoned:{task['id']}"
    assert key in {alert.key for alert in (await room.reconcile()).alerts}

    closed = operator.run("runbook_1_7", TASK_ID=task["id"], ID="4711")

    assert closed.changed == 1
    after = operator.run("runbook_0_1").row
    assert after == {"pending": signals["pending"] - 1, "abandoned": signals["abandoned"] - 1}
    assert key not in {alert.key for alert in (await room.reconcile()).alerts}
    [row] = operator.look("SELECT * FROM billing_reconciliation_queue WHERE id = %s", task["id"])
    assert (row["last_error"], row["attempts"]) == ("manual_resolve_ticket_4711", staging.ABANDONED_AFTER)


async def test_1_3_finds_every_task_about_a_provider_subscription_by_the_same_key(
    room: Room, operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    await staging.replaced(room, tenant, write_as, fails=0)
    await staging.paid(room, f"{tenant}_2")

    tasks = operator.look(
        "SELECT task_type, counterpart, payload FROM billing_reconciliation_queue"
        " WHERE starts_with(tenant_id, %s)",
        tenant,
    )

    types = {task["task_type"] for task in tasks}
    assert {"grant_credits", "push_entitlements", "cancel_provider_subscription"} <= types
    for task in tasks:
        assert (task["counterpart"] == "provider") <= ("razorpaySubscriptionId" in task["payload"])
        strange = [key for key in _keys(task["payload"]) if not re.fullmatch("[a-z][a-zA-Z0-9]*", key)]
        assert strange == [], task["task_type"]


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _keys(each)


async def test_4_1_shows_the_plan_and_the_limits_that_hold(
    room: Room, operator: Operator, tenant: str
) -> None:
    pending = await staging.pending(room, tenant)
    assert operator.run("runbook_4_1_subscription", TENANT_ID=tenant).row == {
        "tenant_id": tenant,
        "plan_id": "free",
        "pending_plan_id": "pro",
        "pending_billing_cycle": "monthly",
        "razorpay_subscription_id": None,
        "pending_razorpay_subscription_id": pending,
        "status": "active",
    }
    assert posts(operator, tenant) == 10

    for delivery in room.sandbox.act(f"subscriptions/{pending}/pay", method="card"):
        await room.deliver(delivery)

    row = operator.run("runbook_4_1_subscription", TENANT_ID=tenant).row
    assert (row["plan_id"], row["pending_plan_id"], row["pending_billing_cycle"]) == ("pro", None, None)
    assert posts(operator, tenant) == 500


async def test_4_3_shows_what_was_granted_and_spent_in_a_week(
    room: Room, operator: Operator, tenant: str, travel: Travel
) -> None:
    travel(timedelta(days=-8))
    await room.ledger.funding.GrantCredits(a_grant(tenant, 77, description="older than a week"))
    travel(timedelta())
    await staging.paid(room, tenant)
    await room.ledger.service.Debit(a_debit(tenant, 5, description="one post"))

    rows = operator.run("runbook_4_3", TENANT_ID=tenant).rows

    assert [(row["amount"], row["reason"]) for row in rows] == [(-5, "blog.publish"), (15_000, "plan.cycle")]
    assert rows[0]["description"] == "one post"
    assert rows[0]["created_at"] > rows[1]["created_at"]


async def test_4_4_a_plan_changed_by_hand_moves_no_limits_until_they_are_rebuilt(
    room: Room, operator: Operator, tenant: str
) -> None:
    await staging.pending(room, tenant)

    assert operator.run("runbook_4_4_fix", TENANT_ID=tenant).changed == 1

    row = operator.run("runbook_4_1_subscription", TENANT_ID=tenant).row
    assert (row["plan_id"], row["pending_plan_id"], row["status"]) == ("pro", None, "active")
    assert posts(operator, tenant) == 10
    await rebuild(room, tenant)
    assert posts(operator, tenant) == 500
    assert operator.run("runbook_4_1_subscription", TENANT_ID=tenant).row == row


async def test_4_4_the_audit_reports_the_drift_until_then(
    room: Room, operator: Operator, tenant: str
) -> None:
    await staging.pending(room, tenant)
    operator.run("runbook_4_4_fix", TENANT_ID=tenant)

    await staging.audit_subscriptions(room, f"{tenant}:before")
    assert len(operator.run("runbook_2_1").of(tenant)) == 1

    await rebuild(room, tenant)
    await staging.audit_subscriptions(room, f"{tenant}:after")
    assert operator.run("runbook_2_1").of(tenant) == []


def notify(write_as: WriteAs, tenant: str, kind: str, days_ago: float | None) -> None:
    """A notice as the ladder writes it; without a moment it is still owed."""
    write_as(
        "subscriptions",
        "INSERT INTO billing_notifications (id, tenant_id, kind, cycle_ref, payload, sent_at)"
        " VALUES (%s, %s, %s, 'sub_1:2026-11', '{\"amountPaise\": 235882}', now() - make_interval(secs => %s))",
        *(f"ntf_{tenant}_{kind}", tenant, kind, None if days_ago is None else days_ago * 86_400),
    )


def test_6_1_shows_the_ladder_in_its_sequence(operator: Operator, write_as: WriteAs, tenant: str) -> None:
    for kind, days_ago in (("past_due_day_3", 12), ("past_due_day_1", 14), ("past_due_day_7", 8)):
        notify(write_as, tenant, kind, days_ago)
    notify(write_as, f"{tenant}_neighbour", "past_due_day_1", 1)

    rows = operator.run("runbook_6_1", TENANT_ID=tenant).rows

    assert [row["kind"] for row in rows] == ["past_due_day_7", "past_due_day_3", "past_due_day_1"]
    assert {row["cycle_ref"] for row in rows} == {"sub_1:2026-11"}
    assert rows[0]["payload"] == {"amountPaise": 235_882}
    assert operator.run("runbook_6_3", TENANT_ID=tenant).rows == []


def test_6_1_shows_ten_at_most(operator: Operator, write_as: WriteAs, tenant: str) -> None:
    for number in range(12):
        notify(write_as, tenant, f"past_due_day_{number}", number)

    kinds = [row["kind"] for row in operator.run("runbook_6_1", TENANT_ID=tenant).rows]

    assert kinds == [f"past_due_day_{number}" for number in range(10)]


def test_6_3_shows_whether_the_downgrade_was_written_down(
    operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    notify(write_as, tenant, "past_due_day_7", 8)
    notify(write_as, tenant, "auto_downgraded", 1)

    row = operator.run("runbook_6_3", TENANT_ID=tenant).row

    assert (row["tenant_id"], row["kind"], row["id"]) == (
        tenant,
        "auto_downgraded",
        f"ntf_{tenant}_auto_downgraded",
    )


def test_6_2_the_answer_of_an_escalation_speaks_the_runbooks_words() -> None:
    answer = json_format.MessageToDict(maintenance_pb.EscalatePastDueResponse(auto_downgraded=1))

    assert answer["autoDowngraded"] in (1, "1")


async def test_6_a_tenant_who_never_pays_climbs_the_ladder_and_lands_on_free(
    room: Room, operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    await staging.past_due(room, tenant, write_as, for_days=0)
    expected: list[str] = []
    for day in (1, 3, 7):
        staging.past_due_for(tenant, write_as, days=day + 0.1)
        for attempt in range(2):
            await staging.escalate(room, f"{tenant}:{day}:{attempt}")
        expected.append(f"past_due_day_{day}")
        rows = operator.run("runbook_6_1", TENANT_ID=tenant).rows
        assert sorted(row["kind"] for row in rows) == expected
    staging.past_due_for(tenant, write_as, days=14.1)
    assert operator.run("runbook_0_4").of(tenant)

    answer = await staging.escalate(room, f"{tenant}:14")

    assert answer.auto_downgraded >= 1
    assert operator.run("runbook_6_3", TENANT_ID=tenant).row["tenant_id"] == tenant
    assert operator.run("runbook_0_4").of(tenant) == []
    [row] = operator.look("SELECT * FROM subscriptions WHERE tenant_id = %s", tenant)
    assert (row["plan_id"], row["status"], row["past_due_since"]) == ("free", "active", None)
    assert posts(operator, tenant) == 10
    await staging.escalate(room, f"{tenant}:15")
    assert operator.run("runbook_6_3", TENANT_ID=tenant).row["kind"] == "auto_downgraded"


async def test_7_2_shows_what_a_service_took_in_the_window(
    ledger: RunningLedger, operator: Operator, tenant: str, travel: Travel
) -> None:
    travel(timedelta(hours=-3))
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    await ledger.service.Debit(a_debit(tenant, 9, description="before the window"))
    travel(timedelta())
    await ledger.service.Debit(a_debit(tenant, 50, description="one post", reference_id="post_1"))
    await ledger.service.Debit(a_debit(tenant, 2, reason="blogroll.refresh"))
    await ledger.service.Debit(a_debit(tenant, 3, reason="media.upload", reference_id="file_1"))
    with pytest.raises(FailedPrecondition):
        await ledger.service.Debit(a_debit(tenant, 1000, description="one too many"))

    rows = operator.run("runbook_7_2", TENANT_ID=tenant, SERVICE="blog.", WINDOW="2 hours").rows

    assert [(row["amount"], row["description"]) for row in rows] == [(0, "one too many"), (-50, "one post")]
    assert (rows[1]["reason"], rows[1]["reference_id"]) == ("blog.publish", "post_1")
    assert rows[0]["created_at"] > rows[1]["created_at"] > datetime.now(UTC) - timedelta(minutes=5)
    wider = operator.run("runbook_7_2", TENANT_ID=tenant, SERVICE="blog", WINDOW="1 day").rows
    assert [row["amount"] for row in wider] == [0, -2, -50, -9]
    found = await ledger.service.GetBalance(ledger_pb2.GetBalanceRequest(tenant_id=tenant))
    assert found.balance.available == 100 - 9 - 50 - 2 - 3
    assert clock.offset() == timedelta()
