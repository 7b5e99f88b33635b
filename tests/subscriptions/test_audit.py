"""The audit opens each finding once, closes it when it no longer holds, and cries wolf for no legal history."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from billing.ledger.v1 import ledger_funding_pb2, types_pb2
from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import catalog_pb2, subscriptions_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb
from billing.subscriptions.v1 import subscriptions_maintenance_pb2_grpc as pb_grpc
from pydantic import SecretStr

from services.subscriptions.actions import audit
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rules import findings as rules
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS, Travel
from tests.sandbox.running import KEY_ID, KEY_SECRET, free_port
from tests.subscriptions.conftest import MovableClock, Room, serving


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look follows the first at once."""
    monkeypatch.setattr(audit, "SECOND_LOOK_AFTER_SECONDS", 0.0)


async def run_audit(room: Room, *, dry_run: bool = False) -> pb.AuditSubscriptionsResponse:
    request = pb.AuditSubscriptionsRequest(idempotency_key="job:audit_integrity:test", dry_run=dry_run)
    return await room.maintenance.AuditSubscriptions(request, timeout=60)


def findings(room: Room, tenant: str, *, resolved: bool = False) -> dict[str, dict[str, Any]]:
    """The tenant's findings by check."""
    rows = room.rows(
        "SELECT * FROM billing_integrity_reports WHERE tenant_id = %s AND (resolved_at IS NOT NULL) = %s",
        tenant,
        resolved,
    )
    assert len({row["check_type"] for row in rows}) == len(rows) or resolved
    return {row["check_type"]: row for row in rows}


async def paid(room: Room, tenant: str, *, plan: str = "pro") -> str:
    """A tenant on a paid plan; answers the provider's subscription."""
    await room.provision(tenant)
    subscription_id = (await room.checkout(tenant, plan=plan)).checkout.subscription_id
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card"):
        await room.deliver(delivery)
    return subscription_id


async def opens_resolves_and_reopens(
    room: Room, tenant: str, check: str, *, stage: tuple[str, ...], mend: tuple[str, ...]
) -> dict[str, Any]:
    """Stages an incident twice and mends it in between; answers what was found the first time."""
    await run_audit(room)
    assert findings(room, tenant) == {}, "nothing is wrong before"

    room.change(*stage)
    await run_audit(room)
    again = await run_audit(room)
    [found] = findings(room, tenant).values()
    assert found["check_type"] == check
    told = [each for each in again.alerts if each.tenant_id == tenant]
    assert [(each.key, each.evidence["finding_id"]) for each in told] == [
        (f"subscriptions.{check}:{found['id']}", found["id"])
        for _ in range(check not in rules.TOLD_ELSEWHERE)
    ]

    room.change(*mend)
    await run_audit(room)
    assert findings(room, tenant) == {}
    closed = findings(room, tenant, resolved=True)[check]
    assert (closed["id"], closed["resolved_by"]) == (found["id"], "subscriptions.audit")

    room.change(*stage)
    await run_audit(room)
    assert findings(room, tenant)[check]["id"] != found["id"], "what comes back is a new finding"
    room.change(*mend)
    await run_audit(room)
    assert findings(room, tenant) == {}
    return found


async def test_an_upgrade_that_nobody_paid_for_three_days(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    pending = (await room.checkout(tenant)).checkout.subscription_id
    since = "UPDATE subscriptions SET pending_since = now() - interval '{} hours' WHERE tenant_id = %s"

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "orphan_pending_sub",
        stage=(since.format(73), tenant),
        mend=(since.format(71), tenant),
    )

    assert (found["severity"], found["observed"]["razorpaySubscriptionId"]) == ("warning", pending)


