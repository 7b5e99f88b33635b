"""One tenant over all rooms: how it stands, what it has, what moved."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from billing.ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from billctl.desk import Desk
from billctl.diagnosis import NotThere, Section, View
from billctl.looks import asking

KNOWN = """
SELECT EXISTS (SELECT FROM subscriptions WHERE tenant_id = %(tenant)s)
       OR EXISTS (SELECT FROM tenant_credits WHERE tenant_id = %(tenant)s) AS known;
"""
SUBSCRIPTION = """
SELECT plan_id, billing_cycle, status, current_period_start, current_period_end, trial_end, cancel_at_period_end,
       past_due_since, pending_kind, pending_plan_id, pending_billing_cycle, pending_since, pending_effective_at,
       pending_razorpay_subscription_id, razorpay_subscription_id, razorpay_customer_id, entitlements_version,
       catalog_version, created_at, updated_at
FROM subscriptions
WHERE tenant_id = %(tenant)s;
"""
ACCOUNT = """
SELECT balance, subscription_balance, subscription_expires_at, permanent_balance, held, state, frozen_at,
       NULLIF(frozen_reason, '') AS frozen_reason, plan_code, entitlements_version, seq, last_at
FROM tenant_credits
WHERE tenant_id = %(tenant)s;
"""
LIMITS = """
SELECT service_code || '.' || each.key AS limit_key, (each.value ->> 'limit')::bigint AS "limit",
       COALESCE(tenant_usage.used, 0) AS used, each.value ->> 'kind' AS kind, tenant_services.enabled,
       each.value ->> 'addon' AS addon, grace_periods.expires_at AS grace_until, tenant_services.updated_at
FROM tenant_services
CROSS JOIN LATERAL jsonb_each(tenant_services.limits) AS each
LEFT JOIN tenant_usage ON tenant_usage.tenant_id = tenant_services.tenant_id
    AND tenant_usage.limit_key = service_code || '.' || each.key
LEFT JOIN grace_periods ON grace_periods.tenant_id = tenant_services.tenant_id
    AND grace_periods.limit_key = service_code || '.' || each.key AND NOT grace_periods.ended
WHERE tenant_services.tenant_id = %(tenant)s
ORDER BY limit_key;
"""
PROVIDER = """
SELECT id, plan_id, billing_cycle, status, paid_count, current_end, paid_until, failing_since, ended_at
FROM provider_subscriptions
WHERE tenant_id = %(tenant)s
ORDER BY created_at DESC
"""
OVERRIDES = """
SELECT id, service_id || '.' || limit_key AS limit_key, value, expires_at, actor, reason
FROM tenant_overrides
WHERE tenant_id = %(tenant)s AND removed_at IS NULL
ORDER BY created_at;
"""
ADDONS = """
SELECT id, addon_id, units, status, period, next_renewal, paused_at
FROM tenant_addons
WHERE tenant_id = %(tenant)s AND status <> 'canceled'
ORDER BY created_at;
"""
TASKS = """
SELECT id, task_type, attempts, last_error, next_attempt_at, abandoned_at
FROM billing_reconciliation_queue
WHERE tenant_id = %(tenant)s AND completed_at IS NULL
ORDER BY created_at
"""
FINDINGS = """
SELECT id, severity::text, check_type, room, created_at
FROM billing_integrity_reports
WHERE tenant_id = %(tenant)s AND resolved_at IS NULL
ORDER BY billing_integrity_reports.severity DESC, created_at DESC
"""
NOTICES = """
SELECT id, kind, cycle_ref, created_at, sent_at, skipped_at, attempts
FROM billing_notifications
WHERE tenant_id = %(tenant)s
ORDER BY created_at DESC
"""
HOLDS = """
SELECT id, reserved - captured - released AS held, reserved, captured, released, reason, reference_id, created_at,
       expires_at
FROM credit_holds
WHERE tenant_id = %(tenant)s AND open
ORDER BY expires_at, id
"""
TRANSACTIONS = """
SELECT transactions.id, transactions.created_at, transactions.kind, tx_status, reason, amount,
       entries.account_posted_after AS balance_after, reference_id, description, hold_id, refunded_transaction_id,
       actor, idempotency_key, metadata
FROM credit_transactions AS transactions
LEFT JOIN credit_entries AS entries
    ON entries.tenant_id = transactions.tenant_id AND entries.seq = transactions.last_seq
WHERE transactions.tenant_id = %(tenant)s
  AND (%(since)s::timestamptz IS NULL OR transactions.created_at >= %(since)s)
  AND (%(reason)s::text IS NULL OR (reason = %(reason)s OR starts_with(reason, %(reason)s || '.')))
