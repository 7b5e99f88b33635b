"""The ledger's findings: opened once, listed, closed in somebody's name; a violated tenant stands still."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.rules.findings import MENDABLE, FindingRow, Found, OpenCritical
from shared.ops import store as ops

ROOM = "ledger"
AUDITOR = "ledger.audit"

COLUMNS = "id, tenant_id, check_type, severity::text, observed, created_at, resolved_at, resolved_by"

LOCK = "SELECT state, frozen_reason FROM tenant_credits WHERE tenant_id = :tenant_id FOR NO KEY UPDATE"
FREEZE = """
UPDATE tenant_credits SET state = 'frozen', frozen_reason = :reason, frozen_at = :now WHERE tenant_id = :tenant_id"""

OPEN_OF_TENANT = f"""
SELECT {COLUMNS} FROM billing_integrity_reports
WHERE room = :room AND tenant_id = :tenant_id AND resolved_at IS NULL"""

PAGE = f"""
SELECT {COLUMNS} FROM billing_integrity_reports f
WHERE f.room = :room
  AND (CAST(:tenant_id AS text) IS NULL OR f.tenant_id = :tenant_id)
  AND (CAST(:check_type AS text) IS NULL OR f.check_type = :check_type)
  AND (CAST(:severity AS text) IS NULL OR f.severity = CAST(:severity AS finding_severity))
  AND (:resolved OR f.resolved_at IS NULL)
  AND (CAST(:before AS text) IS NULL OR (f.severity, f.created_at, f.id) < (
      SELECT b.severity, b.created_at, b.id FROM billing_integrity_reports b WHERE b.id = :before))
ORDER BY f.severity DESC, f.created_at DESC, f.id DESC LIMIT :page"""

ONE = f"SELECT {COLUMNS} FROM billing_integrity_reports WHERE id = :id AND room = :room"

RESOLVE = f"""
UPDATE billing_integrity_reports SET resolved_at = clock_timestamp(), resolved_by = :actor
WHERE id = :id AND room = :room AND resolved_at IS NULL RETURNING {COLUMNS}"""

# Findings that may be mended, and a while longer those that were: what comes back is found whoever closed them.
DOUBTED = """
SELECT check_type, tenant_id, bool_or(resolved_at IS NULL) FROM billing_integrity_reports
WHERE room = :room AND check_type = ANY(:checks) AND tenant_id IS NOT NULL
  AND (resolved_at IS NULL OR resolved_at > clock_timestamp() - :since)