async def test_a_payment_whose_grant_was_never_decided(room: Room, tenant: str) -> None:
    await paid(room, tenant)
    [payment] = room.rows("SELECT id FROM payments WHERE tenant_id = %s", tenant)
    [grant] = room.rows("SELECT to_jsonb(g)::text AS row FROM credit_grants g WHERE tenant_id = %s", tenant)
    # The ledger's lot is younger than what may be on its way: only one side of the loss is seen.
    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "paid_without_grant",
        stage=("DELETE FROM credit_grants WHERE tenant_id = %s", tenant),
        mend=(
            "INSERT INTO credit_grants SELECT * FROM jsonb_populate_record(NULL::credit_grants, %s::jsonb)",
            grant["row"],
        ),
    )

    assert found["severity"] == "critical"
    assert found["observed"] == {"notDecided": [payment["id"]], "notInLedger": []}


async def test_a_grant_that_the_ledger_never_saw(room: Room, tenant: str) -> None:
    await paid(room, tenant)
    reference = f"free:{tenant}:2020-01"

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "paid_without_grant",
        stage=(
            "INSERT INTO credit_grants (id, tenant_id, reference_id, kind, bucket, credits, expires_at)"
            " VALUES (%s, %s, %s, 'free_month', 'subscription', 5, now() + interval '1 day')",
            *(f"grt_{tenant}", tenant, reference),
        ),
        mend=("DELETE FROM credit_grants WHERE reference_id = %s", reference),
    )

    assert found["observed"] == {"notDecided": [], "notInLedger": [reference]}


async def test_a_grant_whose_payment_is_not_there(room: Room, tenant: str) -> None:
    await paid(room, tenant)
    rename = "UPDATE payments SET id = %s WHERE tenant_id = %s"
    [payment] = room.rows("SELECT id FROM payments WHERE tenant_id = %s", tenant)
    room.change(rename, f"pay_Elsewhere{tenant[-6:]}", tenant)
    await run_audit(room)
    found = findings(room, tenant)
    assert found["granted_without_payment"]["observed"]["notMirrored"] == [f"razorpay:{payment['id']}"]
    assert set(found) == {"granted_without_payment", "paid_without_grant"}, "the other one has no grant"

    room.change(rename, payment["id"], tenant)
    await run_audit(room)
    assert findings(room, tenant) == {}


async def test_credits_that_only_the_ledger_knows(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    await room.ledger.funding.GrantCredits(
        ledger_funding_pb2.GrantCreditsRequest(
            tenant_id=tenant,
            idempotency_key="grant:forged",
            bucket=types_pb2.BUCKET_PERMANENT,
            credits=100,
            reference_id="razorpay:pay_Forged00000001",
            reason="credit_pack",
            description="nobody paid",
        )
    )
    await run_audit(room)
    assert findings(room, tenant) == {}, "it may be on its way"

    room.clock.ahead = timedelta(minutes=2)
    await run_audit(room)

    found = findings(room, tenant)["granted_without_payment"]
    assert found["observed"]["notDecided"] == ["razorpay:pay_Forged00000001"]


async def test_limits_that_are_not_those_of_the_plan(room: Room, tenant: str) -> None:
    await paid(room, tenant)
    plan = "UPDATE subscriptions SET plan_id = %s WHERE tenant_id = %s"

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "entitlements_differ",
        stage=(plan, "business", tenant),
        mend=(plan, "pro", tenant),
    )

    assert (found["observed"]["cause"], found["observed"]["planId"]) == ("plan_drift", "business")
    assert "blog.posts" in found["observed"]["limits"]


async def test_limits_that_the_ledger_holds_otherwise(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.clock.ahead = timedelta(minutes=2)  # the push is no longer on its way
    version = "UPDATE subscriptions SET entitlements_version = entitlements_version %s WHERE tenant_id = %s"

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "entitlements_differ",
        stage=(version.replace("%s", "+ 7", 1), tenant),
        mend=(version.replace("%s", "- 7", 1), tenant),
    )

    assert (found["severity"], found["observed"]["cause"]) == ("critical", "ledger")
    assert (found["observed"]["version"], found["observed"]["ledgerVersion"]) == (8, 1)


