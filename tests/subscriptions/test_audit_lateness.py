"""What time should have done and nobody did, and what a person closed too early."""

import pytest
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb

from services.subscriptions.actions import audit
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_audit import findings, opens_resolves_and_reopens, paid, run_audit


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look follows the first at once."""
    monkeypatch.setattr(audit, "SECOND_LOOK_AFTER_SECONDS", 0.0)


async def test_a_tenant_whom_the_ladder_forgot(room: Room, tenant: str) -> None:
    await paid(room, tenant)
    failing = "UPDATE subscriptions SET status = %s, past_due_since = {} WHERE tenant_id = %s"

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "missed_escalation",
        stage=(failing.format("now() - interval '14 days 4 hours'"), "past_due", tenant),
        mend=(failing.format("NULL"), "active", tenant),
    )

    assert (found["severity"], found["observed"]["planId"]) == ("warning", "pro")


async def test_a_task_that_nobody_attempts(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    [task] = room.rows("SELECT id FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
    owed = (
        "UPDATE billing_reconciliation_queue SET completed_at = {}, next_attempt_at = now() - interval '61 minutes',"
        " locked_until = now() + interval '1 minute' WHERE id = %s"
    )

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "overdue_task",
        stage=(owed.format("NULL"), task["id"]),
        mend=(owed.format("now()"), task["id"]),
    )

    assert (found["severity"], found["observed"]["taskIds"]) == ("warning", [task["id"]])


async def test_a_customer_who_authorised_and_does_not_have_what_was_bought(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    pending = (await room.checkout(tenant)).checkout.subscription_id
    room.change("UPDATE provider_subscriptions SET authorised = true WHERE id = %s", pending)
    since = "UPDATE subscriptions SET pending_since = now() - interval '{} hours' WHERE tenant_id = %s"

    found = await opens_resolves_and_reopens(
        room, tenant, "stuck_checkout", stage=(since.format(73), tenant), mend=(since.format(71), tenant)
    )

    assert found["observed"]["razorpaySubscriptionId"] == pending
    room.change("UPDATE provider_subscriptions SET authorised = false WHERE id = %s", pending)


async def test_what_a_person_closed_too_early_is_opened_and_told_anew(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.change("UPDATE subscriptions SET plan_id = 'pro' WHERE tenant_id = %s", tenant)
    first = [each for each in (await run_audit(room)).alerts if each.tenant_id == tenant]
    found = findings(room, tenant)["entitlements_differ"]
    closed = await room.admin.ResolveFinding(
        admin_pb.ResolveFindingRequest(
            finding_id=found["id"], idempotency_key="T-9", actor="asha", reason="looked fine"
        )
    )
    assert closed.finding.resolved_by == "asha"

    again = [each for each in (await run_audit(room)).alerts if each.tenant_id == tenant]

    reopened = findings(room, tenant)["entitlements_differ"]
    assert reopened["id"] != found["id"]
    assert [each.key for each in first] == [f"subscriptions.entitlements_differ:{found['id']}"]
    assert [each.key for each in again] == [f"subscriptions.entitlements_differ:{reopened['id']}"]
    kept = findings(room, tenant, resolved=True)["entitlements_differ"]
    assert (kept["id"], kept["resolved_by"]) == (found["id"], "asha")
    room.change("UPDATE subscriptions SET plan_id = 'free' WHERE tenant_id = %s", tenant)
    await run_audit(room)