GROUP BY check_type, tenant_id"""

OPEN_COUNT = "SELECT count(*) FROM billing_integrity_reports WHERE room = :room AND resolved_at IS NULL"

OPEN_CRITICAL = """
SELECT id, coalesce(tenant_id, ''), check_type, observed
FROM billing_integrity_reports
WHERE room = :room AND resolved_at IS NULL AND severity = 'critical'
ORDER BY created_at, id LIMIT :limit"""

CRITICAL_COUNT = """
SELECT count(*) FROM billing_integrity_reports
WHERE room = :room AND resolved_at IS NULL AND severity = 'critical'"""


async def open_all(
    db: AsyncConnection, tenant_id: str, found: Sequence[Found], *, now: datetime, request_id: str
) -> tuple[list[FindingRow], int]:
    """(the tenant's findings of these checks, how many of them are new): what is open is refreshed.

    A new finding about a lot, a hold or a line freezes the tenant; one that a person left open does so no more.
    """
    account = (await db.execute(text(LOCK), {"tenant_id": tenant_id})).first()
    known = {row.check_type for row in await _open_of(db, tenant_id)}
    for each in found:
        await ops.open_finding(
            db,
            room=ROOM,
            check_type=each.check_type,
            tenant_id=tenant_id,
            severity=each.severity,
            observed=each.observed,
        )
    rows = {row.check_type: row for row in await _open_of(db, tenant_id)}
    opened = [each for each in found if each.check_type not in known]
    cause = next((each for each in opened if each.freezes), None)
    if cause is not None and account is not None and account.state != "frozen":
        await _freeze(db, rows[cause.check_type], now=now, request_id=request_id)
    return [rows[each.check_type] for each in found], len(opened)


async def list_known(db: AsyncConnection, tenant_id: str) -> set[str]:
    """The checks of which the tenant has an open finding."""
    return {row.check_type for row in await _open_of(db, tenant_id)}


async def list_findings(
    db: AsyncConnection,
    *,
    tenant_id: str | None,
    check_type: str | None,
    severity: str | None,
    resolved: bool,
    before: str | None,
    page: int,
) -> list[FindingRow]:
    """Most severe first, then newest; those that come after `before` in this order."""
    values = {
        "room": ROOM,
        "tenant_id": tenant_id,
        "check_type": check_type,
        "severity": severity,
        "resolved": resolved,
        "before": before,
        "page": page,
    }
    return [FindingRow(*row) for row in await db.execute(text(PAGE), values)]


async def find(db: AsyncConnection, finding_id: str) -> FindingRow | None:
    """One finding of the ledger's."""
    row = (await db.execute(text(ONE), {"id": finding_id, "room": ROOM})).first()
    return None if row is None else FindingRow(*row)


async def resolve(
    db: AsyncConnection, finding_id: str, *, actor: str, description: str, request_id: str
) -> FindingRow | None:
    """The finding, closed now and audited; None when there is none that is open."""
    row = (await db.execute(text(RESOLVE), {"id": finding_id, "room": ROOM, "actor": actor})).first()
    if row is None:
        return None
    finding = FindingRow(*row)
    await ops.record_audit(
        db,
        room=ROOM,
        action="resolve_finding",
        actor_type="operator",
        actor_id=actor,
        tenant_id=finding.tenant_id,
        resource_type="finding",
        resource_id=finding.id,
        before={"resolvedAt": None, "checkType": finding.check_type, "observed": finding.observed},
        after={"resolvedAt": _iso(finding.resolved_at), "resolvedBy": actor},
        reason=description,
        request_id=request_id,
    )
    return finding


async def list_doubted(db: AsyncConnection, *, since: timedelta) -> list[tuple[str, str, bool]]:
    """(check, tenant, whether it is open) of findings that the auditor looks at anew."""
    values = {"room": ROOM, "checks": sorted(MENDABLE), "since": since}
    return [(row[0], row[1], row[2]) for row in await db.execute(text(DOUBTED), values)]


async def close(db: AsyncConnection, tenant_id: str, check_type: str) -> bool:
    """Closes the tenant's open finding of this check in the auditor's name; False if there was none."""
    return await ops.resolve_finding(
        db, room=ROOM, check_type=check_type, tenant_id=tenant_id, resolved_by=AUDITOR
    )


async def count_open(db: AsyncConnection) -> int:
    """Findings that nobody has closed."""
    return int((await db.execute(text(OPEN_COUNT), {"room": ROOM})).scalar_one())


async def list_critical(db: AsyncConnection, *, limit: int) -> tuple[list[OpenCritical], int]:
    """(what is open and critical, the oldest first, how many there are in all)."""
    rows = await db.execute(text(OPEN_CRITICAL), {"room": ROOM, "limit": limit})
    count = (await db.execute(text(CRITICAL_COUNT), {"room": ROOM})).scalar_one()
    return [OpenCritical(*row) for row in rows], int(count)


async def _open_of(db: AsyncConnection, tenant_id: str) -> list[FindingRow]:
    result = await db.execute(text(OPEN_OF_TENANT), {"room": ROOM, "tenant_id": tenant_id})
    return [FindingRow(*row) for row in result]


async def _freeze(db: AsyncConnection, cause: FindingRow, *, now: datetime, request_id: str) -> None:
    reason = f"{cause.check_type}: finding {cause.id}"
    await db.execute(text(FREEZE), {"tenant_id": cause.tenant_id, "reason": reason, "now": now})
    await ops.record_audit(
        db,
        room=ROOM,
        action="freeze_account",
        actor_type="system",
        actor_id=AUDITOR,
        tenant_id=cause.tenant_id,
        resource_type="account",
        resource_id=str(cause.tenant_id),
        before={"state": "active", "frozenReason": ""},
        after={"state": "frozen", "frozenReason": reason},
        reason=reason,
        request_id=request_id,
    )


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
