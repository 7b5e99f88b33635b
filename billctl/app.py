"""The command line, put together."""

import os
import sys
from collections.abc import Sequence
from typing import Any, cast

import typer
from typer.core import TyperGroup

from billctl.commands import account, everyday, look, mend
from billctl.screen import Screen

# What typer raises for a command line that makes no sense; it has this name in public only for its child.
USAGE = cast(type[Exception], typer.BadParameter.__bases__[0])


class Commands(TyperGroup):
    """Whoever asked for JSON is answered with JSON, also where the command line makes no sense."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Any command."""
        self._as_json = "--json" in (sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **options)

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **options: Any) -> Any:
        """The command line, read."""
        try:
            if any("\udc80" <= letter <= "\udcff" for word in args for letter in word):
                raise typer.BadParameter("the command line is not UTF-8")
            return super().make_context(info_name, args, *rest, **options)
        except USAGE as error:
            self._tell(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """The command, run."""
        try:
            return super().invoke(ctx)
        except USAGE as error:
            self._tell(error)
            raise

    def _tell(self, error: Any) -> None:
        if self._as_json:
            Screen(as_json=True).document({"error": error.format_message(), "exit": error.exit_code})


app = typer.Typer(
    name="billctl",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print the values of variables, and some of those are secrets
    help=(
        "Looks into a running billing suite and mends what a runbook mends. Nothing is changed without --apply. "
        "Exit status: 0 well or done, 1 failed, 2 a command line that makes no sense, 3 something needs a person, "
        "4 only partly done, 130 Ctrl-C. With --json errors are documents too, of `error` and `exit`."
    ),
)
look.add_to(app)
app.add_typer(account.app, name="account")
mend.app.command("finding")(everyday.fix_finding)
app.add_typer(mend.app, name="fix")


def main() -> None:
    """Any command."""
    # Closed by `>&-`: nobody wants to hear of it.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as we are
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    app(prog_name="billctl")
