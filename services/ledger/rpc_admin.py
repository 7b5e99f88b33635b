"""The operators' door: corrections by people, and the ledger's proof of itself."""

from typing import Any, TypeAlias

import grpc
from billing.ledger.v1 import ledger_admin_pb2 as pb
from billing.ledger.v1 import ledger_admin_pb2_grpc

from services.ledger import actions_findings, messages
from services.ledger.actions import Ledger
from services.ledger.rules.findings import FindingRow
from shared import paging
from shared.rpc.context import DEFAULT_TIMEOUT_SECONDS, remaining_seconds

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_SEVERITIES = {"warning": pb.FINDING_SEVERITY_WARNING, "critical": pb.FINDING_SEVERITY_CRITICAL}
_NAMES = {value: name for name, value in _SEVERITIES.items()}


class LedgerAdminService(ledger_admin_pb2_grpc.LedgerAdminServiceServicer):
    """What operators may do to an account. Every call is audited."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def ListFindings(
        self, request: pb.ListFindingsRequest, context: Context
    ) -> pb.ListFindingsResponse:
        page = paging.size(request.page_size)
        found = await actions_findings.list_findings(
            self._ledger,
            tenant_id=request.tenant_id or None,
            check_type=request.check_type or None,
            severity=_NAMES.get(request.severity),
            resolved=request.include_resolved,
            before=paging.position(request.page_token),
            page=page,
        )
        shown = found[:page]
        return pb.ListFindingsResponse(
            findings=[_finding(each) for each in shown],
            next_page_token=paging.token(shown[-1].id) if len(found) > page else "",
        )

    async def ResolveFinding(
        self, request: pb.ResolveFindingRequest, context: Context
    ) -> pb.ResolveFindingResponse:
        finding = await actions_findings.resolve_finding(
            self._ledger, request.finding_id, actor=request.actor, description=request.description
        )
        return pb.ResolveFindingResponse(finding=_finding(finding))

    async def VerifyLedger(
        self, request: pb.VerifyLedgerRequest, context: Context
    ) -> pb.VerifyLedgerResponse:
        verified, following = await actions_findings.verify_ledger(
            self._ledger,
            tenant_id=request.tenant_id or None,
            after=paging.position(request.page_token) or "",
            page=paging.size(request.page_size),
            time_left_seconds=remaining_seconds() or DEFAULT_TIMEOUT_SECONDS,
        )
        return pb.VerifyLedgerResponse(
            verifications=[
                pb.Verification(
                    tenant_id=each.tenant_id,
                    verified=each.verified,
                    entries=each.entries,
                    findings=[_finding(finding) for finding in each.findings],
                    not_verified=each.not_verified,
                    chain_head=each.chain_head.hex(),
                )
                for each in verified
            ],
            next_page_token=paging.token(following) if following else "",
        )


def _finding(row: FindingRow) -> pb.Finding:
    finding = pb.Finding(
        id=row.id,
        tenant_id=row.tenant_id or "",
        check_type=row.check_type,
        severity=_SEVERITIES[row.severity],
        created_at=messages.stamp(row.created_at),
        resolved_at=messages.stamp(row.resolved_at),
        resolved_by=row.resolved_by or "",
    )
    finding.observed.update(row.observed)
    return finding
