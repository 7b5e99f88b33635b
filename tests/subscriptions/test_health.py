"""What must not wait for the night is told within minutes, each by one who tells it, and for as long as it holds."""

from __future__ import annotations

from datetime import timedelta

import pytest
from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions import health
from services.subscriptions.rules.health import fails_often
from services.subscriptions.rules.tasks import ATTEMPTS_MAX
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_audit import paid, run_audit
from tests.subscriptions.test_findings_admin import found

# Beyond whatever other tests charge on their travels.
YEARS = timedelta(days=4000)
CRITICAL, WARNING = alert_pb2.ALERT_SEVERITY_CRITICAL, alert_pb2.ALERT_SEVERITY_WARNING


async def check(room: Room) -> pb.CheckHealthResponse:
    return await room.maintenance.CheckHealth(pb.CheckHealthRequest(idempotency_key="job:billing_health:1"))


def keys(answer: pb.CheckHealthResponse) -> dict[str, alert_pb2.Alert]:
    return {alert.key: alert for alert in answer.alerts}


@pytest.mark.parametrize(
    ("succeeded", "failed", "often"),
    [
        (2, 1, False),
        (0, 4, False),
        (45, 5, False),
        (44, 5, True),
        (0, 5, True),
        (900, 100, False),
        (899, 101, True),
    ],
)
def test_more_than_a_tenth_fails_and_enough_that_it_is_no_chance(
    succeeded: int, failed: int, often: bool
) -> None:
    assert fails_often(succeeded, failed, pct=10, at_least=5) is often


async def test_charges_that_fail_in_numbers_wake_somebody(room: Room, tenant: str) -> None:
    room.clock.ahead = YEARS
    await room.provision(tenant)
    await pack(room, tenant, "good", "pay", method="upi")
    for number in range(5):
        answer = await check(room)
        assert "subscriptions.payment_failures" not in keys(answer), number
        await pack(room, tenant, f"bad-{number}", "fail")

    answer = await check(room)

    assert (answer.payments_succeeded_last_hour, answer.payments_failed_last_hour) == (1, 5)
    alert = keys(answer)["subscriptions.payment_failures"]
    assert (alert.severity, alert.title) == (CRITICAL, "5 of 6 charges failed in the last hour")
    room.clock.ahead = YEARS + timedelta(minutes=61)
    answer = await check(room)
    assert (answer.payments_succeeded_last_hour, answer.payments_failed_last_hour) == (0, 0)
    assert "subscriptions.payment_failures" not in keys(answer)


async def pack(room: Room, tenant: str, key: str, what: str, **how: str) -> None:
    """An attempt to pay for credits, of which we are told twice."""
    order = await room.buy_credits(tenant, key=key)
    for delivery in room.sandbox.act(f"orders/{order.order_id}/{what}", duplicates=1, **how):
        await room.deliver(delivery)


async def test_a_dispute_is_told_until_it_is_closed(room: Room, tenant: str) -> None:
    await paid(room, tenant)
    [payment] = room.rows("SELECT id FROM payments WHERE tenant_id = %s", tenant)
    before = (await check(room)).open_disputes
    for delivery in room.sandbox.act(f"payments/{payment['id']}/dispute"):
        await room.deliver(delivery)
    [dispute] = room.rows("SELECT id FROM billing_disputes WHERE payment_id = %s", payment["id"])
    key = f"subscriptions.dispute_open:{dispute['id']}"

    answer = await check(room)

    alert = keys(answer)[key]
    assert (answer.open_disputes, alert.severity, alert.tenant_id) == (before + 1, CRITICAL, tenant)
    assert alert.title.startswith("A customer disputes ₹2,358.82")
    room.change("UPDATE billing_disputes SET status = 'under_review' WHERE id = %s", dispute["id"])
    assert keys(await check(room))[key].severity == WARNING, "somebody contested it"
    for delivery in room.sandbox.act(f"disputes/{dispute['id']}/lost"):
        await room.deliver(delivery)
    answer = await check(room)
    assert (answer.open_disputes, key in keys(answer)) == (before, False)
    assert any("dispute_lost" in each.key for each in answer.alerts if each.tenant_id == tenant)


