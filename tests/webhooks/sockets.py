"""Raw conversations with the ingress: bytes in, parsed answers out."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httptools

from tests.webhooks.harness import signature

PATH = "/webhooks/razorpay"


@dataclass(frozen=True)
class Answer:
    """One parsed answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


class _Collector:
    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.parser: Any = None
        self._headers: dict[str, str] = {}
        self._body = b""

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.answers.append(Answer(self.parser.get_status_code(), self._headers, self._body))


def answers_in(received: bytes) -> list[Answer]:
    """Every whole answer; fails on bytes that are none."""
    collector = _Collector()
    collector.parser = httptools.HttpResponseParser(collector)
    if received:
        collector.parser.feed_data(received)
    return collector.answers


def request(
    body: bytes = b"",
    *more: tuple[str, str | bytes],
    method: str = "POST",
    target: str = PATH,
    version: str = "1.1",
    signed: bool = True,
    length: str | None = "",
) -> bytes:
    """A request as bytes; `length` is what it says of its body, None leaves it out."""
    headers: list[tuple[str, str | bytes]] = [("Host", "billing.example")]
    if signed:
        headers.append(("X-Razorpay-Signature", signature(body)))
    if length is not None:
        headers.append(("Content-Length", length or str(len(body))))
    head = f"{method} {target} HTTP/{version}\r\n".encode()
    for name, value in (*headers, *more):
        head += name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return head + b"\r\n" + body


def chunked(body: bytes, *, extension: bytes = b"", size: int = 1000, trailers: bytes = b"") -> bytes:
    """A body in chunks."""
    out = b""
    for start in range(0, len(body), size):
        part = body[start : start + size]
        out += b"%x%b\r\n%b\r\n" % (len(part), extension, part)
    return out + b"0\r\n" + trailers + b"\r\n"


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """An open connection, cut at the end."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def received(reader: asyncio.StreamReader, *, seconds: float = 10.0) -> bytes:
    """Everything until the other side closes; a reset ends it as well."""
    data = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(seconds):
            while part := await reader.read(65536):
                data += part
    return data


async def converse(url: str, *parts: bytes, hang_up: bool = True) -> list[Answer]:
    """Sends the parts, one after the other, and answers what came until the connection was closed.

    `hang_up` says that nothing more will come: what is answered already stays answered.
    """
    async with connection(url) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            for number, part in enumerate(parts):
                if number:
                    await asyncio.sleep(0.02)
                writer.write(part)
                await writer.drain()
            if hang_up:
                writer.write_eof()
        return answers_in(await received(reader))


def statuses(answers: Sequence[Answer]) -> list[int]:
    return [answer.status for answer in answers]


def open_sockets(url: str, count: int, *, receive_buffer: int = 0) -> list[socket.socket]:
    """Connected sockets that nobody reads from or writes to."""
    host, port = url.removeprefix("http://").split(":")
    opened = []
    for _ in range(count):
        each = socket.socket()
        if receive_buffer:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        each.connect((host, int(port)))
        each.setblocking(False)
        opened.append(each)
    return opened
