"""The product's door: spending credits and using limits."""

from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeAlias

import grpc
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import ledger_pb2_grpc

from services.ledger import messages
from services.ledger.actions import Ledger, balances, credits, limits
from services.ledger.rpc import streams
from services.ledger.rules import requests as asked
from services.ledger.rules.model import Outcome
from services.ledger.rules.requests import (
    Authorize,
    CaptureHold,
    Consume,
    ExtendHold,
    PlaceHold,
    Refund,
    Release,
    SetUsage,
    VoidHold,
)
from services.ledger.rules.usage import NotAuthorized
from shared import paging

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_EXPIRED_POLICIES = {
    pb.EXPIRED_POLICY_REGRANT_30_DAYS: asked.REGRANT_30_DAYS,
    pb.EXPIRED_POLICY_TO_PERMANENT: asked.TO_PERMANENT,
}


class LedgerService(ledger_pb2_grpc.LedgerServiceServicer):
    """Spending credits and using limits."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def Debit(self, request: pb.DebitRequest, context: Context) -> pb.DebitResponse:
        return messages.debit(await credits.book(self._ledger, messages.debit_of(request)))

    async def BatchDebit(self, request: pb.BatchDebitRequest, context: Context) -> pb.BatchDebitResponse:
        return pb.BatchDebitResponse(results=await self._debits(request.items))

    async def StreamDebits(
        self, requests: AsyncIterator[pb.StreamDebitsRequest], context: Context
    ) -> AsyncIterator[pb.StreamDebitsResponse]:
        async for number, results in streams.in_order(requests, lambda request: self._debits(request.items)):
            yield pb.StreamDebitsResponse(number=number, results=results)

    async def _debits(self, items: Iterable[pb.BatchDebitItem]) -> list[pb.BatchDebitResult]:
        debits = [(messages.debit_of(item.debit), item.group_id) for item in items]
        return [
            pb.BatchDebitResult(debit=messages.debit(each))
            if isinstance(each, Outcome)
            else pb.BatchDebitResult(refusal=messages.refusal(each))
            for each in await credits.batch_debit(self._ledger, debits)
        ]

    async def PlaceHold(self, request: pb.PlaceHoldRequest, context: Context) -> pb.PlaceHoldResponse:
        hold = PlaceHold(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            credits=request.credits,
            ttl=messages.duration(request.ttl),
            reason=request.reason,
            reference_id=request.reference_id,
            description=request.description,
            metadata=dict(request.metadata),
            if_seq=request.if_seq if request.HasField("if_seq") else None,
            dry_run=request.dry_run,
        )
        outcome = await credits.book(self._ledger, hold)
        return pb.PlaceHoldResponse(**messages.with_hold(outcome))

    async def CaptureHold(self, request: pb.CaptureHoldRequest, context: Context) -> pb.CaptureHoldResponse:
        shortfall = request.over_capture_policy == pb.OVER_CAPTURE_POLICY_DEBIT_SHORTFALL
        capture = CaptureHold(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            hold_id=request.hold_id,
            credits=request.credits,
            more_follows=request.more_follows,
            over_capture_policy=asked.DEBIT_SHORTFALL if shortfall else asked.REJECT,
            description=request.description,
        )
        outcome = await credits.book(self._ledger, capture)
        return pb.CaptureHoldResponse(**messages.with_hold(outcome))

    async def VoidHold(self, request: pb.VoidHoldRequest, context: Context) -> pb.VoidHoldResponse:
        void = VoidHold(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            hold_id=request.hold_id,
            description=request.description,
        )
        outcome = await credits.book(self._ledger, void)
        return pb.VoidHoldResponse(**messages.with_hold(outcome))

    async def ExtendHold(self, request: pb.ExtendHoldRequest, context: Context) -> pb.ExtendHoldResponse:
        extend = ExtendHold(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            hold_id=request.hold_id,
            ttl=messages.duration(request.ttl),
        )
        outcome = await credits.book(self._ledger, extend)
        return pb.ExtendHoldResponse(
            hold=messages.hold_of(outcome),
            replayed=outcome.replayed,
        )

    async def RefundDebit(self, request: pb.RefundDebitRequest, context: Context) -> pb.RefundDebitResponse:
        refund = Refund(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            transaction_id=request.transaction_id,
            credits=request.credits if request.HasField("credits") else None,
            expired_policy=_EXPIRED_POLICIES.get(request.expired_policy, asked.EXPIRE_AGAIN),
            reason=request.reason,
            description=request.description,
        )
        return messages.refund(await credits.book(self._ledger, refund))

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> pb.GetBalanceResponse:
        view = await balances.get_balance(
            self._ledger,
            request.tenant_id,
            as_of_seq=request.as_of_seq if request.HasField("as_of_seq") else None,
            as_of=messages.moment(request.as_of) if request.HasField("as_of") else None,
        )
        return pb.GetBalanceResponse(balance=messages.balance(view.totals, view.lots))

    async def ListTransactions(
        self, request: pb.ListTransactionsRequest, context: Context
    ) -> pb.ListTransactionsResponse:
        found, following = await balances.list_transactions(
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
        booked = await balances.get_transaction(
            self._ledger,
            request.tenant_id,
            transaction_id=request.transaction_id if by_id else None,
            idempotency_key=None if by_id else request.idempotency_key,
        )
        return pb.GetTransactionResponse(transaction=messages.transaction(booked.transaction, booked.entries))

    async def CheckLimit(self, request: pb.CheckLimitRequest, context: Context) -> pb.CheckLimitResponse:
        decision, version, as_of = await limits.check_limit(
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

    async def Authorize(self, request: pb.AuthorizeRequest, context: Context) -> pb.AuthorizeResponse:
        authorize = Authorize(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            limits=tuple((each.limit_key, each.amount) for each in request.limits),
            debit_credits=request.debit_credits,
            hold_credits=request.hold_credits,
            hold_ttl=messages.duration(request.hold_ttl),
            reason=request.reason,
            reference_id=request.reference_id,
            dry_run=request.dry_run,
        )
        try:
            decided = await credits.authorize(self._ledger, authorize)
        except NotAuthorized as refused:
            refused.refusal.details = (messages.parts(refused.parts),)
            raise refused.refusal from None
        answer = pb.AuthorizeResponse(
            limits=[messages.limit_decision(each) for each in decided.limits],
            balance=messages.balance(decided.totals),
            replayed=decided.replayed,
        )
        if isinstance(decided, Outcome):
            answer.transaction.CopyFrom(messages.transaction(decided.transaction, decided.entries))
            if decided.hold is not None:
                answer.hold.CopyFrom(messages.hold(decided.hold))
        return answer

    async def ConsumeLimits(
        self, request: pb.ConsumeLimitsRequest, context: Context
    ) -> pb.ConsumeLimitsResponse:
        amounts = tuple((each.limit_key, each.amount) for each in request.limits)
        consume = Consume(
            tenant_id=request.tenant_id, idempotency_key=request.idempotency_key, limits=amounts
        )
        noted = await credits.note(self._ledger, consume)
        return pb.ConsumeLimitsResponse(
            limits=[messages.limit_decision(each) for each in noted.limits], replayed=noted.replayed
        )

    async def ReleaseLimits(
        self, request: pb.ReleaseLimitsRequest, context: Context
    ) -> pb.ReleaseLimitsResponse:
        amounts = tuple((each.limit_key, each.amount) for each in request.limits)
        release = Release(
            tenant_id=request.tenant_id, idempotency_key=request.idempotency_key, limits=amounts
        )
        noted = await credits.note(self._ledger, release)
        return pb.ReleaseLimitsResponse(
            limits=[messages.limit_decision(each) for each in noted.limits], replayed=noted.replayed
        )

    async def SetUsage(self, request: pb.SetUsageRequest, context: Context) -> pb.SetUsageResponse:
        usage = SetUsage(
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            limit_key=request.limit_key,
            used=request.used,
        )
        noted = await credits.note(self._ledger, usage)
        return pb.SetUsageResponse(limit=messages.limit_decision(noted.limits[0]), replayed=noted.replayed)
