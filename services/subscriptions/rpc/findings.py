"""SubscriptionsAdminService: what was found wrong."""

import json

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import findings
from services.subscriptions.actions.mending import Word
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.records import FindingRow
from shared import paging
from shared.errors import InvalidArgument

_SEVERITIES = {"warning": pb.FINDING_SEVERITY_WARNING, "critical": pb.FINDING_SEVERITY_CRITICAL}
_NAMES = {value: name for name, value in _SEVERITIES.items()}


class Findings(Desk):
    """ListFindings and ResolveFinding."""

    async def ListFindings(
        self, request: pb.ListFindingsRequest, context: Context
    ) -> pb.ListFindingsResponse:
        size = request.page_size or messages.PAGE_SIZE_DEFAULT
        found = await findings.list_findings(
            self._room.engine,
            tenant_id=request.tenant_id or None,
            check_type=request.check_type or None,
            severity=_NAMES.get(request.severity),
            resolved=request.include_resolved,
            after=_last(request.page_token),
            limit=size + 1,
        )
        shown = found[:size]
        return pb.ListFindingsResponse(
            findings=[_finding(each) for each in shown],
            next_page_token=paging.token(shown[-1].id) if len(found) > size else "",
        )

    async def ResolveFinding(
        self, request: pb.ResolveFindingRequest, context: Context
    ) -> pb.ResolveFindingResponse:
        closed, replayed = await findings.resolve_finding(
            self._room.engine,
            Word(request.idempotency_key, request.actor, request.reason),
            finding_id=request.finding_id,
        )
        return pb.ResolveFindingResponse(finding=_finding(closed), replayed=replayed)


def _last(page_token: str) -> str | None:
    try:
        return paging.position(page_token)
    except InvalidArgument as error:
        raise messages.strange_token() from error


def _finding(row: FindingRow) -> pb.Finding:
    return pb.Finding(
        finding_id=row.id,
        tenant_id=row.tenant_id or "",
        check_type=row.check_type,
        severity=_SEVERITIES[row.severity],
        observed_json=json.dumps(row.observed, sort_keys=True),
        created_at=messages.timestamp(row.created_at),
        resolved_at=messages.timestamp(row.resolved_at),
        resolved_by=row.resolved_by or "",
    )
