"""What changes nothing: the screens and lists that a runbook begins with."""

from typing import Annotated

import typer

from billctl.commands import everyday, tenant
from billctl.commands.options import Limit, Since, Tenant
from billctl.desk import Desk
from billctl.diagnosis import View
from billctl.looks import deploy, health, lists
from billctl.running import AsJson, Wish, WithSql, look
from billctl.screen import Screen


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("health")(show_health)
    app.command("verify-deploy")(verify_deploy)
    app.add_typer(tenant.app, name="tenant")
    app.add_typer(everyday.findings, name="findings")
    app.add_typer(everyday.tasks, name="tasks")
    app.add_typer(everyday.jobs, name="jobs")
    app.command("alerts")(show_alerts)
    app.command("audit-log")(show_audit_log)


def show_health(as_json: AsJson = False, with_sql: WithSql = False) -> None:
    """Is it billing? Every signal with a verdict and the next command (runbooks 0 and 8)."""

    async def show(desk: Desk, screen: Screen) -> View:
        return await health.show(desk, everything=screen.as_json or screen.with_sources)

    look("health", Wish(as_json=as_json, with_sql=with_sql), show)


def verify_deploy(as_json: AsJson = False, with_sql: WithSql = False) -> None:
    """Ten minutes after a deploy: tables, columns, migrations, rooms, first tick, every job."""

    async def show(desk: Desk, screen: Screen) -> View:
        return await deploy.show(desk, everything=screen.as_json or screen.with_sources)

    look("verify-deploy", Wish(as_json=as_json, with_sql=with_sql), show)


def show_alerts(
    whose: Tenant = "",
    over: Annotated[bool, typer.Option("--all", help="those that are over too")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Alerts that hold, newest first."""
    look(
        "alerts",
        Wish(as_json=as_json, with_sql=with_sql),
        lambda desk, _screen: lists.alerts(desk, tenant=whose or None, over=over, limit=limit),
    )


def show_audit_log(
    whose: Tenant = "",
    action: Annotated[str, typer.Option("--action", help="only this, such as plan.changed")] = "",
    actor: Annotated[str, typer.Option("--actor", help="only what this person did")] = "",
    since: Since = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Who changed what and why, in every room, newest first."""
    look(
        "audit-log",
        Wish(as_json=as_json, with_sql=with_sql),
        lambda desk, _screen: lists.audit_log(
            desk,
            tenant=whose or None,
            action=action or None,
            actor=actor or None,
            since=since,
            limit=limit,
        ),
    )
