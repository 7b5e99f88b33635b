"""`billctl fix …`: the runbooks as commands."""

import typer

from billctl.fixes import escalation
from billctl.running import Actor, Apply, AsJson, Reason, Ticket, Wish, WithSql, mend

app = typer.Typer(
    no_args_is_help=True, help="Runbooks as commands: diagnose, show the plan, --apply carries it out."
)


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
