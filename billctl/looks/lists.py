"""Lists that a person goes through: tasks, alerts, the audit log."""

from datetime import datetime
from typing import Any

from billctl.desk import Desk
from billctl.diagnosis import View
from billctl.looks import asking

# Each state has the condition that its index has.
TASKS = """
SELECT id, state, tenant_id, task_type, attempts, last_error, next_attempt_at, created_at, completed_at, abandoned_at,
       idempotency_key, payload
FROM (SELECT *, CASE WHEN completed_at IS NOT NULL THEN 'completed'
                     WHEN abandoned_at IS NOT NULL THEN 'abandoned' ELSE 'pending' END AS state
      FROM billing_reconciliation_queue
      WHERE (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s) AND {condition}) AS tasks
ORDER BY position
"""
TASK_STATES = {
    "open": "completed_at IS NULL",
    "pending": "completed_at IS NULL AND abandoned_at IS NULL",
    "abandoned": "abandoned_at IS NOT NULL AND completed_at IS NULL",
    "completed": "completed_at IS NOT NULL",
    "all": "true",
}
TASK = """
SELECT id, tenant_id, task_type, attempts, last_error, next_attempt_at, completed_at, abandoned_at, payload
FROM billing_reconciliation_queue
WHERE id = %(task)s;
"""
ALERTS = """
SELECT id, severity, title, tenant_id, created_at, last_reported_at, reports, recovered_at, sent, source, key, evidence
FROM alerts
WHERE (%(all)s OR recovered_at IS NULL)
  AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)
ORDER BY recovered_at IS NOT NULL, created_at DESC
"""
AUDIT_LOG = """
SELECT created_at, room, action, actor_id AS actor, actor_type, tenant_id,
       resource_type || ' ' || resource_id AS resource, metadata ->> 'reason' AS reason,
       metadata -> 'before' AS before, metadata -> 'after' AS after, request_id, id
FROM billing_audit_log
WHERE (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)
  AND (%(action)s::text IS NULL OR action = %(action)s)
  AND (%(actor)s::text IS NULL OR actor_id = %(actor)s)
  AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
ORDER BY created_at DESC
"""


async def tasks(desk: Desk, *, tenant: str | None, state: str, limit: int) -> View:
    """What is owed to the provider and the ledger, oldest first."""
    statement = TASKS.replace("{condition}", TASK_STATES[state])
    aside = ["payload", "idempotency_key", "created_at", "completed_at", "abandoned_at"]
    aside += ["next_attempt_at"] if state in {"abandoned", "completed"} else []
    title = "tasks" if state == "all" else f"{state} tasks"
    part = await asking.section(desk, "tasks", title, statement, limit=limit, aside=aside, tenant=tenant)
    given_up = [row["id"] for row in part.rows if row["state"] == "abandoned"]
    return View("tasks", [part], next_steps=[f"billctl tasks retry {given_up[0]}"] if given_up else [])


async def find_task(desk: Desk, task_id: str) -> dict[str, Any]:
    """A task, or NotThere."""
    missing = f"there is no task {task_id!r}: billctl tasks list --state all"
    return await asking.one(desk, TASK, missing, task=task_id)


async def alerts(desk: Desk, *, tenant: str | None, over: bool, limit: int) -> View:
    """Alerts that hold, newest first; with `over` those that have recovered too."""
    aside = ("source", "key", "evidence", "last_reported_at", *(() if over else ("recovered_at",)))
    title = "alerts" if over else "open alerts"
    part = await asking.section(
        desk, "alerts", title, ALERTS, limit=limit, aside=aside, tenant=tenant, all=over
    )
    return View("alerts", [part], next_steps=["billctl health"] if part.rows and not over else [])


async def audit_log(
    desk: Desk,
    *,
    tenant: str | None,
    action: str | None,
    actor: str | None,
    since: datetime | None,
    limit: int,
) -> View:
    """Who changed what and why, in every room, newest first."""
    values: dict[str, Any] = {"tenant": tenant, "action": action, "actor": actor, "since": since}
    aside = ("actor_type", "before", "after", "request_id", "id")
    part = await asking.section(desk, "entries", "audit log", AUDIT_LOG, limit=limit, aside=aside, **values)
    return View("audit log", [part])