ORDER BY transactions.id DESC
"""
# More than these are news of another day.
A_FEW = 10


async def must_be_known(desk: Desk, tenant: str) -> None:
    """Raises NotThere for a tenant that no room knows."""
    (row,) = await desk.rows(KNOWN, tenant=tenant)
    if not row["known"]:
        raise NotThere(f"there is no tenant {tenant!r}")


async def show(desk: Desk, tenant: str) -> View:
    """Plan, limits and usage, what the provider has, and everything that is open."""
    await must_be_known(desk, tenant)

    async def part(key: str, title: str, statement: str, **options: Any) -> Section:
        return await asking.section(desk, key, title, statement, tenant=tenant, **options)

    parts = [
        await part("subscription", f"{tenant}: subscription", SUBSCRIPTION, upright=True),
        await part("account", "credits", ACCOUNT, upright=True),
        await part("limits", "limits and usage", LIMITS, aside=("addon", "updated_at")),
        await part("provider", "subscriptions at the provider", PROVIDER, limit=A_FEW, aside=("ended_at",)),
        await part("overrides", "overrides", OVERRIDES),
        await part("addons", "add-ons", ADDONS),
        await part("tasks", "open tasks", TASKS, limit=A_FEW),
        await part("findings", "open findings", FINDINGS, limit=A_FEW),
        await part("notices", "notices", NOTICES, limit=A_FEW, aside=("id", "attempts")),
    ]
    return View(tenant, parts, next_steps=_next(tenant, {each.key: each for each in parts}))


def _next(tenant: str, parts: Mapping[str, Section]) -> list[str]:
    steps = [f"billctl fix finding {row['id']}" for row in parts["findings"].rows[:3]]
    steps += [f"billctl tasks retry {row['id']}" for row in parts["tasks"].rows[:3] if row["abandoned_at"]]
    for row in parts["subscription"].rows:
        if row["status"] == "past_due":
            steps.append("billctl fix escalation, once it is past due for more than 14 days")
        if row["pending_razorpay_subscription_id"]:
            steps.append(f"billctl fix wrong-plan {tenant}, if the pending change is paid")
    if any(row["state"] == "frozen" for row in parts["account"].rows):
        steps.append(f"the account is frozen: billctl findings list --tenant {tenant}")
    return [*steps, f"billctl tenant timeline {tenant}"]


async def balance(desk: Desk, tenant: str) -> View:
    """What it can spend, by bucket, lot and hold, in the order in which it is spent."""
    ledger = desk.stub("ledger", LedgerServiceStub)
    await must_be_known(desk, tenant)
    answer = (await desk.ask(ledger.GetBalance, pb.GetBalanceRequest(tenant_id=tenant), seconds=10)).balance
    source = "LedgerService.GetBalance"
    totals = {
        "available": answer.available,
        "held": answer.held,
        "posted": answer.posted,
        "next_expires_at": _moment(answer, "next_expires_at"),
        "as_of": _moment(answer, "as_of"),
        "as_of_seq": answer.as_of_seq,
    }
    buckets = [
        {
            "bucket": _word(types.Bucket, each.bucket),
            "credits": each.credits,
            "held": each.held,
            "next_expires_at": _moment(each, "next_expires_at"),
        }
        for each in answer.buckets
    ]
    lots = [
        {
            "spent": number,
            "lot": lot.lot,
            "bucket": _word(types.Bucket, lot.bucket),
            "remaining": lot.remaining,
            "held": lot.held,
            "granted": lot.granted,
            "expires_at": _moment(lot, "expires_at"),
            "reference_id": lot.reference_id,
            "created_at": _moment(lot, "created_at"),
        }
        for number, lot in enumerate(answer.lots, 1)
    ]
    holds = await asking.section(
        desk, "holds", "open holds, the first to lapse first", HOLDS, limit=50, tenant=tenant
    )
    parts = [
        Section("balance", f"{tenant}: credits", [totals], source, upright=True),
        Section("buckets", "buckets", buckets, source),
        Section(
            *("lots", "lots, in the order in which they are spent", lots[:50], source),
            more=max(0, len(lots) - 50),
            aside=("created_at",),
        ),
        holds,
    ]
    return View(tenant, parts, next_steps=[f"billctl tenant transactions {tenant}"])


async def transactions(
    desk: Desk, tenant: str, *, since: datetime | None, reason: str | None, limit: int
) -> View:
    """What moved, newest first. A reason stands for those below it too: `blog` for `blog.publish`."""
    await must_be_known(desk, tenant)
    part = await asking.section(
        *(desk, "transactions", f"{tenant}: transactions, newest first", TRANSACTIONS),
        limit=limit,
        aside=("description", "hold_id", "refunded_transaction_id", "actor", "idempotency_key", "metadata"),
        spare=("id",),
        tenant=tenant,
        since=since,
        reason=reason,
    )
    return View(tenant, [part])


def _moment(message: Any, field: str) -> datetime | None:
    """A time of a message, or None where it has none."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)


def _word(enum: Any, value: int) -> str:
    """`BUCKET_PERMANENT` as people say it."""
    return str(enum.Name(value)).partition("_")[2].lower()
