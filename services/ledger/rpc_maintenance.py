"""The scheduler's door: what time does to the ledger, and its proof of itself."""

from typing import Any, TypeAlias

import grpc
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from billing.ledger.v1 import ledger_maintenance_pb2_grpc

from services.ledger import actions
from services.ledger.actions import Ledger
from shared.rpc.context import DEFAULT_TIMEOUT_SECONDS, remaining_seconds

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class LedgerMaintenanceService(ledger_maintenance_pb2_grpc.LedgerMaintenanceServiceServicer):
    """What time does to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def SettleExpired(
        self, request: maintenance_pb.SettleExpiredRequest, context: Context
    ) -> maintenance_pb.SettleExpiredResponse:
        lots, credits = await actions.settle_expired(
            self._ledger,
            dry_run=request.dry_run,
            time_left_seconds=remaining_seconds() or DEFAULT_TIMEOUT_SECONDS,
        )
        return maintenance_pb.SettleExpiredResponse(lots=lots, credits=credits)
