"""`billctl fix …`: the runbooks as commands."""

from typing import Annotated

import typer

from billctl.fixes import double_charge, escalation, wrong_plan
from billctl.running import Actor, Apply, AsJson, Reason, Ticket, Wish, WithSql, mend

app = typer.Typer(
    no_args_is_help=True, help="Runbooks as commands: diagnose, show the plan, --apply carries it out."
)

Tenant = Annotated[str, typer.Argument(metavar="T", help="the tenant", show_default=False)]


@app.command("double-charge")
def fix_double_charge(
    tenant: Tenant,
    subscription: Annotated[
        str, typer.Option("--subscription", help="end only this one: sub_…", show_default=False)
    ] = "",
    payment: Annotated[
        str,
        typer.Option("--payment", help="give this one back, whatever was found: pay_…", show_default=False),
    ] = "",
    amount_paise: Annotated[
        int | None, typer.Option("--amount-paise", min=100, help="of --payment; default all that is left")
    ] = None,
    credits: Annotated[
        int | None, typer.Option("--credits", min=1, help="lost credits to give back, permanent ones")
    ] = None,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """A customer was charged twice: ends orphans, refunds the double payment (runbook 1)."""
    if amount_paise is not None and not payment:
        raise typer.BadParameter("--amount-paise needs --payment: say of which")
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    asked = double_charge.Asked(tenant, subscription, payment, amount_paise, credits)
    mend("fix double-charge", wish, lambda desk, _screen: double_charge.diagnose(desk, asked))


@app.command("escalation")
def fix_escalation(
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Past-due tenants that should have been put on free (runbook 6)."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("fix escalation", wish, lambda desk, _screen: escalation.diagnose(desk))


@app.command("wrong-plan")
def fix_wrong_plan(
    tenant: Tenant,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """A customer paid for one plan and has another: stale limits, missed events, changes not made (runbook 4)."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("fix wrong-plan", wish, lambda desk, _screen: wrong_plan.diagnose(desk, tenant))
