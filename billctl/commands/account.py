"""`billctl account …`: what people do to a tenant's credits by hand."""

from typing import Annotated

import typer

from billctl.commands.options import zoned
from billctl.fixes import account as fixes
from billctl.running import Actor, Apply, AsJson, Reason, Ticket, Wish, WithSql, mend
from shared.clock import now

app = typer.Typer(no_args_is_help=True, help="A tenant's credits by hand: adjust, freeze, unfreeze.")

TenantId = Annotated[str, typer.Argument(metavar="T", help="the tenant", show_default=False)]
CREDITS_MAX = 10**12


@app.command("adjust")
def adjust(
    tenant: TenantId,
    credits: Annotated[
        int,
        typer.Option(
            "--credits",
            min=-CREDITS_MAX,
            max=CREDITS_MAX,
            help="how many to give; a negative number takes, never below zero",
            show_default=False,
        ),
    ],
    refund: Annotated[
        bool, typer.Option("--refund", help="booked as admin.refund, not as admin.adjustment")
    ] = False,
    expires: Annotated[
        str,
        typer.Option(
            "--expires", help="given until then, not for ever: 2026-12-20T00:00Z", show_default=False
        ),
    ] = "",
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Give or take credits, as a transaction of its own."""
    if credits == 0:
        raise typer.BadParameter("--credits 0 changes nothing")
    until = zoned("--expires", expires) if expires else None
    if until is not None and credits < 0:
        raise typer.BadParameter("--expires is for credits that are given; those taken go in the usual order")
    if until is not None and until <= now():
        raise typer.BadParameter(f"--expires {expires} is past")
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    asked = fixes.Adjustment(tenant, credits, refund, until)
    mend("account adjust", wish, lambda desk, _screen: fixes.adjust(desk, asked))


@app.command("freeze")
def freeze(
    tenant: TenantId,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Refuse every change of its credits until it is unfrozen; reads go on."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("account freeze", wish, lambda desk, _screen: fixes.freeze(desk, tenant))


@app.command("unfreeze")
def unfreeze(
    tenant: TenantId,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """End a freeze, once it is explained what it was for."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("account unfreeze", wish, lambda desk, _screen: fixes.unfreeze(desk, tenant))
