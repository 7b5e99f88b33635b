"""Statements that leave together and whose answers come back together.

psycopg's own pipeline sends each statement by itself and waits for the socket every time: with a dozen statements to
a round trip that was most of what a small batch cost.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, DataError, errors
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait

from services.ledger.store import arrays

Values = Sequence[Any] | Mapping[str, Any]

_DONE = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
_PLACEHOLDER = re.compile(r"%(?:s|\((\w+)\)s)")


Connection = AsyncConnection[TupleRow]

# Which statements each connection has prepared, by name.
_prepared: "WeakKeyDictionary[Connection, set[bytes]]" = WeakKeyDictionary()


class RoundTrip:
    """Collects statements; `go` sends them all and answers the rows of each. Every statement is prepared once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: list[tuple[bytes, bytes, list[bytes | None]]] = []

    def ask(self, statement: str, values: Values = ()) -> int:
        """Adds a statement; its place among the answers. What cannot be sent is refused here, before anything is."""
        name, text, names = _compiled(statement)
        ordered = [values[each] for each in names] if isinstance(values, Mapping) else values
        self._asked.append((name, text, [_parameter(value) for value in ordered]))
        return len(self._asked) - 1

    async def go(self) -> list[list[tuple[Any, ...]]]:
        """The rows of each statement. The first failure is raised, and whatever followed it was not done."""
        connection = self._connection
        prepared = _prepared.setdefault(connection, set())
        async with connection.lock:
            pgconn = connection.pgconn
            pgconn.enter_pipeline_mode()
            names: list[bytes | None] = []
            for name, text, parameters in self._asked:
                if name not in prepared and name not in names:
                    pgconn.send_prepare(name, text)
                    names.append(name)
                pgconn.send_query_prepared(name, parameters)
                names.append(None)
            pgconn.pipeline_sync()
            results = await connection.wait(_answers(pgconn))
            pgconn.exit_pipeline_mode()
        rows = []
        for prepares, result in zip(names, results, strict=True):
            if result.status not in _DONE:
                raise errors.error_from_result(result)
            if prepares is None:
                rows.append(_rows(connection, result))
            else:
                prepared.add(prepares)
        return rows


@cache
def _compiled(statement: str) -> tuple[bytes, bytes, tuple[str, ...]]:
    """Its name, its text with numbered parameters, and the names of these where they have any."""
    names: list[str] = []
    count = 0

    def number(found: re.Match[str]) -> str:
        nonlocal count
        if (name := found[1]) is None:
            count += 1
            return f"${count}"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    text = _PLACEHOLDER.sub(number, statement)
    return f"lane_{next(_numbers)}".encode(), text.encode(), tuple(names)


_numbers = itertools.count(1)


def _parameter(value: Any) -> bytes | None:
    """Text, since statements say of which type each parameter is where their context does not."""
    match value:
        case list():
            return _text(arrays.texts(value))
        case str():
            return _text(value)
        case None:
            return None
        case bytes():
            return b"\\x" + value.hex().encode()
        case datetime():
            return value.isoformat().encode()
        case timedelta():
            return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds".encode()
        case int() | float():
            return repr(value).encode()
        case _:
            raise TypeError(f"a {type(value).__name__} is not sent here")


def _text(value: str) -> bytes:
    if "\0" in value:
        raise DataError(
            "PostgreSQL text fields cannot contain NUL (0x00) bytes"
        )  # libpq would cut it off there
    return value.encode()


def _answers(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Everything up to the end of the round trip, one result for each message that was sent."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    found: list[PGresult] = []
    while True:
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                continue  # between two statements
            if result.status == ExecStatus.PIPELINE_SYNC:
                return found
            found.append(result)
        if (yield Wait.R):
            pgconn.consume_input()


def _rows(connection: Connection, result: PGresult) -> list[tuple[Any, ...]]:
    if result.status != ExecStatus.TUPLES_OK:
        return []
    transformer = Transformer(connection)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)
