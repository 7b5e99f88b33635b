"""A ledger behind a line that loses calls: some never arrive, of others only the answer is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any

import grpc
from billing.subscriptions.v1 import subscriptions_maintenance_pb2_grpc as maintenance_grpc
from billing.subscriptions.v1 import subscriptions_pb2_grpc as pb_grpc
from pydantic import SecretStr

from services.subscriptions.clients.razorpay import Razorpay
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.sandbox.running import KEY_ID, KEY_SECRET
from tests.subscriptions.conftest import MovableClock, Room, serving


class Cut(Enum):
    """Where a call is lost."""

    BEFORE = "before"
    AFTER = "after"


class FlakyLedger(grpc.GenericRpcHandler):
    """Passes every call on to the real ledger; `decide` says which debits are lost, and where."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.address = ""
        self.decide: Callable[[], Cut | None] = lambda: None
        self.debits = 0

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        async def behaviour(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            cut = None
            if method.endswith("/Debit"):
                self.debits += 1
                cut = self.decide()
            if cut is Cut.BEFORE:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "lost on the way")
            pass_on: Any = self._channel.unary_unary(method)
            metadata = [item for item in context.invocation_metadata() or () if item[0].startswith("x-")]
            try:
                answer: bytes = await pass_on(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if cut is None:
                    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata()))
            if cut is Cut.AFTER:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "lost on the way back")
            return answer

        return grpc.unary_unary_rpc_method_handler(behaviour)


@asynccontextmanager
async def flaky(address: str) -> AsyncIterator[FlakyLedger]:
    """Such a line to the ledger at an address."""
    async with grpc.aio.insecure_channel(address) as channel:
        line = FlakyLedger(channel)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((line,))
        line.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        yield line
        await server.stop(0)


@asynccontextmanager
async def another_room(room: Room, database: Database) -> AsyncIterator[tuple[Any, Any, FlakyLedger]]:
    """A second process of the room, whose line to the ledger loses what a test says."""
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    async with (
        flaky(room.ledger.address) as line,
        serving(database, line.address, razorpay, MovableClock()) as (address, _, _),
        open_channel(address, SecretStr(SECRETS["gateway_secret"])) as product,
        open_channel(address, SecretStr(SECRETS["room_secret"])) as rooms,
    ):
        yield (
            pb_grpc.SubscriptionsServiceStub(product),
            maintenance_grpc.SubscriptionsMaintenanceServiceStub(rooms),
            line,
        )
