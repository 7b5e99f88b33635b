"""Options that several lists have."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from billctl.looks.asking import moment

Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="at most so many; the rest is counted")]
Tenant = Annotated[str, typer.Option("--tenant", help="only this tenant's")]
Since = Annotated[
    datetime | None,
    typer.Option(
        "--since", parser=moment, metavar="7d|2026-11-01T00:00Z", help="how long ago, or since when"
    ),
]


def zoned(option: str, text: str) -> datetime:
    """A moment with its zone; anything else makes no sense as a window's end."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r} is no moment such as 2026-11-20T10:00Z") from error
    if parsed.tzinfo is None:
        raise typer.BadParameter(f"{option} {text!r} names no zone: add Z, or an offset such as +05:30")
    try:
        return parsed.astimezone(UTC)
    except OverflowError as error:
        raise typer.BadParameter(f"{option} {text!r} is beyond what a calendar holds") from error