async def test_each_finding_has_one_who_tells_of_it(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    by_event = await found(room, tenant, "refund_failed", "critical")
    room.change("UPDATE subscriptions SET plan_id = 'pro' WHERE tenant_id = %s", tenant)

    nightly = {each.key for each in (await run_audit(room)).alerts if each.tenant_id == tenant}
    answer = await check(room)

    soon = {each.key for each in answer.alerts if each.tenant_id == tenant}
    assert [key.split(":")[0] for key in nightly] == ["subscriptions.entitlements_differ"]
    assert soon == {f"subscriptions.refund_failed:{by_event}"}
    assert answer.open_critical_findings >= 1
    await room.admin.ResolveFinding(
        admin_pb.ResolveFindingRequest(
            finding_id=by_event, idempotency_key="T-2", actor="asha", reason="paid by transfer"
        )
    )
    assert [each for each in (await check(room)).alerts if each.tenant_id == tenant] == []
    room.change("UPDATE subscriptions SET plan_id = 'free' WHERE tenant_id = %s", tenant)
    await run_audit(room)


async def test_what_was_named_stays_named_when_more_is_found_than_can_be_shown(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        await room.provision(f"{tenant}_{number}")
    warning = await found(room, f"{tenant}_0", "late_charge", "warning")
    before = [each for each in (await check(room)).alerts if each.evidence.get("finding_id")]
    shown = max(sum(each.severity == severity for each in before) for severity in (CRITICAL, WARNING))
    monkeypatch.setattr(health, "SHOWN_MAX", shown)
    fill = [
        await found(room, f"{tenant}_filler_{number}", "refund_failed", "critical")
        for number in range(shown - sum(each.severity == CRITICAL for each in before))
    ]
    named = {each.key for each in (await check(room)).alerts if each.evidence.get("finding_id")}

    new = await found(room, f"{tenant}_1", "refund_failed", "critical")
    later = {each.key: each for each in (await check(room)).alerts}

    assert named <= later.keys(), "or it would look as if it were over"
    assert {f"subscriptions.late_charge:{warning}"} <= named
    assert f"subscriptions.refund_failed:{new}" not in later
    assert "subscriptions.more_findings" in later
    room.change(
        "UPDATE billing_integrity_reports SET resolved_at = now() WHERE id = ANY(%s)", [warning, new, *fill]
    )


async def test_tasks_that_nobody_attempts_and_those_that_were_given_up(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    [task] = room.rows("SELECT id FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
    staged = "UPDATE billing_reconciliation_queue SET {} WHERE id = %s"
    late = "completed_at = NULL, next_attempt_at = now() - interval '{} minutes'"
    assert "subscriptions.tasks_overdue" not in keys(await check(room))

    room.change(staged.format(late.format(59)), task["id"])
    assert "subscriptions.tasks_overdue" not in keys(await check(room))
    room.change(staged.format(late.format(61)), task["id"])
    alert = keys(await check(room))["subscriptions.tasks_overdue"]
    assert (alert.severity, alert.evidence["count"]) == (CRITICAL, "1")

    given_up = (await check(room)).abandoned_tasks
    room.change(staged.format(f"abandoned_at = now(), attempts = {ATTEMPTS_MAX}"), task["id"])
    answer = await check(room)
    assert answer.abandoned_tasks == given_up + 1
    assert [each for each in answer.alerts if task["id"] in str(each)] == [], "Reconcile tells of it"
    told = {each.key for each in (await room.reconcile()).alerts}
    assert f"subscriptions.task_abandoned:{task['id']}" in told
    room.change(staged.format("completed_at = now()"), task["id"])
