"""Starts the room: `python -m services.webhooks`."""

from pathlib import Path

import uvloop

from services.webhooks.config import WebhooksSettings
from services.webhooks.http.server import bind, serve_http
from services.webhooks.room import open_room
from services.webhooks.store import upkeep
from shared import logs, startup
from shared.config import load
from shared.database import transaction
from shared.migrations import Schema
from shared.rpc.server import serve

SCHEMA = Schema("webhooks", Path(__file__).parent / "migrations")


async def run(settings: WebhooksSettings) -> None:
    """Serves HTTP and gRPC in one loop until told to stop."""
    listener = bind(settings.webhooks_http_listen)
    async with open_room(settings) as room:

        async def http() -> None:
            await serve_http(
                room.app,
                listener,
                receive_seconds=settings.webhooks_receive_seconds,
                connections_max=settings.webhooks_connections_max,
            )

        async def probe() -> None:
            async with transaction(room.engine) as db:
                await upkeep.ping(db)

        await serve(
            room="webhooks",
            listen=settings.webhooks_listen,
            settings=settings,
            doors=room.doors,
            background=[http, room.loop.run],
            probe=probe,
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
