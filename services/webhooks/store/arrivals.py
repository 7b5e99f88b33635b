"""Putting deliveries in: one statement for each group of them, on a connection that is kept while there are more.

The driver is asked directly, with columns rendered here: going through SQLAlchemy, and through the driver's own lists,
took more processor time than everything else that taking a delivery in takes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
    FROM unnest({_ARRAYS}, %(starts_at)s::integer[], %(size)s::integer[]) AS arrived ({_COLUMNS}, starts_at, size),
        (SELECT set_config('lock_timeout', %(lock_timeout)s::text, true)) AS patience
    ON CONFLICT ON CONSTRAINT webhook_events_identity DO NOTHING
    RETURNING id
"""
# A plain read: unlike the insert it waits for nobody who is just writing to the same row.
_KNOWN = """
    SELECT arrived.id FROM unnest(%(id)s::text[], %(provider)s::text[], %(account_id)s::text[], %(mode)s::text[],
        %(body_sha256)s::text[]) AS arrived (id, provider, account_id, mode, body_sha256)
    JOIN webhook_events USING (provider, account_id, mode, body_sha256)
"""


# Whoever brings what another process is just storing waits for its end, and a frozen one does not end for a while.
_GROUP_WAITS = "1s"
_ONE_WAITS = "100ms"
_ONE_BY_ONE_SECONDS = 2.0


@dataclass(frozen=True)
class Arrival:
    """What became of a group; what is in neither was there before."""

    stored: set[str]
    refused: set[str]


class Writer:
    """A connection on which every statement is a transaction of its own."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def insert(self, events: Sequence[NewEvent], *, cut_after_seconds: float) -> Arrival:
        """Stores what is new. Committed when this returns; one that cannot be stored keeps no other from it."""
        alarm = asyncio.get_running_loop().call_later(cut_after_seconds, cut, self._connection)
        try:
            return Arrival(await self._execute(events, _GROUP_WAITS), set())
        except (psycopg.errors.LockNotAvailable, psycopg.DataError, UnicodeError):
            return await self._one_by_one(events)
        finally:
            alarm.cancel()

    async def _one_by_one(self, events: Sequence[NewEvent]) -> Arrival:
        ends_at = time.monotonic() + _ONE_BY_ONE_SECONDS
        arrival = Arrival(set(), set())
        hopeless: set[tuple[str, str, str, str]] = set()
        known = await self._known(events)
        for event in events:
            if event.id in known:
                continue
            if event.identity in hopeless or time.monotonic() > ends_at:
                arrival.refused.add(event.id)
                continue
            try:
                arrival.stored.update(await self._execute([event], _ONE_WAITS))
            except (psycopg.errors.LockNotAvailable, psycopg.DataError, UnicodeError):
                hopeless.add(event.identity)
                arrival.refused.add(event.id)
        return arrival

    async def _known(self, events: Sequence[NewEvent]) -> set[str]:
        names = ("id", "provider", "account_id", "mode", "body_sha256")
        async with self._connection.cursor() as cursor:
            await cursor.execute(_KNOWN, {name: [getattr(event, name) for event in events] for name in names})
            return {row[0] for row in await cursor.fetchall()}

    async def _execute(self, events: Sequence[NewEvent], lock_timeout: str) -> set[str]:
        values = {**_rendered(events), "lock_timeout": lock_timeout}
        async with self._connection.cursor() as cursor:
            await cursor.execute(_INSERT, values, prepare=True)
            return {row[0] for row in await cursor.fetchall()}


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