async def test_a_tenant_without_any_limits(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    [row] = room.rows("SELECT entitlements::text FROM subscriptions WHERE tenant_id = %s", tenant)
    limits = "UPDATE subscriptions SET entitlements = %s::jsonb WHERE tenant_id = %s"

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "active_without_entitlements",
        stage=(limits, "[]", tenant),
        mend=(limits, row["entitlements"], tenant),
    )

    assert found["severity"] == "critical"


async def test_a_task_that_was_given_up(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    [task] = room.rows("SELECT id FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
    change = "UPDATE billing_reconciliation_queue SET completed_at = {}, abandoned_at = {} WHERE id = %s"

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "stuck_task",
        stage=(change.format("NULL", "now()"), task["id"]),
        mend=(change.format("now()", "NULL"), task["id"]),
    )

    assert found["observed"]["taskIds"] == [task["id"]]


async def test_two_subscriptions_that_may_both_charge(room: Room, tenant: str) -> None:
    old = await paid(room, tenant)
    clone = f"sub_{tenant[-6:]:0>14}".replace("_", "A").replace("subA", "sub_", 1)
    room.change(
        "INSERT INTO provider_subscriptions (id, tenant_id, intent_id, plan_id, billing_cycle, provider_plan_id,"
        " purchased_at, status, status_paid_count, observed_at, paid_count, current_start, current_end,"
        " auth_attempts, failing_paid_count, customer_id, payment_method, ended_at)"
        " SELECT %s, tenant_id, intent_id || '2', plan_id, billing_cycle, provider_plan_id, purchased_at, 'cancelled',"
        " status_paid_count, observed_at, paid_count, current_start, current_end, auth_attempts, failing_paid_count,"
        " customer_id, payment_method, now() FROM provider_subscriptions WHERE id = %s",
        *(clone, old),
    )
    status = "UPDATE provider_subscriptions SET status = %s, ended_at = {} WHERE id = %s"

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "two_live_subscriptions",
        stage=(status.format("NULL"), "active", clone),
        mend=(status.format("now()"), "cancelled", clone),
    )

    assert found["observed"]["razorpaySubscriptionIds"] == sorted([old, clone])
    assert found["observed"]["relyingOn"] == old


async def test_money_taken_after_the_end(room: Room, tenant: str) -> None:
    subscription_id = await paid(room, tenant)
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/cancel", by="customer"):
        await room.deliver(delivery)
    shift = (
        "UPDATE payments SET period_start = period_start {0} interval '1 hour',"
        " received_at = received_at {0} interval '1 hour' WHERE tenant_id = %s"
    )

    found = await opens_resolves_and_reopens(
        room,
        tenant,
        "charged_after_end",
        stage=(shift.format("+"), tenant),
        mend=(shift.format("-"), tenant),
    )

    assert found["observed"]["razorpaySubscriptionIds"] == [subscription_id]


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    await run_audit(room)
    room.change("UPDATE subscriptions SET plan_id = 'pro' WHERE tenant_id = %s", tenant)

    dry = await run_audit(room, dry_run=True)

    assert (dry.findings_opened, findings(room, tenant)) == (1, {})
    assert (await run_audit(room)).findings_opened == 1
    await room.admin.RebuildEntitlements(
        admin_pb.RebuildEntitlementsRequest(
            tenant_id=tenant, idempotency_key="r", actor="asha", reason="runbook 4"
        )
    )
    dry = await run_audit(room, dry_run=True)
    assert (dry.findings_resolved, len(findings(room, tenant))) == (1, 1)
    assert (await run_audit(room)).findings_resolved == 1


