"""The rooms' door: what creates, takes back and restores credits, and what a tenant is entitled to."""

from typing import Any, TypeAlias

import grpc
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_funding_pb2_grpc

from services.ledger import messages
from services.ledger.actions import Ledger, balances, credits, limits
from services.ledger.rules.model import Revoked
from services.ledger.rules.requests import Grant, Restore, Revoke
from shared import paging

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class LedgerFundingService(ledger_funding_pb2_grpc.LedgerFundingServiceServicer):
    """What creates credits, and what a tenant is entitled to."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def GrantCredits(
        self, request: funding_pb.GrantCreditsRequest, context: Context
    ) -> funding_pb.GrantCreditsResponse:
        grant = Grant(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            bucket=messages.bucket_name(request.bucket),
            credits=request.credits,
            expires_at=messages.moment(request.expires_at) if request.HasField("expires_at") else None,
            reference_id=request.reference_id,
            reason=request.reason,
            description=request.description,
        )
        outcome = await credits.book(self._ledger, grant)
        return funding_pb.GrantCreditsResponse(
            transaction=messages.transaction(outcome.transaction, outcome.entries),
            lot=messages.granted_lot(outcome, grant),
            replayed=outcome.replayed,
        )

    async def RevokeGrant(
        self, request: funding_pb.RevokeGrantRequest, context: Context
    ) -> funding_pb.RevokeGrantResponse:
        revoke = Revoke(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            grant_reference_id=request.grant_reference_id,
            credits=request.credits,
            reference_id=request.reference_id,
            reason=request.reason,
            description=request.description,
        )
        outcome = await credits.book(self._ledger, revoke)
        revoked = outcome.revoked or Revoked(0, 0, 0)
        return funding_pb.RevokeGrantResponse(
            transaction=messages.transaction(outcome.transaction, outcome.entries),
            taken=revoked.taken,
            claimed=revoked.claimed,
            already_spent=revoked.already_spent,
            replayed=outcome.replayed,
        )

    async def RestoreGrant(
        self, request: funding_pb.RestoreGrantRequest, context: Context
    ) -> funding_pb.RestoreGrantResponse:
        restore = Restore(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            revoke_reference_id=request.revoke_reference_id,
            reference_id=request.reference_id,
            description=request.description,
        )
        outcome = await credits.book(self._ledger, restore)
        return funding_pb.RestoreGrantResponse(
            transaction=messages.transaction(outcome.transaction, outcome.entries), replayed=outcome.replayed
        )

    async def ListGrants(
        self, request: funding_pb.ListGrantsRequest, context: Context
    ) -> funding_pb.ListGrantsResponse:
        page = paging.size(request.page_size)
        found = await balances.list_grants(
            self._ledger, request.tenant_id, before=paging.number(request.page_token), page=page
        )
        shown = found[:page]
        return funding_pb.ListGrantsResponse(
            grants=[messages.lot(each) for each in shown],
            next_page_token=paging.token(str(shown[-1].lot)) if len(found) > page else "",
        )

    async def SetEntitlements(
        self, request: funding_pb.SetEntitlementsRequest, context: Context
    ) -> funding_pb.SetEntitlementsResponse:
        applied, version = await limits.set_entitlements(
            self._ledger,
            request.tenant_id,
            version=request.version,
            plan_code=request.plan_code,
            services=[messages.service_entitlement_of(each) for each in request.services],
        )
        outcome = (
            funding_pb.ENTITLEMENTS_OUTCOME_APPLIED if applied else funding_pb.ENTITLEMENTS_OUTCOME_SUPERSEDED
        )
        return funding_pb.SetEntitlementsResponse(outcome=outcome, version=version)

    async def GetEntitlements(
        self, request: funding_pb.GetEntitlementsRequest, context: Context
    ) -> funding_pb.GetEntitlementsResponse:
        version, plan_code, services = await limits.get_entitlements(self._ledger, request.tenant_id)
        return funding_pb.GetEntitlementsResponse(
            version=version,
            plan_code=plan_code,
            services=[messages.service_entitlement(each) for each in services],
        )

    async def ListUsage(
        self, request: funding_pb.ListUsageRequest, context: Context
    ) -> funding_pb.ListUsageResponse:
        page = paging.size(request.page_size)
        found = await limits.list_usage(
            self._ledger, request.tenant_id, after=paging.position(request.page_token) or "", page=page
        )
        shown = found[:page]
        return funding_pb.ListUsageResponse(
            usage=[
                funding_pb.Usage(limit_key=key, used=used, updated_at=messages.stamp(updated_at))
                for key, used, updated_at in shown
            ],
            next_page_token=paging.token(shown[-1][0]) if len(found) > page else "",
        )
