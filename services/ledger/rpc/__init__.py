"""The ledger's doors: a request becomes plain values, one action runs, its result becomes the response."""

from billing.ledger.v1 import (
    ledger_admin_pb2_grpc,
    ledger_funding_pb2_grpc,
    ledger_maintenance_pb2_grpc,
    ledger_pb2_grpc,
)

from services.ledger.actions import Ledger
from services.ledger.rpc.admin import LedgerAdminService
from services.ledger.rpc.funding import LedgerFundingService
from services.ledger.rpc.ledger import LedgerService
from services.ledger.rpc.maintenance import LedgerMaintenanceService
from shared.rpc.server import Audience, Door


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