async def test_a_silent_ledger_is_told_and_closes_nothing(
    room: Room, database: Database, tenant: str
) -> None:
    await room.provision(tenant)
    room.clock.ahead = timedelta(minutes=2)
    room.change("UPDATE subscriptions SET entitlements_version = 9 WHERE tenant_id = %s", tenant)
    await run_audit(room)
    [found] = findings(room, tenant).values()
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    async with (
        serving(database, f"127.0.0.1:{free_port()}", razorpay, MovableClock()) as (address, _, _),
        open_channel(address, SecretStr(SECRETS["room_secret"])) as channel,
    ):
        answer = await pb_grpc.SubscriptionsMaintenanceServiceStub(channel).AuditSubscriptions(
            pb.AuditSubscriptionsRequest(idempotency_key="job:audit_integrity:silent"), timeout=60
        )

    assert [each["id"] for each in findings(room, tenant).values()] == [found["id"]]
    [alert] = [each for each in answer.alerts if each.key == "subscriptions.audit.without_ledger"]
    assert alert.severity == alert_pb2.ALERT_SEVERITY_WARNING
    assert int(alert.evidence["tenants"]) == answer.tenants


async def test_what_holds_for_one_look_only_is_no_finding(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.provision(tenant)
    await run_audit(room)
    room.change("UPDATE subscriptions SET plan_id = 'pro' WHERE tenant_id = %s", tenant)

    async def meanwhile(_: float) -> None:
        room.change("UPDATE subscriptions SET plan_id = 'free' WHERE tenant_id = %s", tenant)

    monkeypatch.setattr("services.subscriptions.actions.audit.asyncio.sleep", meanwhile)
    await run_audit(room)

    assert findings(room, tenant) == {}
    assert findings(room, tenant, resolved=True) == {}


async def test_a_run_that_is_cut_short_says_so_and_the_next_one_goes_on(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await room.provision(f"{tenant}_{number}")
    monkeypatch.setattr(audit, "TENANTS_PAGE", 1)
    whole = (await run_audit(room)).tenants
    looked: list[str] = []
    original = audit._Run.look

    async def look(run: audit._Run, tenants: list[str]) -> Any:
        looked.extend(tenants)
        run.ends_at = 0.0
        return await original(run, tenants)

    monkeypatch.setattr(audit._Run, "look", look)
    first = await run_audit(room)
    second = await run_audit(room)

    assert "subscriptions.audit.unfinished" in {alert.key for alert in first.alerts}
    assert (first.tenants, second.tenants) == (1, 1)
    assert looked == [
        row["tenant_id"] for row in room.rows("SELECT tenant_id FROM subscriptions ORDER BY tenant_id")[:2]
    ]
    monkeypatch.undo()
    assert (await run_audit(room)).tenants == whole, "it comes round to where it had stopped"


async def test_more_findings_than_can_be_shown_are_counted(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.provision(tenant)
    room.change("UPDATE subscriptions SET plan_id = 'pro' WHERE tenant_id = %s", tenant)
    monkeypatch.setattr(audit, "FINDINGS_SHOWN", 0)

    answer = await run_audit(room)

    [alert] = [each for each in answer.alerts if each.key == "subscriptions.more_findings"]
    open_ones = room.rows(
        "SELECT count(*) FROM billing_integrity_reports WHERE room = 'subscriptions' AND resolved_at IS NULL"
        " AND check_type = ANY(%s)",
        sorted(audit.TOLD),
    )
    assert alert.title == f"and {open_ones[0]['count']} more open findings"


async def test_no_legal_history_is_a_finding(room: Room, tenant: str, travel: Travel) -> None:
    """Tenants buy, renew, fail, change plans, cancel, dispute and refund, with events twice and out of order."""
    chance = random.Random(20_261_121)
    tenants = [f"{tenant}_{number}" for number in range(10)]
    for each in tenants:
        await room.provision(each)
        begun = await room.checkout(each, plan=chance.choice(["starter", "pro"]))
        await deliver(room, chance, f"subscriptions/{begun.checkout.subscription_id}/pay", method="card")
    done: Counter[str] = Counter()
    walked_away: set[str] = set()
    # What an event reported for a person to look at stays open until somebody has looked.
    audited = rules.OURS | rules.WITH_LEDGER
    for _ in range(5):
        travel.forward(days=chance.choice([3, 11, 31]))
        await deliver(room, chance, "tick")
        for each in tenants:
            what = await _something(room, each, chance)
            done[what] += 1
            walked_away |= {each} if what == "walked away" else set()
        await room.reconcile()
        await room.maintenance.EscalatePastDue(
            pb.EscalatePastDueRequest(idempotency_key="job:escalation:test")
        )
        await run_audit(room)
        wrong = {each: audited & findings(room, each).keys() for each in tenants}
        for each in walked_away:  # for three days and more: that is one
            wrong[each] -= {"orphan_pending_sub"}
        assert wrong == {each: set() for each in tenants}, done

    assert len(done) >= 6, done
    granted = room.rows("SELECT count(*) FROM credit_grants WHERE starts_with(tenant_id, %s)", f"{tenant}_")
    assert granted[0]["count"] > len(tenants)


async def deliver(room: Room, chance: random.Random, path: str, **body: Any) -> None:
    """Something happens in the world outside; its events arrive twice and in any order."""
    deliveries = room.sandbox.act(path, duplicates=1, shuffle=True, seed=chance.randrange(1000), **body)
    for delivery in deliveries:
        await room.deliver(delivery)


async def _something(room: Room, tenant: str, chance: random.Random) -> str:
    """Something that a customer or a bank does; answers what it was."""
    current = await room.current(tenant)
    what = chance.choice(["pack", "change", "change", "cancel", "fail", "refund", "dispute", "nothing"])
    live = current.subscription_id
    is_live = bool(live) and room.sandbox.sdk.subscription.fetch(live)["status"] == "active"
    payments = room.rows("SELECT id FROM payments WHERE tenant_id = %s ORDER BY received_at DESC", tenant)
    match what:
        case "pack":
            order = await room.buy_credits(tenant, pack="small", key=f"pack-{chance.random()}")
            await deliver(room, chance, f"orders/{order.order_id}/pay", method="upi")
        case "change" if is_live and not current.HasField("pending_change"):
            return await _change(room, tenant, current.plan_code, chance)
        case "cancel" if is_live:
            await deliver(room, chance, f"subscriptions/{live}/cancel", by="customer")
        case "fail" if is_live:
            await deliver(room, chance, f"subscriptions/{live}/fail")
        case "refund" if room.sandbox.sdk.payment.fetch(payments[0]["id"])["status"] == "captured":
            await deliver(room, chance, f"payments/{payments[0]['id']}/refund")
            [refund, *_] = room.sandbox.sdk.payment.fetch_multiple_refund(payments[0]["id"])["items"]
            await deliver(room, chance, f"refunds/{refund['id']}/process")
        case "dispute" if room.sandbox.sdk.payment.fetch(payments[-1]["id"])["status"] == "captured":
            await deliver(room, chance, f"payments/{payments[-1]['id']}/dispute")
            dispute = room.sandbox.sdk.dispute.all({"count": 1})["items"][0]["id"]
            await deliver(room, chance, f"disputes/{dispute}/{chance.choice(['won', 'lost'])}")
        case _:
            return "nothing"
    return what


async def _change(room: Room, tenant: str, plan: str, chance: random.Random) -> str:
    """Up or down one plan; the customer pays or authorises, or closes the page."""
    plans = ["starter", "pro", "business"]
    wanted = chance.choice([each for each in plans if each != plan])
    is_upgrade = plans.index(wanted) > plans.index(plan)
    changed = await room.product.ChangePlan(
        subscriptions_pb2.ChangePlanRequest(
            tenant_id=tenant,
            idempotency_key=f"change-{chance.random()}",
            plan_code=wanted,
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
    )
    if chance.random() < 0.3:
        return "walked away"
    act = "pay" if is_upgrade else "authenticate"
    await deliver(room, chance, f"subscriptions/{changed.checkout.subscription_id}/{act}", method="card")
    return "upgrade" if is_upgrade else "downgrade"
