"""The room as a process of its own: started by its command, frozen, killed, restarted, stopped."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from suite import processes
from tests.webhooks.harness import SECRET, eventually, signature


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@dataclass
class Process:
    """One `python -m services.webhooks`."""

    environment: dict[str, str]
    url: str
    running: asyncio.subprocess.Process | None = None
    log: bytes = b""
    _reader: asyncio.Task[None] | None = field(default=None, repr=False)

    async def start(self, *, wait: bool = True) -> None:
        self.running = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.webhooks"),
            env=self.environment,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=processes.die_with_parent(signal.SIGKILL),
        )
        self._reader = asyncio.create_task(self._read())
        if wait:
            await eventually(self.healthy, seconds=40)

    async def healthy(self) -> bool:
        assert self.running is not None
        assert self.running.returncode is None, f"it ended by itself:\n{self.log.decode()[-3000:]}"
        async with httpx.AsyncClient() as http:
            try:
                return (await http.get(f"{self.url}/healthz")).status_code == 200
            except httpx.TransportError:
                return False

    async def _read(self) -> None:
        assert self.running is not None
        assert self.running.stderr is not None
        while chunk := await self.running.stderr.read(65536):
            self.log += chunk

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    def logged(self, event: str) -> int:
        """How often this line was written so far."""
        return len(re.findall(rb'"event":\s*"%s"' % event.encode(), self.log))

    def send(self, number: signal.Signals) -> None:
        """Sent at once, from wherever."""
        os.kill(self.pid, number)

    async def end(self, number: signal.Signals) -> int:
        assert self.running is not None
        assert self._reader is not None
        if self.running.returncode is None:
            self.running.send_signal(number)
        code = await asyncio.wait_for(self.running.wait(), 15)
        await self._reader
        return code

    async def kill(self) -> None:
        """kill -9, also of one that never started or is stopped."""
        if self.running is not None:
            await self.end(signal.SIGKILL)


def environment(url: str, secrets: Any, address: str, **settings: str) -> dict[str, str]:
    """Settings of an ingress on this database beside this neighbour; a short lease, short waits."""
    return {
        "PATH": os.environ["PATH"],
        "GATEWAY_SECRET": secrets.gateway,
        "OPERATOR_SECRET": secrets.operator,
        "ROOM_SECRET": secrets.room,
        "WEBHOOKS_LISTEN": f"127.0.0.1:{free_port()}",
        "WEBHOOKS_HTTP_LISTEN": f"127.0.0.1:{free_port()}",
        "WEBHOOKS_DATABASE_URL": url,
        "SUBSCRIPTIONS_ADDRESS": address,
        "RAZORPAY_WEBHOOK_SECRET": SECRET,
        "WEBHOOKS_DELIVERY_LEASE_SECONDS": "1",
        "WEBHOOKS_DELIVERY_CALL_SECONDS": "0.9",
        "WEBHOOKS_DELIVERY_BACKOFF_SECONDS": "0.05",
        **settings,
    }


@asynccontextmanager
async def process(
    database: Any, secrets: Any, address: str, *, url: str = "", **settings: str
) -> AsyncIterator[Process]:
    """An ingress that is not started yet, and killed at the end."""
    told = environment(url or database.url("webhooks_rw"), secrets, address, **settings)
    found = Process(told, f"http://{told['WEBHOOKS_HTTP_LISTEN']}")
    try:
        yield found
    finally:
        await found.kill()


async def post(http: httpx.AsyncClient, url: str, body: bytes, **headers: str) -> int:
    """The status, or 0 when there was no answer; Razorpay would send again either way."""
    status, _ = await told(http, url, body, **headers)
    return status


async def told(http: httpx.AsyncClient, url: str, body: bytes, **headers: str) -> tuple[int, str]:
    """The status and what the answer calls the delivery: `stored` or `duplicate`."""
    try:
        answer = await http.post(
            f"{url}/webhooks/razorpay",
            content=body,
            headers={"X-Razorpay-Signature": signature(body), **headers},
        )
    except httpx.TransportError:
        return 0, ""
    return answer.status_code, str(answer.json().get("status", ""))
