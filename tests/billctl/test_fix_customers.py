"""Runbooks 1, 4 and 6 as commands: each against its incident."""

from __future__ import annotations

import asyncio

import pytest
import razorpay
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.billctl.conftest import Books
from tests.billctl.fixing import Fixer, act, begun, bought, heard, provisioned, settled, until
from tests.journeys.test_kill import clients_of
from tests.suite.running import RunningSuite


@pytest.fixture(scope="module")
def fixer(suite: RunningSuite, books: Books) -> Fixer:
    return Fixer(suite, books)


async def charged_twice(fixer: Fixer, tenant: str) -> tuple[str, str]:
    """(the orphan, its payment): both purchases were paid, the end of the first was given up, its refund refused."""
    async with clients_of(fixer.suite) as clients:
        await provisioned(clients, tenant)
        orphan = await begun(clients, tenant, "starter")
        path = f"/v1/subscriptions/{orphan}/cancel"
        await act(clients, "faults", kind="status", status=500, times=50, method="POST", path=path)
        live = await begun(clients, tenant, "pro")
        await act(clients, f"subscriptions/{live}/pay", method="card")
        await settled(fixer.books, tenant, "pro")
        await act(clients, f"subscriptions/{orphan}/pay", method="card")
        await heard(fixer, clients)
        await until(fixer.books, "SELECT COUNT(*) FROM billing_refunds WHERE tenant_id = %s", 1, tenant)
        await clients.sandbox.delete("/_sandbox/faults")
    fixer.by_hand(
        "UPDATE subscriptions.billing_reconciliation_queue SET attempts = 10, abandoned_at = now()"
        " WHERE tenant_id = %s AND completed_at IS NULL",
        tenant,
    )
    fixer.by_hand("UPDATE subscriptions.billing_refunds SET status = 'failed' WHERE tenant_id = %s", tenant)
    fixer.by_hand(
        "UPDATE subscriptions.billing_reconciliation_queue SET completed_at = now()"
        " WHERE tenant_id = %s AND task_type = 'refund_payment'",
        tenant,
    )
    [payment] = fixer.books.rows("SELECT id FROM payments WHERE razorpay_subscription_id = %s", orphan)
    return orphan, payment["id"]


async def test_a_double_charge_ends_the_orphan_and_gives_its_payment_back(fixer: Fixer, tenant: str) -> None:
    orphan, payment = await charged_twice(fixer, tenant)

    looked = await asyncio.to_thread(fixer.looked, "double-charge", tenant, exit=3)
    done = await asyncio.to_thread(fixer.applied_twice, "double-charge", tenant, ticket=f"D-{tenant}")

    steps = [f"cancel:{orphan}", f"refund:{payment}", f"look:{tenant}"]
    assert looked["verdict"] == "critical"
    assert [step["step"] for step in looked["plan"]] == steps
    assert "given up after 10 attempts" in looked["plan"][0]["does"]
    assert [(each["step"], each["ok"]) for each in done["applied"]] == [(step, True) for step in steps]
    assert done["applied"][-1]["result"] == "1 live subscription left at the provider"
    async with clients_of(fixer.suite) as clients:
        rows = (
            await clients.sandbox.get("/_sandbox/deliveries?event=subscription.cancelled&bodies=0")
        ).json()
    assert rows
    refunds = fixer.books.rows(
        "SELECT amount_paise, kind, actor FROM billing_refunds WHERE payment_id = %s AND status <> 'failed'",
        payment,
    )
    assert [(row["amount_paise"], row["kind"]) for row in refunds] == [(58_882, "refund")]
    assert len(fixer.audited(f"D-{tenant}", "payment.refunded")) == 1


