"""The room put together: what `__main__` serves and tests run in-process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from billing.webhooks.v1 import webhooks_admin_pb2_grpc as admin_grpc
from billing.webhooks.v1 import webhooks_maintenance_pb2_grpc as maintenance_grpc
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import ASGIApp

from services.webhooks.actions.deliver import Courier
from services.webhooks.actions.watch import Retention, Watch, Watchman
from services.webhooks.clients import PaymentEvents
from services.webhooks.config import WebhooksSettings
from services.webhooks.failures import FailureLog
from services.webhooks.http.app import Ingress
from services.webhooks.http.strangers import Strangers
from services.webhooks.inbox import Inbox
from services.webhooks.loop import DeliveryLoop
from services.webhooks.metrics import Metrics
from services.webhooks.rpc import WebhooksAdminService, WebhooksMaintenanceService
from services.webhooks.rules.health import Spike
from shared import clock
from shared.database import create_engine
from shared.metrics import Exposition
from shared.ops.limits import Limiter
from shared.rpc.client import open_channel
from shared.rpc.server import Audience, Door


@dataclass(frozen=True)
class Room:
    """Everything that runs, ready to be served."""

    engine: AsyncEngine
    app: ASGIApp
    doors: list[Door]
    loop: DeliveryLoop
    courier: Courier
    metrics: Metrics
    exposition: Exposition


@asynccontextmanager
async def open_room(settings: WebhooksSettings) -> AsyncIterator[Room]:
    """Builds the room; afterwards everything taken in is written and every connection closed."""
    # Apart, so that a backlog of deliveries never keeps a new one from being stored.
    url = settings.webhooks_database_url.get_secret_value()
    accepting = create_engine(url, application_name="webhooks-accept", pool_size=4)
    engine = create_engine(
        url, application_name="webhooks", pool_size=settings.webhooks_delivery_concurrency + 4
    )
    channel = open_channel(settings.subscriptions_address, settings.room_secret)
    metrics = Metrics()
    courier = Courier(
        engine,
        PaymentEvents(channel),
        patience=settings.patience(),
        clock=clock.now,
        on_result=metrics.delivered,
    )
    loop = DeliveryLoop(
        courier,
        concurrency=settings.webhooks_delivery_concurrency,
        poll_seconds=settings.webhooks_delivery_poll_seconds,
        is_crowded=lambda: inbox.is_crowded,
    )
    inbox = Inbox(accepting, on_stored=loop.wake)
    failures = FailureLog(engine)
    watchman = Watchman(engine, clock.now)
    exposition = Exposition(lambda: watchman.refresh(metrics), also=metrics.registry)
    ingress = Ingress(
        settings.endpoints(),
        inbox=inbox,
        failures=failures,
        strangers=Strangers(
            Limiter(engine, "webhooks"), per_15_minutes=settings.webhooks_unsigned_per_15_minutes
        ),
        trusted_proxies=settings.trusted_proxies(),
        watchman=watchman,
        metrics=metrics,
        exposition=exposition,
        clock=clock.now,
        body_bytes_max=settings.webhooks_body_bytes_max,
        receive_seconds=settings.webhooks_receive_seconds,
    )
    try:
        doors = _doors(settings, engine, courier, loop)
        yield Room(engine, ingress.app(), doors, loop, courier, metrics, exposition)
    finally:
        await inbox.close()
        await failures.close()
        await channel.close()
        await accepting.dispose()
        await engine.dispose()


def _doors(
    settings: WebhooksSettings, engine: AsyncEngine, courier: Courier, loop: DeliveryLoop
) -> list[Door]:
    maintenance = WebhooksMaintenanceService(
        engine,
        courier,
        concurrency=settings.webhooks_delivery_concurrency,
        normal=Watch(
            hours=settings.business_hours(),
            silence=timedelta(minutes=settings.webhooks_silence_minutes),
            signature_spike=Spike(settings.webhooks_signature_spike, settings.webhooks_signature_burst),
            dead_letters=settings.webhooks_dead_letters_alert,
        ),
        retention=Retention(
            bodies=timedelta(days=settings.webhooks_body_retention_days),
            events=timedelta(days=settings.webhooks_event_retention_days),
            requests=timedelta(days=settings.webhooks_admin_request_retention_days),
            signature_failures=timedelta(days=settings.webhooks_signature_failure_retention_days),
        ),
        clock=clock.now,
    )
    return [
        Door(
            "billing.webhooks.v1.WebhooksAdminService",
            admin_grpc.add_WebhooksAdminServiceServicer_to_server,
            WebhooksAdminService(engine, loop),
            Audience.OPERATOR,
        ),
        Door(
            "billing.webhooks.v1.WebhooksMaintenanceService",
            maintenance_grpc.add_WebhooksMaintenanceServiceServicer_to_server,
            maintenance,
            Audience.ROOM,
        ),
    ]
