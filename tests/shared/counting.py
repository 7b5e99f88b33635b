"""What counting costs a call: `python -m tests.shared.counting`, one ratio of two figures of one run.

The call is the smallest there is, an empty answer through the whole gate; a debit costs several times as much.
"""

import asyncio
import contextlib
import io
import statistics
import sys
import time
from typing import Any

from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import ledger_pb2_grpc
from pydantic import SecretStr

from shared import logs, metrics
from shared.config import RoomSettings
from shared.rpc.client import open_channel
from shared.rpc.server import Audience, Door, running_server

SERVICE = "billing.ledger.v1.LedgerService"
KEY = "gateway-for-counting"
CALLS = 2000
ROUNDS = 7


class Echo(ledger_pb2_grpc.LedgerServiceServicer):
    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        return pb.GetBalanceResponse()


async def call_seconds() -> float:
    """Processor time of one call, of both its ends."""
    settings = RoomSettings(
        gateway_secret=SecretStr(KEY),
        operator_secret=SecretStr("operator-for-counting"),
        room_secret=SecretStr("room-for-counting"),
    )
    door = Door(SERVICE, ledger_pb2_grpc.add_LedgerServiceServicer_to_server, Echo(), Audience.PRODUCT)
    async with (
        running_server(room="ledger", listen="127.0.0.1:0", settings=settings, doors=[door]) as (
            address,
            _,
            _,
        ),
        open_channel(address, SecretStr(KEY)) as channel,
    ):
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        request = pb.GetBalanceRequest(tenant_id="t")
        rounds = []
        for _ in range(ROUNDS):
            started_at = time.process_time()
            for _ in range(CALLS // 20):
                await asyncio.gather(*(stub.GetBalance(request) for _ in range(20)))
            rounds.append((time.process_time() - started_at) / CALLS)
    return statistics.median(rounds)


def count_seconds() -> float:
    """Processor time of counting one call."""
    meter = metrics.RpcMeter(f"/{SERVICE}/GetBalance", "unary")
    rounds = []
    for _ in range(ROUNDS):
        started_at = time.process_time()
        for _ in range(CALLS * 10):
            meter.handled("OK", 0.003)
        rounds.append((time.process_time() - started_at) / CALLS / 10)
    return statistics.median(rounds)


def main() -> None:
    with contextlib.redirect_stderr(
        io.StringIO()
    ):  # a line of the log for each call, as in a room, but not seen
        logs.configure("ledger")
        call = asyncio.run(call_seconds())
    count = count_seconds()
    sys.stdout.write(
        f"a call {call * 1e6:.0f} µs (both ends), counting it {count * 1e6:.2f} µs: {count / call:.2%}\n"
    )


if __name__ == "__main__":
    main()
