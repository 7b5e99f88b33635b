"""ListFindings and ResolveFinding: what was found wrong, and a person's word that it was looked at."""

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions.mending import Word
from services.subscriptions.errors import FindingResolved, PageTokenInvalid, UnknownFinding
from services.subscriptions.rules.records import FindingRow
from services.subscriptions.store import findings as store
from services.subscriptions.store import keys
from shared import logs
from shared.database import transaction
from shared.ops import store as ops

METHOD = "ResolveFinding"
NO_TENANT = ""


async def list_findings(
    engine: AsyncEngine,
    *,
    tenant_id: str | None,
    check_type: str | None,
    severity: str | None,
    resolved: bool,
    after: str | None,
    limit: int,
) -> list[FindingRow]:
    """A page of findings, most severe first, then newest; `after` is the last of the page before."""
    async with transaction(engine) as db:
        before = None if after is None else await store.find_finding(db, after)
        if after is not None and before is None:
            raise PageTokenInvalid(
                "this page token is not one of ours",
                violations=[("page_token", "pass next_page_token of the answer before, unchanged")],
            )
        return await store.list_findings(
            db,
            tenant_id=tenant_id,
            check_type=check_type,
            severity=severity,
            resolved=resolved,
            before=before,
            limit=limit,
        )


async def resolve_finding(engine: AsyncEngine, word: Word, *, finding_id: str) -> tuple[FindingRow, bool]:
    """(the finding, closed in a person's name; whether an earlier call with this key closed it)."""
    request = word.about(finding_id=finding_id)
    async with transaction(engine) as db:
        found = await store.find_finding(db, finding_id, lock=True)
        if found is None:
            raise UnknownFinding(
                f"this room has no finding {finding_id}: the ledger's are closed there", finding_id=finding_id
            )
        key = {"tenant_id": found.tenant_id or NO_TENANT, "method": METHOD, "key": word.idempotency_key}
        if await keys.find_answer(db, **key, request=request) is not None:
            return found, True
        if found.resolved_at is not None:
            raise FindingResolved(
                f"finding {finding_id} was closed by {found.resolved_by} at {found.resolved_at.isoformat()}",
                finding_id=finding_id,
                resolved_by=found.resolved_by or "",
                resolved_at=found.resolved_at.isoformat(),
            )
        closed = await store.close_finding(db, finding_id, by=word.actor)
        await ops.record_audit(
            db,
            room="subscriptions",
            action="finding.resolved",
            actor_type="operator",
            actor_id=word.actor,
            tenant_id=found.tenant_id,
            resource_type="finding",
            resource_id=finding_id,
            before={
                "check_type": found.check_type,
                "severity": found.severity,
                "observed": dict(found.observed),
                "resolved_by": None,
            },
            after={
                "resolved_at": closed.resolved_at.isoformat() if closed.resolved_at else None,
                "resolved_by": closed.resolved_by,
            },
            reason=word.reason,
            request_id=logs.request_id.get(),
        )
        await keys.insert_answer(db, **key, request=request, answer={"finding_id": finding_id})
    return closed, False
