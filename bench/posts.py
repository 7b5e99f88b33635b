"""The provider: `python -m bench.posts` sends signed deliveries over HTTP connections that it keeps.

Written on bare transports, with requests made beforehand, so that it takes as little as it can of the processors that
it shares with what it measures; each answer says how much it took.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from bench import child, loops
from bench.deliveries import Customer, Mill, request

TIMEOUT_SECONDS = 10.0


class Refused(Exception):
    """An answer other than 200."""


class Line(asyncio.Protocol):
    """One kept connection; one request at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[int] | None = None
        self._buffer = b""
        self.is_open = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self.is_open = True

    def connection_lost(self, _: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed without an answer"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._buffer) < end + 4 + size:
            return
        status, self._buffer = int(head[9:12]), b""
        if b"connection: close" in head:
            self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    async def send(self, delivery: bytes) -> int:
        """The status of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(delivery)
        return await self._answer

    def close(self) -> None:
        """Hangs up."""
        self._transport.close()


class Provider:
    """Sends what it is ordered to."""

    def __init__(self) -> None:
        self._mill = Mill([])
        self._free: dict[str, list[Line]] = {}

    async def handle(self, order: dict[str, Any]) -> Any:
        if order["do"] == "customers":
            self._mill = Mill([Customer(**each) for each in order["customers"]])
            return len(order["customers"])
        call = self._call(order)
        began_at, used = time.perf_counter(), time.process_time()
        answer = await self._offer(order, call)
        answer["processor"] = (time.process_time() - used) / (time.perf_counter() - began_at)
        return answer

    def close(self) -> None:
        """Hangs up."""
        for lines in self._free.values():
            for line in lines:
                line.close()

    async def _offer(self, order: dict[str, Any], call: loops.Call) -> dict[str, Any]:
        if order["do"] == "open":
            return await loops.open_(call, rate=order["rate"], seconds=order["seconds"], seed=order["seed"])
        if order["do"] == "counted":
            return {"acknowledged": await loops.counted(call, count=order["count"], callers=order["callers"])}
        return await loops.closed(
            call,
            warm_seconds=order["warm_seconds"],
            seconds=order["seconds"],
            callers=order["callers"],
        )

    def _call(self, order: dict[str, Any]) -> loops.Call:
        address, secret, kind = order["address"], order["secret"], order["kind"]
        host, _, port = address.rpartition(":")
        free = self._free.setdefault(address, [])
        # Made beforehand where making them would take a part of the window.
        ready = deque(self._made(kind, secret, address) for _ in range(order.get("ready", 0)))

        async def one() -> int:
            delivery = ready.popleft() if ready else self._made(kind, secret, address)
            line = None
            while free and (line := free.pop()) and not line.is_open:
                line = None
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if line is None:
                    _, line = await asyncio.get_running_loop().create_connection(Line, host, int(port))
                status = await line.send(delivery)
            if line.is_open:
                free.append(line)
            else:
                line.close()
            if status != 200:
                raise Refused(status)
            return 1

        return one

    def _made(self, kind: str, secret: str, address: str) -> bytes:
        return request(self._mill.body(kind), secret=secret, address=address)


if __name__ == "__main__":
    child.serve(Provider().handle)
