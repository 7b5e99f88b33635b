"""Statements with their values: asked, bounded, and shown as they can be typed."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from psycopg import sql

from billctl.desk import Desk
from billctl.diagnosis import NotThere, Section
from shared.clock import now

# Beyond this nobody counts.
COUNTED_MAX = 10_000
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


async def section(
    desk: Desk,
    key: str,
    title: str,
    statement: str,
    *,
    limit: int | None = None,
    aside: Sequence[str] = (),
    spare: Sequence[str] = (),
    upright: bool = False,
    **values: Any,
) -> Section:
    """What a statement answers. With a limit (the statement has none of its own) the rest is counted."""
    statement = asked(statement, values)
    if limit is None:
        rows = await desk.rows(statement, **values)
        return Section(key, title, rows, typed(statement, values), 0, aside, spare, upright)
    bare = statement.strip().removesuffix(";")
    rows = await desk.rows(bare + "\nLIMIT %(limit)s", **values, limit=limit)
    more = 0
    if len(rows) == limit:
        counting = f"SELECT COUNT(*) AS n FROM ({bare}\nLIMIT %(most)s) AS those"  # noqa: S608 - ours
        (count,) = await desk.rows(counting, **values, most=limit + COUNTED_MAX)
        more = count["n"] - limit
    return Section(key, title, rows, typed(f"{bare}\nLIMIT {limit};", values), more, aside, spare)


async def one(desk: Desk, statement: str, missing: str, **values: Any) -> dict[str, Any]:
    """The row that a statement answers; raises NotThere with the sentence where there is none."""
    rows = await desk.rows(statement, **values)
    if not rows:
        raise NotThere(missing)
    return rows[0]


def asked(statement: str, values: dict[str, Any]) -> str:
    """The statement with those conditions alone that a value was given for."""
    asked = re.sub(
        r"\(%\((\w+)\)s::\w+ IS NULL OR (.+?)\)(?=\s+AND|\s+ORDER|;|\n)",
        lambda found: "true" if values[found[1]] is None else found[2],
        statement,
    )
    return asked.replace("\n  AND true", "")


def typed(statement: str, values: dict[str, Any]) -> str:
    """The statement with its values in it, as psql takes it."""
    filled = re.sub(
        r"%\((\w+)\)s", lambda found: sql.Literal(values[found[1]]).as_string(None).strip(), statement
    )
    return filled.replace("%%", "%").strip() if values else statement.strip()


def moment(said: str) -> datetime:
    """`7d`, `90m`, or a moment of ISO 8601 (UTC where it does not say)."""
    if found := re.fullmatch(r"(\d{1,5})([smhdw])", said):
        return now() - timedelta(**{UNITS[found[2]]: int(found[1])})
    try:
        when = datetime.fromisoformat(said)
    except ValueError:
        raise typer.BadParameter(
            "say how long ago (7d, 24h, 90m) or since when (2026-11-01T00:00Z)"
        ) from None
    try:
        return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except OverflowError:
        raise typer.BadParameter("that is beyond what a calendar holds") from None
