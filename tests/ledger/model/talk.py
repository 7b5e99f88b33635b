"""Asking a real ledger from hypothesis' own thread, and reading its answers in the model's words."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from billing.ledger.v1 import (
    ledger_admin_pb2_grpc,
    ledger_funding_pb2_grpc,
    ledger_maintenance_pb2_grpc,
    ledger_pb2_grpc,
)
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf import text_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from shared import clock
from shared.errors import BillingError
from tests.ledger.model.credits import PERMANENT, SUBSCRIPTION, BalanceSeen
from tests.ledger.model.limits import Decision

T = TypeVar("T")
Reply = Any  # a response, or the BillingError that came instead

ONCE, THRICE, CANCELLED = "once", "thrice", "cancelled"

# What LedgerService has to answer again whatever happened since.
REMEMBERED = {
    "INSUFFICIENT_CREDITS",
    "PLAN_LIMIT_REACHED",
    "CONDITION_FAILED",
    "HOLD_ALREADY_CAPTURED",
    "HOLD_ALREADY_VOIDED",
    "HOLD_EXPIRED",
    "EXCEEDS_HOLD",
    "EXCEEDS_REFUNDABLE",
}
# What the follower asks after every step.
LOOKS = {"GetBalance", "ListTransactions", "GetTransaction"}
BUCKETS = {types.BUCKET_SUBSCRIPTION: SUBSCRIPTION, types.BUCKET_PERMANENT: PERMANENT}


@dataclass(frozen=True)
class Doors:
    """Stubs with a key that may call each."""

    service: ledger_pb2_grpc.LedgerServiceStub
    funding: ledger_funding_pb2_grpc.LedgerFundingServiceStub
    admin: ledger_admin_pb2_grpc.LedgerAdminServiceStub
    maintenance: ledger_maintenance_pb2_grpc.LedgerMaintenanceServiceStub
    product_key: str  # a stream carries its key itself

    def method(self, rpc: str) -> Any:
        stubs = (self.service, self.funding, self.admin, self.maintenance)
        return next(getattr(stub, rpc) for stub in stubs if hasattr(stub, rpc))

    def remembers_refusals(self, rpc: str) -> bool:
        return hasattr(self.service, rpc)


class Talk:
    """Calls from a thread into the loop that the server lives in."""

    def __init__(self, doors: Doors, loop: asyncio.AbstractEventLoop) -> None:
        self.doors = doors
        self._loop = loop
        self.said: list[str] = []
        self.failures: list[str] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def ask(self, rpc: str, request: Message, how: str = ONCE, patience: float = 0) -> Reply:
        """The answer or the refusal; three at once agree on it, and a cancelled call is asked again."""
        if rpc not in LOOKS:
            self.said.append(f"{clock.now()} {rpc} {how} {one_line(request)}")
        if how == THRICE and not getattr(request, "dry_run", False):  # three trials are three moments
            return self.run(self._thrice(rpc, request))
        if how == CANCELLED:
            return self.run(self._cancelled(rpc, request, patience))
        return self.run(self._once(rpc, request))

    def ask_all(self, calls: Sequence[tuple[str, Message]]) -> list[Reply]:
        """Different questions at once."""

        self.said += [f"{clock.now()} {rpc} with others {one_line(request)}" for rpc, request in calls]

        async def gathered() -> list[Reply]:
            return await asyncio.gather(*(self._once(rpc, request) for rpc, request in calls))

        return self.run(gathered())

    def stream(self, request: pb.BatchDebitRequest) -> pb.BatchDebitResponse:
        """A batch as the only one of a stream."""
        self.said.append(f"{clock.now()} StreamDebits {one_line(request)}")

        async def batches() -> AsyncIterator[pb.StreamDebitsRequest]:
            yield pb.StreamDebitsRequest(number=1, items=request.items)

        async def answered() -> pb.BatchDebitResponse:
            key = [("x-gateway-key", self.doors.product_key)]
            call = self.doors.service.StreamDebits(batches(), metadata=key)
            (answer,) = [each async for each in call]
            assert answer.number == 1
            return pb.BatchDebitResponse(results=answer.results)

        return self.run(answered())

    async def _once(self, rpc: str, request: Message) -> Reply:
        try:
            return await self.doors.method(rpc)(request)
        except BillingError as refusal:
            assert refusal.definite, f"{rpc}: {refusal!r}"
            return refusal

    async def _thrice(self, rpc: str, request: Message) -> Reply:
        replies = await asyncio.gather(*(self._once(rpc, request) for _ in range(3)))
        first = next((each for each in replies if not says_replayed(each)), replies[0])
        for each in replies:
            assert same(each, first), f"{rpc}: callers at once were told different things: {replies}"
        replayed = [says_replayed(each) for each in replies]
        if not isinstance(first, BillingError) and hasattr(first, "replayed"):
            assert replayed.count(False) <= 1, f"{rpc}: more than one caller was told that it was the first"
        return first

    async def _cancelled(self, rpc: str, request: Message, patience: float) -> Reply:
        call = asyncio.ensure_future(self._once(rpc, request))
        await asyncio.sleep(patience)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        return await self._once(rpc, request)

    def transaction(self, tenant: str, key: str) -> types.Transaction | None:
        """What is kept under a key."""
        reply = self.ask("GetTransaction", pb.GetTransactionRequest(tenant_id=tenant, idempotency_key=key))
        return None if isinstance(reply, BillingError) else reply.transaction


def one_line(request: Message) -> str:
    return text_format.MessageToString(request, as_one_line=True)


def patience() -> float:
    """How long a caller waits before it goes away: sometimes nothing was sent yet, sometimes all was done."""
    return random.choice((0, 0.001, 0.002, 0.004))


def says_replayed(reply: Reply) -> bool:
    if isinstance(reply, BillingError):
        return reply.metadata.get("replayed") == "true"
    return bool(getattr(reply, "replayed", False))


def same(one: Reply, other: Reply) -> bool:
    """Whether two replies say the same, but for being the first or a repeat."""
    if isinstance(one, BillingError) or isinstance(other, BillingError):
        return (
            isinstance(one, BillingError)
            and isinstance(other, BillingError)
            and one.reason == other.reason
            and plain(one) == plain(other)
        )
    return bool(first_time(one) == first_time(other))


def plain(refusal: BillingError) -> dict[str, str]:
    """What a refusal says, without what only its repeats say."""
    return {name: value for name, value in refusal.metadata.items() if name not in ("replayed", "decided_at")}


def first_time(reply: Message) -> Message:
    """The reply as its first caller got it."""
    copied = type(reply)()
    copied.CopyFrom(reply)
    if "replayed" in copied.DESCRIPTOR.fields_by_name:
        copied.ClearField("replayed")
    return copied


def moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


def maybe(message: Message, name: str) -> datetime | None:
    return moment(getattr(message, name)) if message.HasField(name) else None


def kind_of(transaction: types.Transaction) -> str:
    return types.TransactionKind.Name(transaction.kind).removeprefix("TRANSACTION_KIND_").lower()


def status_of(status: types.TransactionStatus.ValueType) -> str:
    return types.TransactionStatus.Name(status).removeprefix("TRANSACTION_STATUS_").lower()


def seen(balance: types.Balance) -> BalanceSeen:
    """A balance in the model's words."""
    return BalanceSeen(
        available=balance.available,
        held=balance.held,
        posted=balance.posted,
        buckets={
            BUCKETS[each.bucket]: (each.credits, each.held)
            for each in balance.buckets
            if each.credits or each.held
        },
        lots=[
            (
                each.lot,
                BUCKETS[each.bucket],
                each.granted,
                each.remaining,
                each.held,
                maybe(each, "expires_at"),
            )
            for each in balance.lots
        ],
        next_expires_at=maybe(balance, "next_expires_at"),
    )


def decided(message: pb.LimitDecision) -> Decision:
    """A decision in the model's words."""
    decision = Decision(
        message.limit_key,
        message.allowed,
        pb.LimitReason.Name(message.reason).removeprefix("LIMIT_REASON_"),
        message.limit if message.HasField("limit") else None,
        message.used,
        maybe(message, "grace_expires_at"),
        message.addon,
    )
    remaining = message.remaining if message.HasField("remaining") else None
    assert remaining == decision.remaining, message
    return decision
