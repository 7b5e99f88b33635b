"""Putting deliveries in: one statement for each group of them, on a connection that is kept while there are more.

The driver is asked directly, with columns rendered here: going through SQLAlchemy, and through the driver's own lists,
took more processor time than everything else that taking a delivery in takes.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncEngine

from services.webhooks.rules.inbox import NewEvent
from shared.database import cut

_TEXTS = (
    *("id", "provider", "account_id", "mode", "event_id", "event_type", "tenant_id", "aggregate_id"),
    *("body_sha256", "signed_with", "request_id", "masked", "received_at"),
)
_COLUMNS = ", ".join(_TEXTS)
_TYPES = {"masked": "boolean", "received_at": "timestamptz"}
_ARRAYS = ", ".join(f"%({name})s::{_TYPES.get(name, 'text')}[]" for name in _TEXTS)
# Bodies travel as they are, one after the other: as elements of an array they would be twice as long, and read twice.
_INSERT = f"""
    INSERT INTO webhook_events ({_COLUMNS}, body)
    SELECT {_COLUMNS}, substr(%(bodies)s::bytea, starts_at, size)
    FROM unnest({_ARRAYS}, %(starts_at)s::integer[], %(size)s::integer[]) AS arrived ({_COLUMNS}, starts_at, size)
    ON CONFLICT ON CONSTRAINT webhook_events_identity DO NOTHING
    RETURNING id
"""


class Writer:
    """A connection on which every statement is a transaction of its own."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def insert(self, events: Sequence[NewEvent], *, cut_after_seconds: float) -> set[str]:
        """Stores what is new and returns the ids of that; the rest was there before. Committed when this returns."""
        alarm = asyncio.get_running_loop().call_later(cut_after_seconds, cut, self._connection)
        try:
            async with self._connection.cursor() as cursor:
                await cursor.execute(_INSERT, _rendered(events), prepare=True)
                return {row[0] for row in await cursor.fetchall()}
        finally:
            alarm.cancel()


@asynccontextmanager
async def open_writer(engine: AsyncEngine) -> AsyncIterator[Writer]:
    """Takes a connection out of the pool; one that failed does not return there."""
    async with engine.connect() as db:
        await db.execution_options(isolation_level="AUTOCOMMIT")
        driver: Any = (await db.get_raw_connection()).driver_connection
        try:
            yield Writer(driver)
        except psycopg.Error:
            await db.invalidate()
            raise


def _rendered(events: Sequence[NewEvent]) -> dict[str, str | bytes]:
    # In the order of their identities: two ingress processes with the same deliveries must not wait for each other.
    ordered = sorted(events, key=lambda event: event.identity)
    columns: dict[str, str | bytes] = {}
    for name in _TEXTS:
        columns[name] = _array([getattr(event, name) for event in ordered])
    sizes = [len(event.body) for event in ordered]
    starts_at, next_at = [], 1
    for size in sizes:
        starts_at.append(next_at)
        next_at += size
    columns["starts_at"], columns["size"] = _array(starts_at), _array(sizes)
    columns["bodies"] = b"".join([event.body for event in ordered])
    return columns


def _array(values: Iterable[object]) -> str:
    return "{" + ",".join([_element(value) for value in values]) + "}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    text = str(value)
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
