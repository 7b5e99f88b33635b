"""The benchmark's provider: what it counts was answered 200, whatever the answers look like on the wire."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bench.posts import Provider

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
Answer = Callable[[int, asyncio.StreamWriter], Any]


class Receiver:
    """Reads requests by their lengths; `answer` writes what follows each."""

    def __init__(self, answer: Answer) -> None:
        self.connections = self.requests = 0
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.requests += 1
                await self._answer(self.requests, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiving(answer: Answer) -> AsyncIterator[tuple[Receiver, dict[str, Any]]]:
    receiver = Receiver(answer)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield receiver, {"kind": "strangers", "address": f"{host}:{port}", "secret": "s"}
    finally:
        server.close()


async def test_connections_are_kept_and_every_answer_is_counted_once() -> None:
    async def in_pieces(_number: int, writer: asyncio.StreamWriter) -> None:
        for piece in (OK[:9], OK[9:30], OK[30:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)

    async with receiving(in_pieces) as (receiver, order):
        provider = Provider()
        answer = await provider.handle({"do": "counted", "count": 40, "callers": 4, **order})
        provider.close()

    assert answer["acknowledged"] == receiver.requests == 40
    assert receiver.connections == 4


async def test_refusals_are_named_and_not_counted_as_taken() -> None:
    async def every_second(number: int, writer: asyncio.StreamWriter) -> None:
        refused = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        writer.write(OK if number % 2 else refused)

    async with receiving(every_second) as (receiver, order):
        provider = Provider()
        answer = await provider.handle(
            {"do": "closed", "callers": 1, "warm_seconds": 0, "seconds": 0.2, **order}
        )
        provider.close()

    assert answer["acknowledged"] == -(-receiver.requests // 2)
    assert answer["refusals"] == {"Refused: 503": receiver.requests // 2}


async def test_a_server_that_hangs_up_is_no_answer() -> None:
    async def hang_up(_number: int, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with receiving(hang_up) as (_, order):
        provider = Provider()
        answer = await provider.handle(
            {"do": "closed", "callers": 1, "warm_seconds": 0, "seconds": 0.05, **order}
        )
        provider.close()

    assert answer["acknowledged"] == 0
    assert set(answer["refusals"]) == {"ConnectionError: closed without an answer"}
