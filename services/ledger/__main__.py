"""Starts the ledger: `python -m services.ledger`."""

from pathlib import Path

import uvloop
from billing.ledger.v1 import ledger_funding_pb2_grpc, ledger_maintenance_pb2_grpc, ledger_pb2_grpc

from services.ledger.actions import Ledger
from services.ledger.config import LedgerSettings
from services.ledger.lanes import Lanes
from services.ledger.rpc import LedgerFundingService, LedgerMaintenanceService, LedgerService
from shared import config, database, logs, migrations, startup
from shared.rpc.server import Audience, Door, serve

SCHEMA = migrations.Schema("ledger", Path(__file__).parent / "migrations")


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
    ]


async def main(settings: LedgerSettings) -> None:
    """Serves until told to stop."""
    url = settings.ledger_database_url
    engine = database.create_engine(url, application_name="ledger", pool_size=settings.ledger_pool_size)
    lanes = Lanes(
        url,
        count=settings.ledger_lanes,
        waiting_max=settings.ledger_waiting_max,
        waiting_per_tenant_max=settings.ledger_waiting_per_tenant_max,
    )
    # The lanes outlive the drain: whoever is still being answered needs them.
    async with lanes:
        await serve(
            room="ledger",
            listen=settings.ledger_listen,
            settings=settings,
            doors=doors(Ledger(engine, lanes)),
            probe=lambda: database.ping(engine),
        )
    await engine.dispose()


if __name__ == "__main__":
    loaded = config.load(LedgerSettings)
    logs.configure("ledger", loaded.log_level)
    startup.check(loaded.ledger_database_url, SCHEMA, test_clock=loaded.billing_test_clock is not None)
    uvloop.run(main(loaded))
