"""What changes nothing: the screens and lists that a runbook begins with."""

import typer

from billctl.desk import Desk
from billctl.diagnosis import View
from billctl.looks import health
from billctl.running import AsJson, Wish, WithSql, look
from billctl.screen import Screen


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("health")(show_health)


def show_health(as_json: AsJson = False, with_sql: WithSql = False) -> None:
    """Is it billing? Every signal with a verdict and the next command (runbooks 0 and 8)."""

    async def show(desk: Desk, screen: Screen) -> View:
        return await health.show(desk, everything=screen.as_json or screen.with_sources)

    look("health", Wish(as_json=as_json, with_sql=with_sql), show)
