"""An operator's desk: SQL to look with, the operators' doors to change with."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import grpc
import psycopg
from google.protobuf.message import Message
from psycopg.rows import dict_row

from billctl.settings import Connections
from shared.errors import BillingError, PermissionDenied, ResourceExhausted, Unauthenticated
from shared.rpc.client import open_channel

Stub = TypeVar("Stub")
Answer = TypeVar("Answer", bound=Message)

# Nobody's look may hold up those who work; a bulk of calls may wait for its turn so often.
STATEMENT_SECONDS = 30
TURNS_WAITED_FOR = 20
TURN_SECONDS_MAX = 900


class NoDatabase(Exception):
    """The database does not answer, or not to this."""


class Desk:
    """Open while one command runs. Reads are read-only transactions of one statement each."""

    def __init__(self, connections: Connections, *, say: Callable[[str], None] = lambda _line: None) -> None:
        self.connections = connections
        self._say = say
        self._stack = AsyncExitStack()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._database: psycopg.AsyncConnection[dict[str, Any]] | None = None

    async def close(self) -> None:
        """Close what was opened."""
        await self._stack.aclose()

    async def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """What a statement of a runbook answers; `%(name)s` stands for a value."""
        try:
            db = await self._connected()
            return await (await db.execute(sql, values or None)).fetchall()
        except (psycopg.Error, UnicodeError) as error:
            raise NoDatabase(_why(error)) from error

    def stub(self, room: str, make: Callable[[grpc.aio.Channel], Stub]) -> Stub:
        """A service of a room, with the operators' key: `desk.stub("ledger", LedgerAdminServiceStub)`."""
        if room not in self._channels:
            channel = open_channel(self.connections.addresses[room], self.connections.operator_secret)
            self._channels[room] = channel
            self._stack.push_async_callback(channel.close)
        return make(self._channels[room])

    async def ask(self, method: Callable[..., Any], request: Message, *, seconds: float | None = None) -> Any:
        """Call once, or again after the time that a full door names; every other refusal is raised."""
        for turn in range(TURNS_WAITED_FOR):
            try:
                return await method(request, timeout=seconds)
            except ResourceExhausted as error:
                if turn == TURNS_WAITED_FOR - 1 or error.retry_after_seconds > TURN_SECONDS_MAX:
                    raise
                self._say(f"{error}; going on in {error.retry_after_seconds:.0f} s")
                await asyncio.sleep(error.retry_after_seconds)
        raise AssertionError("unreachable")

    async def _connected(self) -> psycopg.AsyncConnection[dict[str, Any]]:
        if self._database is None or self._database.closed:
            self._database = await psycopg.AsyncConnection.connect(
                self.connections.database_url.get_secret_value(),
                autocommit=True,
                row_factory=dict_row,
                application_name="billctl",
                connect_timeout=5,
                options=f"-c statement_timeout={STATEMENT_SECONDS}s -c default_transaction_read_only=on -c TimeZone=UTC",
            )
            self._stack.push_async_callback(self._database.close)
        return self._database


@asynccontextmanager
async def open_desk(connections: Connections, *, say: Callable[[str], None]) -> AsyncIterator[Desk]:
    """A desk, closed afterwards."""
    desk = Desk(connections, say=say)
    try:
        yield desk
    finally:
        await desk.close()


def _why(error: Exception) -> str:
    # libpq's text names host and port, and never the password; what a malformed URL holds it may quote.
    match error:
        case psycopg.errors.QueryCanceled():
            return f"the database does not answer: a look took longer than {STATEMENT_SECONDS} s"
        case psycopg.ProgrammingError() if error.sqlstate is None:
            return "the database does not answer: READONLY_DATABASE_URL is no address of a database"
        case psycopg.OperationalError():
            return f"the database does not answer: {_line(str(error))}"
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedColumn():
            return f"the database is of another release: {error.diag.message_primary}"
        case _:
            return f"the database refuses to answer: {type(error).__name__}"


def _line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else "no reason was given"


def told(error: BillingError) -> str:
    """One line for a person: why a door stayed shut."""
    words = f"{error.reason}: {error}"
    if isinstance(error, Unauthenticated | PermissionDenied):
        words += ". Is OPERATOR_SECRET this suite's, and the operators' key rather than the products'?"
    return words


def refusal(error: BillingError) -> str:
    """One line for a person: what was refused and why."""
    return told(error) if error.definite else f"{told(error)} (unknown whether it was done)"
