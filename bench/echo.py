"""The ceiling: `python -m bench.echo ADDRESS` answers Debit at once, behind everything that stands before the ledger's."""

from __future__ import annotations

import sys
from typing import Any

import uvloop
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import ledger_pb2_grpc

from shared import config, logs
from shared.config import RoomSettings
from shared.rpc.server import Audience, Door, serve


class Echo(ledger_pb2_grpc.LedgerServiceServicer):
    """A ledger that does nothing."""

    async def Debit(self, request: pb.DebitRequest, context: Any) -> pb.DebitResponse:
        return pb.DebitResponse()


if __name__ == "__main__":
    settings = config.load(RoomSettings)
    logs.configure("echo", settings.log_level)
    door = Door(
        "billing.ledger.v1.LedgerService",
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server,
        Echo(),
        Audience.PRODUCT,
    )
    uvloop.run(serve(room="echo", listen=sys.argv[1], settings=settings, doors=[door]))
