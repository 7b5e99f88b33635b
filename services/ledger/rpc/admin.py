"""The operators' door: corrections by people, and the ledger's proof of itself."""

from typing import Any, TypeAlias

import grpc
from billing.ledger.v1 import ledger_admin_pb2 as pb
from billing.ledger.v1 import ledger_admin_pb2_grpc
from billing.ledger.v1 import types_pb2 as types

from services.ledger import messages
from services.ledger.actions import Ledger, credits, findings, overdebits
from services.ledger.rules.findings import FindingRow
from services.ledger.rules.model import PERMANENT, SUBSCRIPTION, Mirrors, Outcome
from services.ledger.rules.requests import (
    REGRANT_30_DAYS,
    Adjust,
    Freeze,
    RebuildMirrors,
    RefundOverdebit,
    Unfreeze,
)
from shared import logs, paging
from shared.errors import BillingError
from shared.rpc.context import DEFAULT_TIMEOUT_SECONDS, remaining_seconds

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_SEVERITIES = {"warning": pb.FINDING_SEVERITY_WARNING, "critical": pb.FINDING_SEVERITY_CRITICAL}
_NAMES = {value: name for name, value in _SEVERITIES.items()}


class LedgerAdminService(ledger_admin_pb2_grpc.LedgerAdminServiceServicer):
    """What operators may do to an account. Every call is audited."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def AdjustCredits(
        self, request: pb.AdjustCreditsRequest, context: Context
    ) -> pb.AdjustCreditsResponse:
        adjust = Adjust(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            credits=request.credits,
            bucket=SUBSCRIPTION if request.bucket == types.BUCKET_SUBSCRIPTION else PERMANENT,
            expires_at=messages.moment(request.expires_at) if request.HasField("expires_at") else None,
            reason=request.reason,
            description=request.description,
            actor=request.actor,
            request_id=logs.request_id.get(),
        )
        outcome = await credits.book(self._ledger, adjust)
        return pb.AdjustCreditsResponse(
            transaction=messages.transaction(outcome.transaction, outcome.entries),
            balance=messages.balance(outcome.totals),
            replayed=outcome.replayed,
        )

    async def FreezeAccount(
        self, request: pb.FreezeAccountRequest, context: Context
    ) -> pb.FreezeAccountResponse:
        freeze = Freeze(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
            request_id=logs.request_id.get(),
        )
        noted = await credits.note(self._ledger, freeze)
        return pb.FreezeAccountResponse(
            tenant_id=request.tenant_id, frozen_at=messages.stamp(noted.frozen_at)
        )

    async def UnfreezeAccount(
        self, request: pb.UnfreezeAccountRequest, context: Context
    ) -> pb.UnfreezeAccountResponse:
        unfreeze = Unfreeze(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
            request_id=logs.request_id.get(),
        )
        await credits.note(self._ledger, unfreeze)
        return pb.UnfreezeAccountResponse(tenant_id=request.tenant_id)

    async def RebuildMirrors(
        self, request: pb.RebuildMirrorsRequest, context: Context
    ) -> pb.RebuildMirrorsResponse:
        rebuild = RebuildMirrors(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
            request_id=logs.request_id.get(),
        )
        noted = await credits.note(self._ledger, rebuild)
        if noted.mirrors is None:
            raise TypeError("mirrors were written, but which is not known")
        before, after = noted.mirrors
        return pb.RebuildMirrorsResponse(
            before=_mirrors(before), after=_mirrors(after), replayed=noted.replayed
        )

    async def RefundOverdebits(
        self, request: pb.RefundOverdebitsRequest, context: Context
    ) -> pb.RefundOverdebitsResponse:
        asked = [
            RefundOverdebit(
                tenant_id=each.tenant_id,
                idempotency_key=overdebits.key_of(request.idempotency_key, each.transaction_id),
                transaction_id=each.transaction_id,
                credits=each.credits,
                expired_policy=REGRANT_30_DAYS,
                reason="admin.refund",
                description=request.reason,
                actor=request.actor,
                should_cost=each.should_cost,
                request_id=logs.request_id.get(),
            )
            for each in request.overdebits
        ]
        answers = await overdebits.refund_overdebits(self._ledger, asked)
        return pb.RefundOverdebitsResponse(
            results=[
                _result(each.transaction_id, answer) for each, answer in zip(asked, answers, strict=True)
            ]
        )

    async def ListFindings(
        self, request: pb.ListFindingsRequest, context: Context
    ) -> pb.ListFindingsResponse:
        page = paging.size(request.page_size)
        found = await findings.list_findings(
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
        finding = await findings.resolve_finding(
            self._ledger, request.finding_id, actor=request.actor, description=request.description
        )
        return pb.ResolveFindingResponse(finding=_finding(finding))

    async def VerifyLedger(
        self, request: pb.VerifyLedgerRequest, context: Context
    ) -> pb.VerifyLedgerResponse:
        verified, following = await findings.verify_ledger(
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


def _mirrors(mirrors: Mirrors) -> pb.Mirrors:
    return pb.Mirrors(
        balance=mirrors.balance,
        subscription_balance=mirrors.subscription_balance,
        subscription_expires_at=messages.stamp(mirrors.subscription_expires_at),
        permanent_balance=mirrors.permanent_balance,
        held=mirrors.held,
    )


def _result(transaction_id: str, answer: Outcome | BillingError) -> pb.OverdebitResult:
    if isinstance(answer, BillingError):
        return pb.OverdebitResult(transaction_id=transaction_id, refusal=messages.refusal(answer))
    return pb.OverdebitResult(transaction_id=transaction_id, refund=messages.refund(answer))


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