async def test_a_stranger_at_the_provider_is_cancelled_and_its_money_left_to_the_dashboard(
    fixer: Fixer, tenant: str
) -> None:
    live = await bought(fixer, tenant)
    secrets = fixer.suite.runtime["secrets"]
    client = razorpay.Client(
        auth=(secrets["razorpay_key_id"], secrets["razorpay_key_secret"]),
        base_url=fixer.suite.runtime["sandbox_url"],
    )
    plan = client.subscription.fetch(live)["plan_id"]
    stranger = client.subscription.create(
        {"plan_id": plan, "total_count": 12, "notes": {"tenant_id": tenant}}
    )
    async with clients_of(fixer.suite) as clients:
        await act(clients, f"subscriptions/{stranger['id']}/pay", method="card")
        await heard(fixer, clients)

    done = await asyncio.to_thread(fixer.applied, "double-charge", tenant, ticket=f"N-{tenant}")
    after = await asyncio.to_thread(fixer.looked, "double-charge", tenant, exit=3)

    assert [each["step"] for each in done["applied"]] == [f"cancel:{stranger['id']}", f"look:{tenant}"]
    assert client.subscription.fetch(stranger["id"])["status"] == "cancelled"
    assert client.subscription.fetch(live)["status"] == "active"
    assert len(fixer.audited(f"N-{tenant}", "orphan.cancelled")) == 1
    assert (after["verdict"], after["plan"]) == ("warning", [])
    assert any(step.startswith("refund pay_") for step in after["next"])


async def test_what_the_customer_pays_with_is_not_ended_because_a_row_was_edited(
    fixer: Fixer, tenant: str
) -> None:
    """As after a plan was promoted by hand and its subscription forgotten."""
    live = await bought(fixer, tenant)
    fixer.by_hand(
        "UPDATE subscriptions.subscriptions SET razorpay_subscription_id = NULL WHERE tenant_id = %s", tenant
    )

    looked = await asyncio.to_thread(fixer.looked, "double-charge", tenant, exit=3)
    named = await asyncio.to_thread(fixer.looked, "double-charge", tenant, "--subscription", live, exit=3)
    wrong = await asyncio.to_thread(fixer.looked, "wrong-plan", tenant, exit=3)

    assert (looked["verdict"], looked["plan"]) == ("critical", [])
    assert live in looked["summary"]
    assert any(step.startswith(f"is {live} what the customer pays with?") for step in looked["next"])
    assert named["plan"][0]["step"] == f"cancel:{live}"
    assert not any("double-charge" in step and "--credits" not in step for step in wrong["next"])


async def test_a_plan_that_nobody_pays_for_is_pushed_nowhere(fixer: Fixer, tenant: str) -> None:
    async with clients_of(fixer.suite) as clients:
        await provisioned(clients, tenant)
    fixer.by_hand("UPDATE subscriptions.subscriptions SET plan_id = 'business' WHERE tenant_id = %s", tenant)
    finding = f"fnd_{tenant}"
    fixer.books.open_finding(finding, "entitlements_differ", tenant, cause="plan_drift")

    looked = await asyncio.to_thread(fixer.looked, "wrong-plan", tenant, exit=3)
    mended = await asyncio.to_thread(fixer.applied, "finding", finding, ticket=f"U-{tenant}", exit=1)

    assert (looked["verdict"], looked["plan"]) == ("critical", [])
    assert "no subscription pays for it" in looked["summary"]
    assert [each["ok"] for each in mended["applied"]] == [False]
    [row] = fixer.books.rows("SELECT plan_code FROM tenant_credits WHERE tenant_id = %s", tenant)
    assert row["plan_code"] == "free"


async def test_who_cancelled_at_once_and_bought_again_was_not_charged_twice(
    fixer: Fixer, tenant: str
) -> None:
    """Nothing is refunded of what a customer ends at once, and buying again does not change that."""
    await bought(fixer, tenant)
    async with clients_of(fixer.suite) as clients:
        await clients.subscriptions.CancelSubscription(
            pb.CancelSubscriptionRequest(tenant_id=tenant, idempotency_key="end", mode=pb.CANCEL_MODE_NOW)
        )
        await heard(fixer, clients)
        again = await clients.subscriptions.Checkout(
            pb.CheckoutRequest(
                tenant_id=tenant,
                idempotency_key="again",
                plan_code="pro",
                cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
            )
        )
        await act(clients, f"subscriptions/{again.checkout.subscription_id}/pay", method="card")
        await heard(fixer, clients)
    await until(fixer.books, "SELECT COUNT(*) FROM payments WHERE tenant_id = %s", 2, tenant)

    looked = await asyncio.to_thread(fixer.looked, "double-charge", tenant, exit=0)

    assert looked["plan"] == []


