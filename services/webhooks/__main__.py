"""Starts the room: `python -m services.webhooks`."""

import gc

import uvloop

from services.webhooks import SCHEMA
from services.webhooks.config import WebhooksSettings
from services.webhooks.http.server import bind, serve_http
from services.webhooks.room import open_room
from shared import database, logs, startup
from shared.config import load
from shared.ops.limits import Limiter
from shared.rpc.server import serve

# Looking for garbage in circles took a tenth of the processor; little of ours is in any.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000


async def run(settings: WebhooksSettings) -> None:
    """Serves HTTP and gRPC in one loop until told to stop."""
    listener = bind(settings.webhooks_http_listen)
    async with open_room(settings) as room:
        gc.freeze()  # what is there now stays
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)

        async def http() -> None:
            await serve_http(
                room.app,
                listener,
                receive_seconds=settings.webhooks_receive_seconds,
                connections_max=settings.webhooks_connections_max,
                on_closed=room.metrics.connection_closed,
            )

        await serve(
            room="webhooks",
            listen=settings.webhooks_listen,
            settings=settings,
            limiter=Limiter(room.engine, "webhooks"),
            doors=room.doors,
            background=[http, room.loop.run],
            probe=lambda: database.ping(room.engine),
            metrics_listen=settings.webhooks_metrics_listen,
            exposition=room.exposition,
        )


def main() -> None:
    """The process."""
    settings = load(WebhooksSettings)
    logs.configure("webhooks", settings.log_level)
    startup.check(
        settings.webhooks_database_url.get_secret_value(),
        SCHEMA,
        test_clock=settings.billing_test_clock is not None,
    )
    uvloop.run(run(settings))


if __name__ == "__main__":
    main()
