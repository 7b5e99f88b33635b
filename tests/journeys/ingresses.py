"""A second ingress beside the suite's own, and senders that behave as the provider does."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from tests.journeys.test_kill import Clients
from tests.suite.running import RunningSuite
from tests.webhooks.processes import Process, free_port

PATIENCE_SECONDS = 150  # a database that was killed several times is started again ever more slowly


@dataclass
class Doors:
    """Both ingress processes, and what senders were told at them."""

    suite: RunningSuite
    second: Process
    http: httpx.AsyncClient
    told: Counter[str] = field(default_factory=Counter)
    # Of every delivery that was answered 2xx, by the hash of its body: `stored` or `duplicate`, in turn.
    accepted: dict[str, list[str]] = field(default_factory=dict)

    @property
    def urls(self) -> list[str]:
        return [self.suite.runtime["webhooks_http_url"], self.second.url]

    def signature(self, body: bytes) -> str:
        secret = self.suite.runtime["secrets"]["razorpay_webhook_secret"].encode()
        return hmac.new(secret, body, hashlib.sha256).hexdigest()

    async def send(self, body: bytes, door: int, **headers: str) -> int:
        """Once; 0 when nobody answered."""
        signed = {"x-razorpay-signature": self.signature(body), **headers}
        try:
            answer = await self.http.post(
                f"{self.urls[door]}/webhooks/razorpay", content=body, headers=signed
            )
        except httpx.TransportError:
            self.told["nothing"] += 1
            return 0
        self.told[str(answer.status_code)] += 1
        if answer.status_code == 200:
            sha256 = hashlib.sha256(body).hexdigest()
            self.accepted.setdefault(sha256, []).append(answer.json()["status"])
        return answer.status_code

    async def deliver(self, body: bytes, rng: random.Random) -> None:
        """Until it is accepted, at whichever door."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (status := await self.send(body, rng.randrange(2))) != 200:
                assert status in {0, 503}
                await asyncio.sleep(rng.uniform(0.05, 0.3))

    async def rows(self, bodies: list[bytes]) -> list[dict[str, Any]]:
        """The inbox rows of these bodies."""
        hashes = [hashlib.sha256(body).hexdigest() for body in bodies]
        return await self.read("SELECT * FROM webhook_events WHERE body_sha256 = ANY(%s)", hashes)

    async def read(self, query: str, *values: Any) -> list[dict[str, Any]]:
        url = self.suite.runtime["database"]["urls"]["billing_operator"]
        async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as db:
            return await (await db.execute(query, values)).fetchall()

    async def decided(self, bodies: list[bytes]) -> bool:
        rows = await self.rows(bodies)
        return len(rows) == len(set(bodies)) and all(row["processed"] for row in rows)

    async def grants(self, tenant: str) -> list[tuple[str, int]]:
        """Every grant that the ledger booked for a tenant."""
        rows = await self.read(
            "SELECT reference_id, amount FROM credit_transactions WHERE tenant_id = %s AND kind = 'grant'"
            " ORDER BY reference_id",
            tenant,
        )
        return [(row["reference_id"], row["amount"]) for row in rows]


def environment_of(suite: RunningSuite, name: str) -> dict[str, str]:
    """What the launcher told a process."""
    lines = Path(f"/proc/{suite.pid(name)}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if line)


@asynccontextmanager
async def two_doors(suite: RunningSuite) -> AsyncIterator[Doors]:
    """A second `python -m services.webhooks` with everything that the suite's own was told but its addresses."""
    told = environment_of(suite, "webhooks")
    told["WEBHOOKS_LISTEN"] = f"127.0.0.1:{free_port()}"
    told["WEBHOOKS_HTTP_LISTEN"] = f"127.0.0.1:{free_port()}"
    told["WEBHOOKS_METRICS_LISTEN"] = ""
    second = Process(told, f"http://{told['WEBHOOKS_HTTP_LISTEN']}")
    try:
        await second.start()
        async with httpx.AsyncClient(timeout=6, limits=httpx.Limits(max_connections=200)) as http:
            yield Doors(suite, second, http)
    finally:
        await second.kill()


async def told_of(clients: Clients, path: str, **details: Any) -> list[bytes]:
    """Something happens at the provider: the bodies that tell of it, not yet sent."""
    answer = await clients.sandbox.post(f"/_sandbox/{path}", json={"deliver": False, **details})
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(delivery["body_base64"]) for delivery in answer.json()]
