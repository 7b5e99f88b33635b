"""Webhooks that misbehave, each in a way of its own, down at the socket."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Self

Answer = Callable[["Sink", asyncio.StreamWriter], Awaitable[None]]


class Sink:
    """A server at an address that is a secret; counts the requests and what it could send of its answers."""

    def __init__(self, answer: Answer) -> None:
        self.secret = secrets.token_urlsafe(12)
        self.requests = 0
        self.sent = 0
        self.bodies: list[bytes] = []
        self.elsewhere = ""
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """Where it is."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/services/{self.secret}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Send, as fast as it is read."""
        writer.write(data)
        await writer.drain()
        self.sent += len(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            self.bodies.append(await reader.readexactly(length))
            self.requests += 1
            await self._answer(self, writer)
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._tasks.discard(task)
            if not writer.is_closing():
                writer.transport.abort()


async def hangs(sink: Sink, writer: asyncio.StreamWriter) -> None:
    """Takes the request, and says nothing."""
    await asyncio.Event().wait()


async def drips(sink: Sink, writer: asyncio.StreamWriter) -> None:
    """Always about to be done."""
    await sink.write(writer, b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        await sink.write(writer, b"a")
        await asyncio.sleep(0.05)


async def redirects(sink: Sink, writer: asyncio.StreamWriter) -> None:
    """Sends everybody to another address."""
    where = sink.elsewhere.encode()
    await sink.write(
        writer, b"HTTP/1.1 307 Temporary Redirect\r\nLocation: " + where + b"\r\nContent-Length: 0\r\n\r\n"
    )


async def fails(sink: Sink, writer: asyncio.StreamWriter) -> None:
    """Answers 500, at length."""
    body = b"x" * 100_000
    await sink.write(writer, b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def babbles(sink: Sink, writer: asyncio.StreamWriter) -> None:
    """Takes it, and never stops talking."""
    await sink.write(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    while True:
        await sink.write(writer, chunk)


async def endless_headers(sink: Sink, writer: asyncio.StreamWriter) -> None:
    """Never comes to its body."""
    await sink.write(writer, b"HTTP/1.1 200 OK\r\n")
    while True:
        await sink.write(writer, b"X-More: " + b"x" * 1000 + b"\r\n")


async def hangs_up(sink: Sink, writer: asyncio.StreamWriter) -> None:
    """Is gone."""


async def rambles(sink: Sink, writer: asyncio.StreamWriter) -> None:
    """Speaks another protocol."""
    await sink.write(writer, b"220 mail.example ESMTP\r\n")


async def takes(sink: Sink, writer: asyncio.StreamWriter) -> None:
    """What a sink should do."""
    await sink.write(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
