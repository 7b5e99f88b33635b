"""Every command and its options; what they do lies in the modules they name."""

import typer

from billctl.fixes import escalation
from billctl.running import Actor, Apply, AsJson, Reason, Ticket, Wish, WithSql, mend

app = typer.Typer(
    name="billctl",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print the values of variables, and some of those are secrets
    help=(
        "Looks into a running billing suite and mends what a runbook mends. Nothing is changed without --apply. "
        "Exit status: 0 well or done, 1 failed, 2 a command line that makes no sense, 3 something needs a person, "
        "4 only partly done."
    ),
)
fix = typer.Typer(
    no_args_is_help=True, help="Runbooks as commands: diagnose, show the plan, --apply carries it out."
)
app.add_typer(fix, name="fix")


@fix.command("escalation")
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


def main() -> None:
    """Any command."""
    app()
