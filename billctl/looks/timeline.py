"""Everything that happened to one tenant, in every room, ordered by time."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billctl.desk import Desk
from billctl.diagnosis import Section, View
from billctl.looks import asking
from billctl.looks.tenant import must_be_known
from billctl.screen import shown

DELIVERIES = """
SELECT received_at, id, event_type, outcome, outcome_reason, last_error, processed_at
FROM webhook_events
WHERE tenant_id = %(tenant)s AND received_at >= %(since)s
ORDER BY received_at DESC
"""
DECISIONS = """
SELECT processed_at, id, event_type, outcome, reason, payment_id, razorpay_subscription_id
FROM processed_payment_events
WHERE tenant_id = %(tenant)s AND processed_at >= %(since)s
ORDER BY processed_at DESC
"""
PAYMENTS = """
SELECT received_at, id, purpose, amount_paise, currency, status, method, amount_refunded_paise
FROM payments
WHERE tenant_id = %(tenant)s AND created_at >= %(since)s
ORDER BY created_at DESC
"""
TASKS = """
SELECT created_at, id, task_type, attempts, last_error, completed_at, abandoned_at
FROM billing_reconciliation_queue
WHERE tenant_id = %(tenant)s
  AND (created_at >= %(since)s OR completed_at >= %(since)s OR abandoned_at >= %(since)s)
ORDER BY created_at DESC
"""
# What is spent is many rows: one line for each hour and reason.
SPENT = """
SELECT MIN(created_at) AS first_at, MAX(created_at) AS last_at, MIN(id) AS id, kind, tx_status, reason,
       COUNT(*) AS n, SUM(amount)::bigint AS amount
FROM credit_transactions
WHERE tenant_id = %(tenant)s AND created_at >= %(since)s
  AND kind IN ('debit', 'hold', 'capture', 'void', 'lapse', 'extend')
GROUP BY date_trunc('hour', created_at), kind, tx_status, reason
ORDER BY first_at DESC
"""
MOVED = """
SELECT created_at, id, kind, tx_status, amount, reason, reference_id, actor
FROM credit_transactions
WHERE tenant_id = %(tenant)s AND created_at >= %(since)s
  AND kind NOT IN ('debit', 'hold', 'capture', 'void', 'lapse', 'extend')
ORDER BY id DESC
"""
NOTICES = """
SELECT created_at, id, kind, cycle_ref, sent_at, skipped_at
FROM billing_notifications
WHERE tenant_id = %(tenant)s AND (created_at >= %(since)s OR sent_at >= %(since)s)
ORDER BY created_at DESC
"""
FINDINGS = """
SELECT created_at, id, room, check_type, severity::text, resolved_at, resolved_by
FROM billing_integrity_reports
WHERE tenant_id = %(tenant)s AND (created_at >= %(since)s OR resolved_at >= %(since)s)
ORDER BY created_at DESC
"""
ALERTS = """
SELECT created_at, id, severity, title, recovered_at
FROM alerts
WHERE tenant_id = %(tenant)s AND (created_at >= %(since)s OR recovered_at >= %(since)s)
ORDER BY created_at DESC
"""
CHANGES = """
SELECT created_at, id, room, action, actor_type, actor_id, metadata ->> 'reason' AS reason,
       metadata -> 'before' AS before, metadata -> 'after' AS after
