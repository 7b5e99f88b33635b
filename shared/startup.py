"""What every room checks before it serves."""

import asyncio
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from shared import database, migrations


async def check(engine: AsyncEngine, url: str, *, room: Path, test_clock: bool) -> None:
    """Ends the start-up on a schema that is behind, or with a moved clock on anything but the embedded database.

    `room` is the room's folder; its name is its schema's.
    """
    schema = migrations.Schema(room.name, room / "migrations")
    try:
        await asyncio.to_thread(migrations.assert_current, url, schema)
    except migrations.SchemaBehind as error:
        raise SystemExit(str(error)) from None
    if test_clock:
        await database.refuse_test_clock_elsewhere(engine)
