"""The ledger's doors: a request becomes plain values, one action runs, its result becomes the response."""

from typing import Any, TypeAlias

import grpc
from billing.ledger.v1 import (
    ledger_admin_pb2_grpc,
    ledger_funding_pb2_grpc,
    ledger_maintenance_pb2_grpc,
    ledger_pb2_grpc,
)
from billing.ledger.v1 import (
    ledger_funding_pb2 as funding_pb,
)
from billing.ledger.v1 import (
    ledger_pb2 as pb,
)

from services.ledger import actions, messages
from services.ledger.actions import Ledger
from services.ledger.rpc_admin import LedgerAdminService
from services.ledger.rpc_maintenance import LedgerMaintenanceService
from services.ledger.rules.model import Debit, Grant
from shared import paging
from shared.rpc.server import Audience, Door

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class LedgerService(ledger_pb2_grpc.LedgerServiceServicer):
    """Spending credits and using limits."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def Debit(self, request: pb.DebitRequest, context: Context) -> pb.DebitResponse:
        debit = Debit(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            credits=request.credits,
            min_credits=request.min_credits if request.HasField("min_credits") else request.credits,
            reason=request.reason,
            reference_id=request.reference_id,
            description=request.description,
            metadata=dict(request.metadata),
            if_seq=request.if_seq if request.HasField("if_seq") else None,
            dry_run=request.dry_run,
        )
        outcome = await actions.debit(self._ledger, debit)
        return pb.DebitResponse(
            transaction=messages.transaction(outcome.transaction, outcome.entries),
            balance=messages.balance(outcome.totals),
            replayed=outcome.replayed,
        )

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> pb.GetBalanceResponse:
        view = await actions.get_balance(
            self._ledger,
            request.tenant_id,
            as_of_seq=request.as_of_seq if request.HasField("as_of_seq") else None,
            as_of=messages.moment(request.as_of) if request.HasField("as_of") else None,
        )
        return pb.GetBalanceResponse(balance=messages.balance(view.totals, view.lots))

    async def ListTransactions(
        self, request: pb.ListTransactionsRequest, context: Context
    ) -> pb.ListTransactionsResponse:
        found, following = await actions.list_transactions(
            self._ledger,
            request.tenant_id,
            before=paging.position(request.page_token),
            reason_prefix=request.reason_prefix,
            rejected=request.include_rejected,
            page=paging.size(request.page_size),
        )
        return pb.ListTransactionsResponse(
            transactions=[messages.transaction(each.transaction, each.entries) for each in found],
            next_page_token=paging.token(following) if following else "",
        )

    async def GetTransaction(
        self, request: pb.GetTransactionRequest, context: Context
    ) -> pb.GetTransactionResponse:
        by_id = request.WhichOneof("which") == "transaction_id"
        booked = await actions.get_transaction(
            self._ledger,
            request.tenant_id,
            transaction_id=request.transaction_id if by_id else None,
            idempotency_key=None if by_id else request.idempotency_key,
        )
        return pb.GetTransactionResponse(transaction=messages.transaction(booked.transaction, booked.entries))

    async def CheckLimit(self, request: pb.CheckLimitRequest, context: Context) -> pb.CheckLimitResponse:
        decision, version, as_of = await actions.check_limit(
            self._ledger,
            request.tenant_id,
            request.limit_key,
            requested=request.requested,
            current_usage=request.current_usage if request.HasField("current_usage") else None,
            max_staleness_ms=request.max_staleness_ms,
        )
        return pb.CheckLimitResponse(
            decision=messages.limit_decision(decision),
            entitlements_version=version,
            as_of=messages.stamp(as_of),
        )


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
        outcome = await actions.grant_credits(self._ledger, grant)
        return funding_pb.GrantCreditsResponse(
            transaction=messages.transaction(outcome.transaction, outcome.entries),
            lot=messages.granted_lot(outcome, grant),
            replayed=outcome.replayed,
        )

    async def ListGrants(
        self, request: funding_pb.ListGrantsRequest, context: Context
    ) -> funding_pb.ListGrantsResponse:
        page = paging.size(request.page_size)
        found = await actions.list_grants(
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
        applied, version = await actions.set_entitlements(
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
        version, plan_code, services = await actions.get_entitlements(self._ledger, request.tenant_id)
        return funding_pb.GetEntitlementsResponse(
            version=version,
            plan_code=plan_code,
            services=[messages.service_entitlement(each) for each in services],
        )

    async def ListUsage(
        self, request: funding_pb.ListUsageRequest, context: Context
    ) -> funding_pb.ListUsageResponse:
        page = paging.size(request.page_size)
        found = await actions.list_usage(
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


def doors(ledger: Ledger) -> list[Door]:
    """The ledger's services and who may call them."""
    return [
        Door(
            "billing.ledger.v1.LedgerService",
            ledger_pb2_grpc.add_LedgerServiceServicer_to_server,
            LedgerService(ledger),
            Audience.PRODUCT,
        ),
        Door(
            "billing.ledger.v1.LedgerFundingService",
            ledger_funding_pb2_grpc.add_LedgerFundingServiceServicer_to_server,
            LedgerFundingService(ledger),
            Audience.ROOM,
        ),
        Door(
            "billing.ledger.v1.LedgerMaintenanceService",
            ledger_maintenance_pb2_grpc.add_LedgerMaintenanceServiceServicer_to_server,
            LedgerMaintenanceService(ledger),
            Audience.ROOM,
        ),
        Door(
            "billing.ledger.v1.LedgerAdminService",
            ledger_admin_pb2_grpc.add_LedgerAdminServiceServicer_to_server,
            LedgerAdminService(ledger),
            Audience.OPERATOR,
        ),
    ]