FROM billing_audit_log
WHERE tenant_id = %(tenant)s AND created_at >= %(since)s
ORDER BY created_at DESC
"""
SIGNATURES = """
SELECT MIN(created_at) AS created_at, MIN(id) AS id, endpoint, remote_ip, COUNT(*) AS n
FROM billing_signature_failures
WHERE tenant_id = %(tenant)s AND created_at >= %(since)s
GROUP BY date_trunc('hour', created_at), endpoint, remote_ip
ORDER BY created_at DESC
"""
# Of each kind; whoever needs more says a later --since.
READ_MAX = 1000
TOLD_CHANGES = 4


@dataclass(frozen=True)
class Line:
    """Something that happened."""

    at: datetime
    room: str
    what: str
    detail: str
    id: str


Row = Mapping[str, Any]


async def show(desk: Desk, tenant: str, *, since: datetime, limit: int) -> View:
    """The newest lines, oldest first."""
    await must_be_known(desk, tenant)
    parts = await asyncio.gather(
        *(
            asking.section(desk, told.__name__, "", statement, limit=READ_MAX, tenant=tenant, since=since)
            for statement, told in SOURCES
        )
    )
    lines = [
        line
        for part, (_statement, told) in zip(parts, SOURCES, strict=True)
        for row in part.rows
        for line in told(row)
        if line.at >= since
    ]
    lines.sort(key=lambda line: (line.at, line.id))
    unread = sum(part.more for part in parts)
    told = [
        {"at": line.at, "room": line.room, "what": line.what, "detail": line.detail, "id": line.id}
        for line in lines[-limit:]
    ]
    more = max(0, len(lines) - limit) + unread
    sources = "\n\n".join(part.source for part in parts)
    title = f"{tenant}: since {shown(since)}" + (", the newest" if more else "")
    section = Section("timeline", title, told, sources, more, spare=("id",))
    return View(
        tenant, [section], next_steps=[f"--limit {min(1000, limit * 4)} or a later --since"] * bool(more)
    )


def delivery(row: Row) -> Iterator[Line]:
    """What a provider sent."""
    became = row["outcome"] or f"waits: {row['last_error'] or 'not yet handed on'}"
    why = f" ({row['outcome_reason']})" if row["outcome_reason"] else ""
    yield Line(
        row["received_at"], "webhooks", "event received", f"{row['event_type']}: {became}{why}", row["id"]
    )


def decision(row: Row) -> Iterator[Line]:
    """What became of it."""
    detail = " ".join(
        str(part)
        for part in (f"{row['event_type']}:", row["outcome"], row["reason"], row["payment_id"])
        if part
    )
    yield Line(row["processed_at"], "subscriptions", "event decided", detail, row["id"])


def payment(row: Row) -> Iterator[Line]:
    """Money."""
    amount = f"{row['currency']} {row['amount_paise'] / 100:,.2f}"
    back = f", {row['amount_refunded_paise'] / 100:,.2f} given back" if row["amount_refunded_paise"] else ""
    detail = f"{row['purpose']} {amount} {row['status']} by {row['method'] or '?'}{back}"
    yield Line(row["received_at"], "subscriptions", "payment", detail, row["id"])


def task(row: Row) -> Iterator[Line]:
    """What is owed to another room or the provider."""
    yield Line(row["created_at"], "subscriptions", "task queued", row["task_type"], row["id"])
    if row["completed_at"]:
        detail = f"{row['task_type']}, {row['attempts']} attempt{'s' * (row['attempts'] != 1)}"
        yield Line(row["completed_at"], "subscriptions", "task done", detail, row["id"])
    if row["abandoned_at"]:
        detail = f"{row['task_type']}: {row['last_error']}"
        yield Line(row["abandoned_at"], "subscriptions", "task given up", detail, row["id"])


def spent(row: Row) -> Iterator[Line]:
    """Credits spent or set aside, by the hour."""
    status = "" if row["tx_status"] in {"posted", "held", "captured", "voided"} else f" {row['tx_status']}"
    detail = f"{row['reason']} {_signed(row['amount'])}{status}"
    if row["n"] > 1:
        detail += f" in {row['n']:,} until {shown(row['last_at'])}"
    yield Line(row["first_at"], "ledger", str(row["kind"]), detail, row["id"])


def moved(row: Row) -> Iterator[Line]:
    """Credits that came, went or came back."""
    by = f" by {row['actor']}" if row["actor"] else ""
    status = f" {row['tx_status']}" if row["tx_status"] == "rejected" else ""
    detail = f"{_signed(row['amount'])} {row['reason']} {row['reference_id']}".strip() + status + by
    yield Line(row["created_at"], "ledger", str(row["kind"]), detail, row["id"])


def notice(row: Row) -> Iterator[Line]:
    """What the customer was told."""
    fate = "skipped" if row["skipped_at"] else "" if row["sent_at"] else "owed"
    detail = f"{row['kind']} of {row['cycle_ref']} {fate}".strip()
    yield Line(row["created_at"], "subscriptions", "notice", detail, row["id"])
    if row["sent_at"]:
        yield Line(row["sent_at"], "subscriptions", "notice sent", row["kind"], row["id"])


def finding(row: Row) -> Iterator[Line]:
    """What an audit found."""
    detail = f"{row['severity']} {row['check_type']}"
    yield Line(row["created_at"], row["room"], "finding opened", detail, row["id"])
    if row["resolved_at"]:
        detail = f"{row['check_type']} by {row['resolved_by']}"
        yield Line(row["resolved_at"], row["room"], "finding closed", detail, row["id"])


def alert(row: Row) -> Iterator[Line]:
    """What people were told."""
    yield Line(row["created_at"], "scheduler", "alert", f"{row['severity']}: {row['title']}", row["id"])
    if row["recovered_at"]:
        yield Line(row["recovered_at"], "scheduler", "alert recovered", row["title"], row["id"])


def change(row: Row) -> Iterator[Line]:
    """A line of the audit log, with what was and is."""
    before, after = row["before"] or {}, row["after"] or {}
    told = [
        f"{name} {_short(before.get(name))} → {_short(value)}"
        for name, value in sorted(after.items())
        if before.get(name) != value
    ]
    rest = f", {len(told) - TOLD_CHANGES} more" if len(told) > TOLD_CHANGES else ""
    said = ", ".join(told[:TOLD_CHANGES]) + rest
    detail = f"by {row['actor_id']}: {row['reason']}" + (f"; {said}" if said else "")
    yield Line(row["created_at"], row["room"], row["action"], detail, row["id"])


def signature(row: Row) -> Iterator[Line]:
    """Signatures that were refused."""
    detail = f"{row['n']} on {row['endpoint']} from {row['remote_ip'] or '?'} in an hour"
    yield Line(row["created_at"], "webhooks", "signature refused", detail, row["id"])


def _signed(credits: int) -> str:
    return f"{credits:+,}" if credits else "0"


def _short(value: Any) -> str:
    text = "none" if value is None else shown(value)
    return text if len(text) <= 40 else text[:39] + "…"


SOURCES: tuple[tuple[str, Callable[[Row], Iterator[Line]]], ...] = (
    (DELIVERIES, delivery),
    (DECISIONS, decision),
    (PAYMENTS, payment),
    (TASKS, task),
    (SPENT, spent),
    (MOVED, moved),
    (NOTICES, notice),
    (FINDINGS, finding),
    (ALERTS, alert),
    (CHANGES, change),
    (SIGNATURES, signature),
)
