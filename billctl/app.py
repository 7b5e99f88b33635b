"""The command line, put together."""

import typer

from billctl.commands import everyday, look, mend

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
look.add_to(app)
mend.app.command("finding")(everyday.fix_finding)
app.add_typer(mend.app, name="fix")


def main() -> None:
    """Any command."""
    app(prog_name="billctl")
