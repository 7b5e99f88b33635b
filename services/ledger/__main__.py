"""Starts the ledger: `python -m services.ledger`."""

from datetime import timedelta

import uvloop

from services.ledger import SCHEMA, metrics
from services.ledger.actions import Ledger
from services.ledger.config import LedgerSettings
from services.ledger.lanes import Lanes
from services.ledger.limit_reads import LimitReads
from services.ledger.rpc import doors
from shared import config, database, logs, startup
from shared.metrics import Exposition
from shared.ops.limits import Limiter
from shared.rpc.server import serve


async def main(settings: LedgerSettings) -> None:
    """Serves until told to stop."""
    url = settings.ledger_database_url.get_secret_value()
    engine = database.create_engine(url, application_name="ledger", pool_size=settings.ledger_pool_size)
    lanes = Lanes(
        url,
        count=settings.ledger_lanes,
        waiting_max=settings.ledger_waiting_max,
        waiting_per_tenant_max=settings.ledger_waiting_per_tenant_max,
    )
    # They outlive the drain: whoever is still being answered needs them.
    async with lanes, LimitReads(url) as limit_reads:
        await serve(
            room="ledger",
            listen=settings.ledger_listen,
            settings=settings,
            limiter=Limiter(engine, "ledger"),
            doors=doors(
                Ledger(
                    engine,
                    lanes,
                    limit_reads,
                    grace_retention=timedelta(days=settings.ledger_grace_retention_days),
                    rate_limit_retention=timedelta(days=settings.ledger_rate_limit_retention_days),
                )
            ),
            probe=lambda: database.ping(engine),
            metrics_listen=settings.ledger_metrics_listen,
            exposition=Exposition(lambda: metrics.refresh(engine), also=metrics.registry),
        )
    await engine.dispose()


if __name__ == "__main__":
    loaded = config.load(LedgerSettings)
    logs.configure("ledger", loaded.log_level)
    startup.check(
        loaded.ledger_database_url.get_secret_value(),
        SCHEMA,
        test_clock=loaded.billing_test_clock is not None,
    )
    uvloop.run(main(loaded))
