"""A TCP proxy in front of PostgreSQL that understands just enough of its protocol to cut a connection at COMMIT."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from enum import Enum
from urllib.parse import urlsplit, urlunsplit

# What a client may ask before it introduces itself, and the answer "no" (PostgreSQL, "SSL Session Encryption").
ENCRYPTION_REQUESTS = (80877103, 80877104)
NO = b"N"
CHUNK = 64 * 1024
# Parse, Bind, Describe, Execute, Close: a Sync or a Flush follows them.
PARTS_OF_A_REQUEST = (b"P", b"B", b"D", b"E", b"C")


class Cut(Enum):
    """What happens to the connection whose COMMIT comes by."""

    BEFORE = "before COMMIT reaches the server"
    AFTER = "after the server has committed, before the client is told"
    AROUND = "while COMMIT is under way: nobody knows"
    HOLE_BEFORE = "the request that holds COMMIT and everything after it vanish, and the sockets stay"
    HOLE_AFTER = "the server commits, its answers vanish, and the sockets stay"


HOLES = (Cut.HOLE_BEFORE, Cut.HOLE_AFTER)
Plan = Callable[[], Cut | None]


class Proxy:
    """Between a client and a PostgreSQL server; `plan` is asked at every COMMIT what is to become of it."""

    def __init__(self, url: str) -> None:
        self._upstream = urlsplit(url)
        self.url = url
        self.plan: Plan = lambda: None
        # What counts as a COMMIT, and as its answer; a statement outside of a transaction commits as well.
        self.is_commit = is_commit
        self.is_committed = is_committed
        self.commits = 0
        self.cuts: Counter[Cut] = Counter()
        self._links: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, for as long as its connection lives."""
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            client = Side(reader, writer)
            server = Side(*await asyncio.open_connection(self._upstream.hostname, self._upstream.port))
            await Link(self, client, server).run()
        except asyncio.CancelledError:
            pass  # the proxy is closing; asyncio would report it as an error of its own
        finally:
            self._links.discard(task)

    def decide(self) -> Cut | None:
        self.commits += 1
        cut = self.plan()
        if cut is not None:
            self.cuts[cut] += 1
        return cut

    async def close(self) -> None:
        for link in self._links:
            link.cancel()
        if self._links:
            await asyncio.wait(self._links)


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A proxy to the server of this URL; `proxy.url` leads through it."""
    proxy = Proxy(url)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    address = urlsplit(url)
    account = address.netloc.rpartition("@")[0]
    proxy.url = urlunsplit(address._replace(netloc=f"{account}@127.0.0.1:{port}"))
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.close()


class Side:
    """One of a link's two sockets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        """The next bytes; empty when the other end is gone, however it went."""
        try:
            return await self._reader.read(CHUNK)
        except OSError:
            return b""

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._writer.write(data)
            await self._writer.drain()

    def close(self) -> None:
        """As an end that is no longer there: what was sent still arrives."""
        self._writer.close()

    def reset(self) -> None:
        """As a machine that vanished and came back answers: RST, and what was under way is lost."""
        own = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class Link:
    """One client's connection through the proxy."""

    def __init__(self, proxy: Proxy, client: Side, server: Side) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._asked = Frontend(proxy.is_commit)
        self._answered = Messages()
        self._cut: Cut | None = None  # decided, and not yet carried out

    async def run(self) -> None:
        """Returns when either end is gone or the connection was cut; a hole stays until the proxy closes."""
        try:
            directions = {asyncio.create_task(self._upward()), asyncio.create_task(self._downward())}
            try:
                done, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if self._cut in HOLES:
                    await asyncio.Event().wait()
            finally:
                for task in directions:
                    task.cancel()
                await asyncio.wait(directions)
        finally:
            for side in (self._client, self._server):
                side.close() if self._cut is None else side.reset()

    async def _upward(self) -> None:
        request = b""  # all that is asked before the next Sync: the server may see a part of it, or nothing
        while data := await self._client.receive():
            for message, is_commit in self._asked.feed(data):
                if message == NO:
                    await self._client.send(NO)
                    continue
                if is_commit and self._cut is None:
                    self._cut = self._proxy.decide()
                    if self._cut is Cut.BEFORE:
                        await self._server.send(request)
                        return
                request += message
                if message[:1] in PARTS_OF_A_REQUEST:
                    continue
                if self._cut is not Cut.HOLE_BEFORE:
                    await self._server.send(request)
                if self._cut is Cut.AROUND:
                    return
                request = b""

    async def _downward(self) -> None:
        while data := await self._server.receive():
            passing = b""
            for message in self._answered.feed(data):
                if self._cut in (Cut.AFTER, Cut.HOLE_AFTER) and self._proxy.is_committed(message):
                    await self._client.send(passing)
                    if self._cut is Cut.AFTER:
                        return
                    await asyncio.Event().wait()
                passing += message
            if self._cut is not Cut.HOLE_BEFORE:
                await self._client.send(passing)


class Messages:
    """Splits a stream into messages: a byte that says what, a length that counts itself, and that many bytes."""

    def __init__(self) -> None:
        self._rest = b""
        # The first answers of a server are typed like all others; a client's first message is not.
        self.is_typed = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._rest += data
        while True:
            head = 1 if self.is_typed else 0
            if len(self._rest) < head + 4:
                return
            end = head + int.from_bytes(self._rest[head : head + 4], "big")
            if len(self._rest) < end:
                return
            message, self._rest = self._rest[:end], self._rest[end:]
            yield message


class Frontend:
    """What a client asks, message by message, and which of it executes a COMMIT, prepared long before or not."""

    def __init__(self, commits: Callable[[bytes], bool] | None = None) -> None:
        self._commits = commits or is_commit
        self._messages = Messages()
        self._messages.is_typed = False
        self._statements: dict[bytes, bool] = {}
        self._portals: dict[bytes, bool] = {}

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """(message, whether it executes a COMMIT); NO stands for a request that the proxy itself must answer."""
        for message in self._messages.feed(data):
            if self._messages.is_typed:
                yield message, self._is_commit(message[:1], message[5:])
            elif int.from_bytes(message[4:8], "big") in ENCRYPTION_REQUESTS:
                yield NO, False
            else:
                self._messages.is_typed = True
                yield message, False

    def _is_commit(self, kind: bytes, body: bytes) -> bool:
        first, _, rest = body.partition(b"\0")
        second = rest.partition(b"\0")[0]
        match kind:
            case b"Q":
                return any(self._commits(statement) for statement in first.split(b";"))
            case b"P":
                self._statements[first] = self._commits(second)
            case b"B":
                self._portals[first] = self._statements.get(second, False)
            case b"E":
                return self._portals.get(first, False)
        return False


def is_commit(statement: bytes) -> bool:
    return statement.strip().rstrip(b";").strip().upper() in (b"COMMIT", b"END")


def is_insert(statement: bytes) -> bool:
    return statement.strip().upper().startswith(b"INSERT ")


def is_idle(message: bytes) -> bool:
    """Whether the server waits for the next statement, outside of a transaction: whatever came before is committed."""
    return message == b"Z\0\0\0\5I"


def is_committed(message: bytes) -> bool:
    """Whether the server says that it has committed; a failed transaction's COMMIT is answered ROLLBACK."""
    return message[:1] == b"C" and message[5:] == b"COMMIT\0"
