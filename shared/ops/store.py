"""Every statement on the schema `ops`, run in the caller's transaction: record and cause commit as one."""

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from shared import metrics
from shared.ids import new_id
from shared.ops import strangers
from shared.ops.tables import (
    OPEN_FINDING,
    billing_audit_log,
    billing_integrity_reports,
    billing_signature_failures,
)


async def record_audit(
    db: AsyncConnection,
    *,
    room: str,
    action: str,
    actor_type: str,
    actor_id: str,
    tenant_id: str | None,
    resource_type: str,
    resource_id: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    reason: str,
    request_id: str,
) -> str:
    """Append one line to the audit log and return its id; no role can change or delete it."""
    audit_id = new_id("aud")
    statement = insert(billing_audit_log).values(
        id=audit_id,
        room=room,
        action=action,
        actor_type=actor_type,
        actor_id=actor_id,
        tenant_id=tenant_id,
        resource_type=resource_type,
        resource_id=resource_id,
        metadata={"before": before, "after": after, "reason": reason},
        request_id=request_id,
    )
    try:
        await db.execute(statement)
    except Exception:
        metrics.audit_failed(room)
        raise
    metrics.audited(room, action)
    return audit_id


async def open_finding(
    db: AsyncConnection,
    *,
    room: str,
    check_type: str,
    tenant_id: str | None,
    severity: Literal["warning", "critical"],
    observed: Mapping[str, Any],
) -> str:
    """Open a finding, or refresh what was observed on the open one, and return its id."""
    statement = insert(billing_integrity_reports).values(
        id=new_id("fnd"),
        room=room,
        check_type=check_type,
        tenant_id=tenant_id,
        severity=severity,
        observed=dict(observed),
    )
    statement = statement.on_conflict_do_update(
        index_elements=["room", "check_type", "tenant_id"],
        index_where=OPEN_FINDING,
        set_={"severity": statement.excluded.severity, "observed": statement.excluded.observed},
    )
    return str(await db.scalar(statement.returning(billing_integrity_reports.c.id)))


async def resolve_finding(
    db: AsyncConnection, *, room: str, check_type: str, tenant_id: str | None, resolved_by: str
) -> bool:
    """Close the open finding of this check and tenant; False if there was none."""
    table = billing_integrity_reports
    result = await db.execute(
        update(table)
        .where(
            table.c.room == room,
            table.c.check_type == check_type,
            table.c.tenant_id.is_not_distinct_from(tenant_id),
            table.c.resolved_at.is_(None),
        )
        .values(resolved_at=func.now(), resolved_by=resolved_by)
    )
    return result.rowcount > 0


async def record_signature_failure(
    db: AsyncConnection,
    *,
    room: str,
    endpoint: Literal["webhook", "/payment/verify"],
    tenant_id: str | None,
    remote_ip: str | None,
    user_agent: str | None,
    payload_id: str | None,
    path: str | None = None,
) -> str:
    """Record one forged or mis-keyed call and return its id; what strangers say is made fit to be kept."""
    failure_id = new_id("sig")
    await db.execute(
        insert(billing_signature_failures).values(
            id=failure_id,
            room=room,
            endpoint=endpoint,
            tenant_id=tenant_id,
            remote_ip=strangers.address(remote_ip),
            user_agent=strangers.agent(user_agent),
            payload_id=strangers.identifier(payload_id),
            path=path,
        )
    )
    return failure_id
