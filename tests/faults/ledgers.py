"""Ledgers to be harmed: served in this process over any database URL, or as processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from billing.ledger.v1 import ledger_admin_pb2_grpc, ledger_funding_pb2_grpc, ledger_pb2_grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from services.ledger.actions import Ledger
from services.ledger.lanes import Lanes
from services.ledger.limit_reads import LimitReads
from services.ledger.rpc import doors
from shared import database as shared_database
from shared.config import RoomSettings
from shared.errors import BillingError
from shared.rpc.client import open_channel
from shared.rpc.server import running_server
from suite import processes
from suite.addresses import free_port
from tests.faults.journal import Send

HOUSE = Path(__file__).resolve().parents[2]
START_SECONDS_MAX = 30
SECRETS: dict[str, Any] = {
    "gateway_secret": "gateway-secret-of-the-tests",
    "operator_secret": "operator-secret-of-the-tests",
    "room_secret": "room-secret-of-the-tests",
}


@dataclass(frozen=True)
class Client:
    """A caller of one ledger, with the keys of a product, of a room and of an operator."""

    service: ledger_pb2_grpc.LedgerServiceStub
    funding: ledger_funding_pb2_grpc.LedgerFundingServiceStub
    admin: ledger_admin_pb2_grpc.LedgerAdminServiceStub

    def send(self, rpc: str, *, timeout: float) -> Send:
        """How a request of this RPC is sent."""
        doors: tuple[Any, ...] = (self.service, self.funding, self.admin)
        method = next(getattr(door, rpc) for door in doors if hasattr(door, rpc))

        async def send(request: Message) -> Any:
            return await method(request, timeout=timeout)

        return send


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[Client]:
    async with (
        open_channel(address, SecretStr(SECRETS["gateway_secret"])) as product,
        open_channel(address, SecretStr(SECRETS["room_secret"])) as room,
        open_channel(address, SecretStr(SECRETS["operator_secret"])) as operator,
    ):
        yield Client(
            ledger_pb2_grpc.LedgerServiceStub(product),
            ledger_funding_pb2_grpc.LedgerFundingServiceStub(room),
            ledger_admin_pb2_grpc.LedgerAdminServiceStub(operator),
        )


@asynccontextmanager
async def serving(*, lanes_url: str, reads_url: str, lanes: int) -> AsyncIterator[Client]:
    """A ledger in this process behind its real server, and a client of it."""
    engine = shared_database.create_engine(reads_url, application_name="ledger-faults")
    try:
        writing = Lanes(lanes_url, count=lanes, waiting_max=4000, waiting_per_tenant_max=2000)
        async with writing, LimitReads(reads_url) as limit_reads:
            settings = RoomSettings(**SECRETS, shed_after_ms=60_000)
            room = doors(Ledger(engine, writing, limit_reads))
            async with (
                running_server(room="ledger", listen="127.0.0.1:0", settings=settings, doors=room) as (
                    address,
                    *_,
                ),
                client_of(address) as client,
            ):
                yield client
    finally:
        await engine.dispose()


class LedgerProcess:
    """`python -m services.ledger` on a port that it keeps over restarts."""

    def __init__(self, url: str, log: Path, *, module: str = "services.ledger", **settings: str) -> None:
        self.address = f"127.0.0.1:{free_port([])}"
        self.log = log
        self.starts = 0
        self._module = module
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(HOUSE), str(HOUSE / "gen")]),
            "LEDGER_LISTEN": self.address,
            "LEDGER_DATABASE_URL": url,
            **{name.upper(): value for name, value in SECRETS.items()},
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Returns when it serves; starts again one that gives up since its database is away."""
        ends_at = time.monotonic() + START_SECONDS_MAX
        while not self.is_alive or not await is_serving(self.address):
            assert time.monotonic() < ends_at, f"the ledger does not serve:\n{self.log.read_text()[-3000:]}"
            if not self.is_alive:
                self._spawn()
            await asyncio.sleep(0.05)

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                cwd=HOUSE,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=processes.die_with_parent(signal.SIGKILL),
            )
        self.starts += 1

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and not before the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


async def is_serving(address: str) -> bool:
    async with open_channel(address, SecretStr(SECRETS["gateway_secret"])) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=0.5
            )
        except BillingError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
