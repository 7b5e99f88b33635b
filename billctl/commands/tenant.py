"""`billctl tenant …`: one tenant over all rooms."""

from datetime import timedelta
from typing import Annotated

import typer

from billctl.commands.options import Limit, Since
from billctl.looks import tenant as looks
from billctl.looks import timeline
from billctl.running import AsJson, Wish, WithSql, look
from shared.clock import now

app = typer.Typer(no_args_is_help=True, help="One tenant over all rooms.")

TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="whose", show_default=False)]
# How far a timeline goes back where nobody says.
A_MONTH = timedelta(days=30)


@app.command("show")
def show_tenant(tenant: TenantId, as_json: AsJson = False, with_sql: WithSql = False) -> None:
    """Plan and status, limits and usage, what the provider has, and everything that is open."""
    wish = Wish(as_json=as_json, with_sql=with_sql)
    look("tenant show", wish, lambda desk, _screen: looks.show(desk, tenant))


@app.command("balance")
def show_balance(tenant: TenantId, as_json: AsJson = False, with_sql: WithSql = False) -> None:
    """What it can spend: buckets, lots in the order in which they are spent, open holds."""
    wish = Wish(as_json=as_json, with_sql=with_sql)
    look("tenant balance", wish, lambda desk, _screen: looks.balance(desk, tenant))


@app.command("transactions")
def show_transactions(
    tenant: TenantId,
    since: Since = None,
    reason: Annotated[str, typer.Option("--reason", help="only this, and those below it: blog")] = "",
    limit: Limit = 50,
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """What moved its credits, newest first, with the balance after it."""
    look(
        "tenant transactions",
        Wish(as_json=as_json, with_sql=with_sql),
        lambda desk, _screen: looks.transactions(
            desk, tenant, since=since, reason=reason or None, limit=limit
        ),
    )


@app.command("timeline")
def show_timeline(
    tenant: TenantId,
    since: Since = None,
    limit: Limit = 100,
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """What happened to it, in every room, oldest first; of the last 30 days unless --since says otherwise."""
    begin = since or now() - A_MONTH
    look(
        "tenant timeline",
        Wish(as_json=as_json, with_sql=with_sql),
        lambda desk, _screen: timeline.show(desk, tenant, since=begin, limit=limit),
    )
