"""Prometheus is told of the provider's calls, of tasks and of money, and what the tables hold, in few milliseconds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from services.subscriptions.actions.health import Numbers
from services.subscriptions.clients.razorpay import Razorpay
from shared.errors import BillingError
from shared.metrics import Exposition
from tests.sandbox.running import KEY_ID, free_port
from tests.subscriptions.conftest import POLICY, Room
from tests.subscriptions.test_audit import paid
from tests.subscriptions.test_findings_admin import found


class Scrape(dict[str, float]):
    """Samples by name and labels; what is not there counts as 0."""

    def of(self, name: str, **labels: str) -> float:
        return self.get(f"{name}{sorted(labels.items())}", 0.0)


async def scrape(room: Room) -> Scrape:
    told = await Exposition(Numbers(room.engine, POLICY, room.clock).refresh).text()
    return Scrape(
        {
            f"{sample.name}{sorted(sample.labels.items())}": sample.value
            for family in text_string_to_metric_families(told.decode())
            for sample in family.samples
        }
    )


def calls(operation: str, outcome: str) -> dict[str, str]:
    return {"provider": "razorpay", "operation": operation, "outcome": outcome}


async def test_every_call_to_the_provider_is_counted_by_its_outcome(room: Room, tenant: str) -> None:
    name = "billing_provider_calls_total"
    before = await scrape(room)
    unknown = f"sub_{tenant[-12:]}0000"
    wrong = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret="wrong" * 4)
    nobody = Razorpay(api_url=f"http://127.0.0.1:{free_port()}", key_id=KEY_ID, key_secret="any" * 6)
    subscription_id = await paid(room, tenant)

    await room.razorpay.fetch_subscription(subscription_id)
    asked: list[tuple[Any, str]] = [
        (room.razorpay.fetch_subscription(unknown), "PROVIDER_REFUSED"),
        (wrong.fetch_subscription(subscription_id), "PROVIDER_NOT_CONFIGURED"),
        (nobody.fetch_subscription(subscription_id), "PROVIDER_UNAVAILABLE"),
    ]
    for status in (429, 502):
        room.sandbox.set("faults", kind="status", status=status, times=1)
        asked.append((room.razorpay.fetch_subscription(subscription_id), "PROVIDER_UNAVAILABLE"))
        await _refused(*asked.pop())
    for call, reason in asked:
        await _refused(call, reason)
    for client in (wrong, nobody):
        client.close()

    after = await scrape(room)
    counted = {
        outcome: after.of(name, **calls("subscription.fetch", outcome))
        - before.of(name, **calls("subscription.fetch", outcome))
        for outcome in ("ok", "refused", "unavailable", "unknown")
    }
    assert counted["ok"] >= 1
    assert (counted["refused"], counted["unavailable"], counted["unknown"]) == (2, 2, 1)
    assert after.of(name, **calls("subscription.create", "ok")) > before.of(
        name, **calls("subscription.create", "ok")
    )
    timed = after.of(
        "billing_provider_call_seconds_count", provider="razorpay", operation="subscription.fetch"
    )
    assert timed >= sum(counted.values())


async def _refused(call: Any, reason: str) -> None:
    try:
        await call
    except BillingError as error:
        assert error.reason == reason
    else:
        raise AssertionError(f"expected {reason}")


async def test_money_and_tasks_are_counted_once_they_are_committed(room: Room, tenant: str) -> None:
    before = await scrape(room)
    await paid(room, tenant)
    order = await room.buy_credits(tenant)
    for delivery in room.sandbox.act(f"orders/{order.order_id}/fail", duplicates=1):
        await room.deliver(delivery)

    after = await scrape(room)

    for outcome in ("succeeded", "failed"):
        name = "billing_payments_total"
        assert after.of(name, outcome=outcome) - before.of(name, outcome=outcome) == 1
    for task_type in ("grant_credits", "push_entitlements"):
        done = {"task_type": task_type, "outcome": "completed"}
        name = "billing_reconciliation_attempts_total"
        assert after.of(name, **done) > before.of(name, **done)


async def test_the_tables_are_shown_and_what_is_gone_falls_to_nothing(room: Room, tenant: str) -> None:
    await paid(room, tenant)
    base = await scrape(room)
    finding = {"room": "subscriptions", "check_type": f"seen_{tenant[-6:]}", "severity": "critical"}
    finding_id = await found(room, tenant, finding["check_type"], "critical")
    failing = "UPDATE subscriptions SET status = %s, past_due_since = {} WHERE tenant_id = %s"
    room.change(failing.format("now() - interval '4 days'"), "past_due", tenant)
    [task] = room.rows("SELECT id FROM billing_reconciliation_queue WHERE tenant_id = %s LIMIT 1", tenant)
    staged = "UPDATE billing_reconciliation_queue SET {} WHERE id = %s"
    room.change(staged.format("completed_at = NULL, next_attempt_at = now() - interval '1 hour'"), task["id"])

    shown = await scrape(room)

    def more(name: str, **labels: str) -> float:
        return shown.of(name, **labels) - base.of(name, **labels)

    assert shown.of("billing_integrity_findings_open", **finding) == 1
    assert more("billing_past_due_tenants", stage="day_3") == 1
    assert {
        stage: more("billing_past_due_tenants", stage=stage)
        for stage in ("none", "day_1", "day_7", "overdue")
    } == {"none": 0, "day_1": 0, "day_7": 0, "overdue": 0}
    assert more("billing_subscriptions", plan="pro", status="past_due") == 1
    assert more("billing_reconciliation_tasks", state="pending") == 1
    assert more("billing_reconciliation_tasks", state="due") == 1
    assert shown.of("billing_reconciliation_oldest_due_seconds") >= 3600

    room.change(staged.format("abandoned_at = now()"), task["id"])
    room.change("UPDATE billing_integrity_reports SET resolved_at = now() WHERE id = %s", finding_id)
    room.clock.ahead = timedelta(days=11)
    shown = await scrape(room)
    assert more("billing_reconciliation_tasks", state="pending") == 0
    assert more("billing_reconciliation_tasks", state="abandoned") == 1
    assert shown.of("billing_integrity_findings_open", **finding) == 0
    assert more("billing_past_due_tenants", stage="overdue") == 1
    room.change(failing.format("NULL"), "active", tenant)
    room.change(staged.format("abandoned_at = NULL, completed_at = now()"), task["id"])