async def test_of_two_payments_one_is_always_kept(fixer: Fixer, tenant: str) -> None:
    """What goes back already, or is with the bank, is no reason to give back the other one too."""
    live = await bought(fixer, tenant)
    fixer.by_hand(
        "INSERT INTO subscriptions.payments SELECT (jsonb_populate_record(p, jsonb_build_object('id', 'pay_' || %s,"
        " 'received_at', p.received_at + interval '1 minute'))).* FROM subscriptions.payments p WHERE tenant_id = %s",
        *(tenant, tenant),
    )
    [first] = fixer.books.rows(
        "SELECT id FROM payments WHERE tenant_id = %s AND id <> 'pay_' || %s", tenant, tenant
    )

    double = await asyncio.to_thread(fixer.looked, "double-charge", tenant, exit=3)
    fixer.by_hand(
        "UPDATE subscriptions.payments SET amount_refunded_paise = amount_paise, status = 'refunded' WHERE id = %s",
        first["id"],
    )
    after = await asyncio.to_thread(fixer.looked, "double-charge", tenant, exit=0)
    strange = await asyncio.to_thread(fixer.typed, "double-charge", tenant, "--payment", "pay_of_nobody")

    assert [step["step"] for step in double["plan"]] == [f"refund:pay_{tenant}", f"look:{tenant}"]
    assert after["plan"] == []
    assert (strange.exit_code, "is no payment of" in strange.stderr) == (1, True)
    assert live


async def test_lost_credits_are_given_when_they_are_named(fixer: Fixer, tenant: str) -> None:
    await bought(fixer, tenant)
    words = ("double-charge", tenant, "--credits", "120")

    looked = await asyncio.to_thread(fixer.looked, *words, exit=3)
    for _ in range(2):
        done = await asyncio.to_thread(fixer.applied, *words, ticket=f"C-{tenant}")
        assert [each["ok"] for each in done["applied"]] == [True, True]

    assert [step["step"] for step in looked["plan"]] == [f"credits:{tenant}", f"look:{tenant}"]
    given = fixer.books.rows(
        "SELECT amount, reason, description FROM credit_transactions WHERE tenant_id = %s AND kind = 'adjustment'",
        tenant,
    )
    assert [(row["amount"], row["reason"]) for row in given] == [(120, "admin.refund")]
    assert given[0]["description"] == f"C-{tenant}: a test of the runbook"


async def test_while_the_provider_is_silent_nobody_knows(fixer: Fixer, tenant: str) -> None:
    await bought(fixer, tenant)
    async with clients_of(fixer.suite) as clients:
        await act(clients, "faults", kind="status", status=503, times=500, method="GET", path="/v1/")
        try:
            for command in ("double-charge", "wrong-plan"):
                looked = await asyncio.to_thread(fixer.looked, command, tenant, exit=1)
                assert (looked["verdict"], looked["plan"]) == ("unknown", [])
        finally:
            await clients.sandbox.delete("/_sandbox/faults")
    assert (await asyncio.to_thread(fixer.typed, "wrong-plan", "nobody_of_this_name")).exit_code == 1


async def missed(fixer: Fixer, tenant: str) -> str:
    """A purchase that was paid and whose events never came."""
    async with clients_of(fixer.suite) as clients:
        await provisioned(clients, tenant)
        subscription = await begun(clients, tenant, "pro")
        await act(clients, f"subscriptions/{subscription}/pay", method="card", deliver=False)
    return f"promote:{tenant}"


async def stale(fixer: Fixer, tenant: str) -> str:
    """Limits in the ledger that are not those that were built."""
    await bought(fixer, tenant)
    fixer.by_hand(
        "UPDATE ledger.tenant_services SET limits = jsonb_set(limits, '{posts,limit}', '10')"
        " WHERE tenant_id = %s AND service_code = 'blog'",
        tenant,
    )
    return f"rebuild:{tenant}"


