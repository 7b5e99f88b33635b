"""Starts the room: `python -m services.subscriptions`; with `apply-catalog [--dry-run]` it applies the catalogue."""

from typing import Annotated

import typer
import uvloop
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions import SCHEMA
from services.subscriptions.actions.health import Numbers
from services.subscriptions.actions.performing import Performer
from services.subscriptions.actions.reconciliation import Reconciler
from services.subscriptions.catalogue import apply_file
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.notices import NoticeSink
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.config import SubscriptionsSettings
from services.subscriptions.errors import CatalogInvalid
from services.subscriptions.rpc.doors import doors
from services.subscriptions.rpc.room import Room
from shared import clock, config, database, logs, startup
from shared.metrics import Exposition
from shared.ops.limits import Limiter
from shared.rpc.client import open_channel
from shared.rpc.server import serve

ROOM = "subscriptions"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


async def run(settings: SubscriptionsSettings) -> None:
    """Wire the room and serve until it is told to stop."""
    engine, razorpay = _engine(settings), _razorpay(settings)
    channel = open_channel(settings.ledger_address, settings.room_secret)
    ledger, mode = Ledger(channel), settings.razorpay_mode
    performer = Performer(engine, ledger, razorpay, mode=mode, clock=clock.now, policy=settings.policy)
    limiter = Limiter(engine, ROOM)
    reconciler = Reconciler(engine, performer, clock=clock.now, policy=settings.policy)

    numbers = Numbers(engine, settings.policy, clock.now)

    async def close() -> None:
        await reconciler.drain()
        await channel.close()
        await engine.dispose()
        razorpay.close()

    await serve(
        room=ROOM,
        listen=settings.subscriptions_listen,
        settings=settings,
        limiter=limiter,
        doors=doors(
            Room(
                engine,
                ledger,
                razorpay,
                reconciler,
                mode,
                clock.now,
                settings.policy,
                limiter,
                _notice_sink(settings),
            )
        ),
        background=[reconciler.take_over],
        probe=lambda: database.ping(engine),
        on_stop=close,
        metrics_listen=settings.subscriptions_metrics_listen,
        exposition=Exposition(numbers.refresh),
    )


def _notice_sink(settings: SubscriptionsSettings) -> NoticeSink | None:
    url = settings.billing_notification_webhook_url.get_secret_value()
    return NoticeSink(url, settings.billing_notification_secret.get_secret_value()) if url else None


def _engine(settings: SubscriptionsSettings) -> AsyncEngine:
    return database.create_engine(
        settings.subscriptions_database_url.get_secret_value(),
        application_name=ROOM,
        pool_size=settings.subscriptions_pool_size,
    )


def _razorpay(settings: SubscriptionsSettings) -> Razorpay:
    return Razorpay(
        api_url=settings.razorpay_api_url,
        key_id=settings.razorpay_key_id,
        key_secret=settings.razorpay_key_secret.get_secret_value(),
    )


def _prepared() -> SubscriptionsSettings:
    settings = config.load(SubscriptionsSettings)
    logs.configure(ROOM, settings.log_level)
    startup.check(
        settings.subscriptions_database_url.get_secret_value(),
        SCHEMA,
        test_clock=settings.billing_test_clock is not None,
        outsiders={"RAZORPAY_API_URL": settings.razorpay_api_url},
    )
    return settings


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Serve, unless a command is named."""
    if context.invoked_subcommand is None:
        uvloop.run(run(_prepared()))


@app.command("apply-catalog")
def apply_catalog(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the difference, change nothing")] = False,
) -> None:
    """Make what is for sale equal to catalog.yaml."""
    settings = _prepared()

    async def apply() -> None:
        engine, razorpay = _engine(settings), _razorpay(settings)
        try:
            await apply_file(engine, razorpay, dry_run=dry_run, console=Console(width=160))
        except CatalogInvalid as error:
            typer.echo(f"Nothing was changed. {error}", err=True)
            raise typer.Exit(1) from None
        finally:
            await engine.dispose()
            razorpay.close()

    uvloop.run(apply())


if __name__ == "__main__":
    app()
