"""The operators' door: corrections by people, and the ledger's proof of itself."""

from billing.ledger.v1 import ledger_admin_pb2_grpc

from services.ledger.actions import Ledger


class LedgerAdminService(ledger_admin_pb2_grpc.LedgerAdminServiceServicer):
    """What operators may do to an account. Every call is audited."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
