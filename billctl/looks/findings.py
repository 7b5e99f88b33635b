"""What the rooms' audits found wrong: one list over all rooms."""

from typing import Any

from billctl.desk import Desk
from billctl.diagnosis import Section, View
from billctl.looks import asking, checks

LIST = """
SELECT id, severity::text, check_type, tenant_id, room, created_at, resolved_at, resolved_by, observed
FROM billing_integrity_reports
WHERE (%(all)s OR resolved_at IS NULL)
  AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)
  AND (%(check)s::text IS NULL OR check_type = %(check)s)
  AND (%(severity)s::text IS NULL OR severity::text = %(severity)s)
ORDER BY billing_integrity_reports.severity DESC, created_at DESC
"""
ONE = """
SELECT id, severity::text, check_type, tenant_id, room, observed, created_at, resolved_at, resolved_by
FROM billing_integrity_reports
WHERE id = %(finding)s;
"""
# The same condition before and after: what was closed and came back.
OTHERS = """
SELECT id, created_at, resolved_at, resolved_by
FROM billing_integrity_reports
WHERE tenant_id IS NOT DISTINCT FROM %(tenant)s AND check_type = %(check)s AND id <> %(finding)s
ORDER BY created_at DESC
"""


async def show_list(
    desk: Desk, *, tenant: str | None, check: str | None, severity: str | None, closed: bool, limit: int
) -> View:
    """Open findings, or all, most severe first."""
    aside = ("observed",) if closed else ("observed", "resolved_at", "resolved_by")
    values: dict[str, Any] = {"tenant": tenant, "check": check, "severity": severity, "all": closed}
    title = "findings" if closed else "open findings"
    part = await asking.section(desk, "findings", title, LIST, limit=limit, aside=aside, **values)
    opened = [row["id"] for row in part.rows if row["resolved_at"] is None]
    return View("findings", [part], next_steps=[f"billctl fix finding {opened[0]}"] if opened else [])


async def find(desk: Desk, finding_id: str) -> dict[str, Any]:
    """A finding, or NotThere."""
    missing = f"there is no finding {finding_id!r}: billctl findings list --all"
    return await asking.one(desk, ONE, missing, finding=finding_id)


async def show_one(desk: Desk, finding_id: str) -> View:
    """A finding, what its check means, and what to do."""
    row = await find(desk, finding_id)
    check = checks.of(row["check_type"])
    source = asking.typed(ONE, {"finding": finding_id})
    values = {"tenant": row["tenant_id"], "check": row["check_type"], "finding": finding_id}
    parts = [
        Section("finding", "finding", [row], source, upright=True),
        Section(
            *("check", "what it means", [{"what is wrong": check.means, "what to do": check.cure}]),
            source="docs/operations.md",
        ),
        await asking.section(desk, "others", "the same before", OTHERS, limit=10, **values),
    ]
    steps = [f"billctl fix finding {finding_id}"] if row["resolved_at"] is None else []
    return View(finding_id, parts, next_steps=steps)
