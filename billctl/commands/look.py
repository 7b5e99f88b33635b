"""What changes nothing, and what operators do every day."""

import typer


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
