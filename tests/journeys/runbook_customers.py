"""Incidents that a customer or the audit complains of, brought about in a running suite."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from billing.ledger.v1 import ledger_funding_pb2, types_pb2
from billing.ledger.v1 import ledger_pb2 as ledger_pb
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.scheduler.jobs import BY_NAME
from services.subscriptions.rules.tasks import ATTEMPTS_MAX
from tests.journeys.runbook_operator import Given, Operator
from tests.journeys.test_kill import Clients, clients_of

# Who lives through what; the page calls them by these names.
TWICE, EDITED, STRAY, HANGING = "hooli", "acme", "umbra", "globex"
UNTOLD, STALE, BY_HAND, LATE, DEAR = "initech", "vandelay", "piper", "wonka", "stark"


async def buys(clients: Clients, tenant: str, plan: str = "pro") -> str:
    """A purchase begun; answers the provider's subscription."""
    await clients.subscriptions.ProvisionTenant(
        pb.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
    )
    begun = await clients.subscriptions.Checkout(
        pb.CheckoutRequest(
            tenant_id=tenant,
            idempotency_key=f"buy-{plan}",
            plan_code=plan,
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
    )
    subscription_id: str = begun.checkout.subscription_id
    return subscription_id


async def acts(clients: Clients, act: str, /, **body: object) -> None:
    """Something happens at the provider."""
    (await clients.sandbox.post(f"/_sandbox/{act}", json=body)).raise_for_status()


async def pays(operator: Operator, clients: Clients, subscription_id: str, plan: str = "pro") -> None:
    """The customer pays, and what that brings has come."""
    await acts(clients, f"subscriptions/{subscription_id}/pay", method="card")
    await operator.until(
        "SELECT plan_id FROM subscriptions WHERE razorpay_subscription_id = %s", plan, subscription_id
    )


async def settled(operator: Operator) -> None:
    """Nothing that was told waits to be done."""
    await operator.until("SELECT count(*) FROM webhook_events WHERE NOT processed", 0)
    await operator.until(
        "SELECT count(*) FROM billing_reconciliation_queue WHERE completed_at IS NULL AND abandoned_at IS NULL",
        0,
    )


async def a_first_customer(operator: Operator) -> None:
    """A payment has come, and each job has run once."""
    async with clients_of(operator.suite) as clients:
        await pays(operator, clients, await buys(clients, "first"))
    for job in BY_NAME:
        await operator.runs(job)
    # Ten minutes pass: what ran by hand just now was a tick.
    operator.break_or_mend("UPDATE scheduler.job_runs SET trigger = 'schedule' WHERE job = 'settle_expired'")
    await settled(operator)


async def a_double_charge(operator: Operator) -> Given:
    """A second subscription in the tenant's name charged; whoever wanted to end it found the provider away."""
    async with clients_of(operator.suite) as clients:
        await pays(operator, clients, await buys(clients, TWICE))
        orphan = await made_by_somebody_else(operator, clients, TWICE)
        await acts(clients, f"subscriptions/{orphan}/pay", method="card")
        await settled(operator)
        path = f"/v1/subscriptions/{orphan}/cancel"
        await acts(clients, "faults", kind="status", status=500, times=2, method="POST", path=path)
        await operator.asks_to_cancel(TWICE, orphan)
        operator.break_or_mend(
            "UPDATE subscriptions.billing_reconciliation_queue SET next_attempt_at = now(), attempts = %s"
            " WHERE tenant_id = %s AND completed_at IS NULL",
            *(ATTEMPTS_MAX - 1, TWICE),
        )
        await operator.runs("reconcile")
        await operator.runs("sync_provider")
    [(task,)] = operator.rows("SELECT id FROM billing_reconciliation_queue WHERE abandoned_at IS NOT NULL")
    return {"sub_…": orphan, "tsk_…": task, "fnd_…": finding(operator, "charge_without_subscription")}


async def made_by_somebody_else(operator: Operator, clients: Clients, tenant: str) -> str:
    """A subscription in the tenant's name that no purchase of ours began."""
    secrets = operator.suite.runtime["secrets"]
    key = (secrets["razorpay_key_id"], secrets["razorpay_key_secret"])
    plans = (await clients.sandbox.get("/v1/plans", auth=key)).json()["items"]
    order = {"plan_id": plans[0]["id"], "total_count": 12, "notes": {"tenant_id": tenant}}
    made = await clients.sandbox.post("/v1/subscriptions", json=order, auth=key)
    made.raise_for_status()
    return str(made.json()["id"])


def finding(operator: Operator, check: str) -> str:
    """The open finding of a check."""
    [(finding_id,)] = operator.rows(
        "SELECT id FROM billing_integrity_reports WHERE check_type = %s AND resolved_at IS NULL", check
    )
    return str(finding_id)


async def an_edited_balance(operator: Operator) -> Given:
    """Somebody gave a customer 50 credits in psql, in the column that people read."""
    async with clients_of(operator.suite) as clients:
        await credited(clients, EDITED, 200)
    operator.edit("UPDATE tenant_credits SET balance = balance + 50 WHERE tenant_id = %s", EDITED)
    await operator.runs("audit_integrity")
    return {"fnd_…": finding(operator, "balance_mismatch")}


async def a_stray_transaction(operator: Operator) -> Given:
    """Somebody with every key to the database wrote a transaction that no operation made."""
    async with clients_of(operator.suite) as clients:
        await credited(clients, STRAY, 35)
    operator.break_or_mend(
        "INSERT INTO ledger.credit_transactions SELECT tenant_id, 'txn_stray', 'stray', fingerprint,"
        " fingerprint_version, 'adjustment', 7, 'posted', reason, description, '', '', '', actor, metadata, answer,"
        " 0, 0, now() FROM ledger.credit_transactions WHERE tenant_id = %s",
        STRAY,
    )
    await operator.runs("audit_integrity")
    return {"fnd_…": finding(operator, "ledger_sum_mismatch")}


async def an_upgrade_given_up(operator: Operator) -> Given:
    """Three days ago a customer closed the checkout page, and the provider waits still."""
    async with clients_of(operator.suite) as clients:
        await buys(clients, HANGING)
    operator.break_or_mend(
        "UPDATE subscriptions.subscriptions SET pending_since = now() - interval '73 hours' WHERE tenant_id = %s",
        HANGING,
    )
    await operator.runs("audit_integrity")
    return {"fnd_…": finding(operator, "orphan_pending_sub")}


async def a_promotion_unheard_of(operator: Operator) -> None:
    """Two customers paid for pro, and no webhook told."""
    async with clients_of(operator.suite) as clients:
        for tenant in (UNTOLD, BY_HAND):
            subscription_id = await buys(clients, tenant)
            await acts(clients, f"subscriptions/{subscription_id}/pay", method="card", deliver=False)
    await settled(operator)


async def limits_of_another_plan(operator: Operator) -> None:
    """A customer is on pro, and somebody with every key wrote another plan's limits."""
    async with clients_of(operator.suite) as clients:
        await pays(operator, clients, await buys(clients, STALE))
        await settled(operator)
    for plan in ("starter", "pro"):
        operator.edit("UPDATE subscriptions SET plan_id = %s WHERE tenant_id = %s", plan, STALE)
        if plan == "starter":
            await operator.rebuilds(STALE)


async def a_missed_escalation(operator: Operator) -> None:
    """The hourly job was paused for a deploy; since then a tenant is past due for fifteen days."""
    async with clients_of(operator.suite) as clients:
        subscription_id = await buys(clients, LATE)
        await pays(operator, clients, subscription_id)
        await operator.pauses("escalation")
        await acts(clients, f"subscriptions/{subscription_id}/fail")
        await operator.until("SELECT status FROM subscriptions WHERE tenant_id = %s", "past_due", LATE)
        await settled(operator)
    for table, column in (("subscriptions", "past_due_since"), ("provider_subscriptions", "failing_since")):
        operator.break_or_mend(
            f"UPDATE subscriptions.{table} SET {column} = now() - interval '15 days'"
            f" WHERE tenant_id = %s AND {column} IS NOT NULL",
            LATE,
        )


async def debits_at_twice_the_cost(operator: Operator) -> Given:
    """A release of the blog takes 40 credits for a draft that is published at 20."""
    async with clients_of(operator.suite) as clients:
        await credited(clients, DEAR, 500)
        for number, credits in enumerate((20, 40, 40, 40), 1):
            await clients.ledger.Debit(
                ledger_pb.DebitRequest(
                    tenant_id=DEAR,
                    idempotency_key=f"draft-{number}",
                    credits=credits,
                    reason="blog.generate",
                    reference_id=f"draft-{number}",
                )
            )
    now = datetime.now(UTC)
    return {
        "2026-11-21T06:00Z": (now - timedelta(hours=1)).isoformat(),
        "2026-11-21T07:00Z": (now + timedelta(hours=1)).isoformat(),
    }


async def credited(clients: Clients, tenant: str, credits: int) -> None:
    """A tenant with a pack of credits."""
    await clients.subscriptions.ProvisionTenant(
        pb.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
    )
    await clients.funding.GrantCredits(
        ledger_funding_pb2.GrantCreditsRequest(
            tenant_id=tenant,
            idempotency_key="grant:pack",
            bucket=types_pb2.BUCKET_PERMANENT,
            credits=credits,
            reference_id="test:pack",
            reason="credit_pack",
        )
    )