async def another(fixer: Fixer, tenant: str) -> str:
    """A row that says another plan than the provider charges for."""
    await bought(fixer, tenant)
    fixer.by_hand("UPDATE subscriptions.subscriptions SET plan_id = 'starter' WHERE tenant_id = %s", tenant)
    return "sync_provider"


@pytest.mark.parametrize("incident", [missed, stale, another], ids=["missed", "stale", "another"])
async def test_a_wrong_plan_is_told_from_the_others_and_mended(
    fixer: Fixer, tenant: str, incident: object
) -> None:
    assert callable(incident)
    first = await incident(fixer, tenant)

    looked = await asyncio.to_thread(fixer.looked, "wrong-plan", tenant, exit=3)
    done = await asyncio.to_thread(fixer.applied_twice, "wrong-plan", tenant, ticket=f"W-{tenant}")

    assert looked["plan"][0]["step"] == first
    assert looked["plan"][-1]["step"] == f"look:{tenant}"
    assert all(each["ok"] for each in done["applied"])
    assert len(done["applied"]) == len(looked["plan"])
    assert "--credits N" in looked["next"][-1]
    [row] = fixer.books.rows(
        "SELECT s.plan_id, t.limits -> 'posts' -> 'limit' AS posts FROM subscriptions s"
        " JOIN tenant_services t USING (tenant_id) WHERE s.tenant_id = %s AND t.service_code = 'blog'",
        tenant,
    )
    assert row == {"plan_id": "pro", "posts": 500}


async def past_due(fixer: Fixer, tenant: str) -> None:
    """A renewal failed twenty days ago, and nobody looked since."""
    subscription = await bought(fixer, tenant)
    async with clients_of(fixer.suite) as clients:
        await act(clients, f"subscriptions/{subscription}/fail")
        await heard(fixer, clients)
    [row] = fixer.books.rows("SELECT status FROM subscriptions WHERE tenant_id = %s", tenant)
    assert row["status"] == "past_due"
    fixer.by_hand(
        "UPDATE subscriptions.subscriptions SET past_due_since = now() - interval '20 days' WHERE tenant_id = %s",
        tenant,
    )
    fixer.by_hand(
        "UPDATE subscriptions.provider_subscriptions SET failing_since = now() - interval '20 days'"
        " WHERE tenant_id = %s AND failing_since IS NOT NULL",
        tenant,
    )


async def test_a_missed_escalation_is_run_and_its_tenant_comes_to_free(fixer: Fixer, tenant: str) -> None:
    await past_due(fixer, tenant)

    looked = await asyncio.to_thread(fixer.looked, "escalation", exit=3)
    done = await asyncio.to_thread(fixer.applied_twice, "escalation", ticket=f"E-{tenant}")

    would = [row for row in looked["facts"]["what the job would do now"] if row["tenant_id"] == tenant]
    assert [row["kind"] for row in would][-1] == "auto_downgraded"
    assert [each["ok"] for each in done["applied"]] == [True]
    [row] = fixer.books.rows("SELECT plan_id, status FROM subscriptions WHERE tenant_id = %s", tenant)
    assert row == {"plan_id": "free", "status": "active"}


async def test_a_downgrade_that_stands_in_the_notices_alone_is_an_engineers(
    fixer: Fixer, tenant: str
) -> None:
    await past_due(fixer, tenant)
    fixer.by_hand(
        "INSERT INTO subscriptions.billing_notifications (id, tenant_id, kind, cycle_ref, payload, created_at)"
        " SELECT 'ntf_' || md5(s.tenant_id), s.tenant_id, 'auto_downgraded', p.id || ':' || p.failing_paid_count,"
        " '{}', now()"
        " FROM subscriptions.subscriptions s JOIN subscriptions.provider_subscriptions p"
        " ON p.id = s.razorpay_subscription_id WHERE s.tenant_id = %s",
        tenant,
    )

    looked = await asyncio.to_thread(fixer.looked, "escalation", exit=3)

    assert looked["plan"] == []
    [step] = [step for step in looked["next"] if tenant in step]
    assert step.startswith(f"call an engineer about {tenant}")
    fixer.by_hand(
        "UPDATE subscriptions.subscriptions SET status = 'active', past_due_since = NULL WHERE tenant_id = %s",
        tenant,
    )
