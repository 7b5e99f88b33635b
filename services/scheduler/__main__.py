"""Starts the scheduler: `python -m services.scheduler`."""

import uvloop
from billing.scheduler.v1 import scheduler_pb2_grpc

from services.scheduler import SCHEMA, actions, metrics
from services.scheduler.clients import AlertSink, Maintenance, method_of
from services.scheduler.config import SchedulerSettings
from services.scheduler.jobs import JOBS
from services.scheduler.loop import Loop
from services.scheduler.rpc import SchedulerService
from shared import config, database, logs, startup
from shared.metrics import Exposition
from shared.ops.limits import Limiter
from shared.rpc.client import open_channel
from shared.rpc.server import Audience, Door, serve


async def run(settings: SchedulerSettings) -> None:
    """Wire the room and serve until it is told to stop."""
    engine = database.create_engine(
        settings.scheduler_database_url.get_secret_value(), application_name="scheduler"
    )
    await actions.prepare(engine)
    channels = {
        "ledger": open_channel(settings.ledger_address, settings.room_secret),
        "subscriptions": open_channel(settings.subscriptions_address, settings.room_secret),
        "webhooks": open_channel(settings.webhooks_address, settings.room_secret),
    }
    url, policy = settings.billing_alert_webhook_url, settings.policy
    sink = AlertSink(url.get_secret_value()) if url is not None else None
    loop = Loop(engine, Maintenance(channels), sink=sink, policy=policy)

    async def close() -> None:
        if sink is not None:
            await sink.close()
        for channel in channels.values():
            await channel.close()
        await engine.dispose()

    await serve(
        room="scheduler",
        listen=settings.scheduler_listen,
        settings=settings,
        limiter=Limiter(engine, "scheduler"),
        doors=[
            Door(
                "billing.scheduler.v1.SchedulerService",
                scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server,
                SchedulerService(engine, owner=loop.owner, start=loop.start, policy=policy),
                Audience.OPERATOR,
            )
        ],
        background=[loop.keep_time, loop.tell_sink, loop.keep_tidy],
        probe=lambda: database.ping(engine),
        on_stop=close,
        metrics_listen=settings.scheduler_metrics_listen,
        exposition=Exposition(lambda: metrics.refresh(engine), also=metrics.registry),
    )


def main() -> None:
    """Check what can be checked before anything is served, then run."""
    settings = config.load(SchedulerSettings)
    logs.configure("scheduler", settings.log_level)
    for job in JOBS:
        for target in job.targets:
            method_of(target)
    startup.check(
        settings.scheduler_database_url.get_secret_value(),
        SCHEMA,
        test_clock=settings.billing_test_clock is not None,
    )
    uvloop.run(run(settings))


if __name__ == "__main__":
    main()
