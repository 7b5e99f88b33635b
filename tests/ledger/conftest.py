"""A ledger served in this process over a real socket, on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from billing.ledger.v1 import (
    ledger_admin_pb2_grpc,
    ledger_funding_pb2_grpc,
    ledger_maintenance_pb2_grpc,
    ledger_pb2_grpc,
)
from billing.ledger.v1 import ledger_pb2 as pb
from psycopg.rows import dict_row
from pydantic import SecretStr

from services.ledger.actions import Ledger
from services.ledger.lanes import Lanes
from services.ledger.limit_reads import LimitReads
from services.ledger.rpc import doors
from shared import clock
from shared import database as shared_database
from shared.config import RoomSettings
from shared.rpc.client import open_channel
from shared.rpc.server import running_server
from tests.conftest import Database
from tests.ledger.tampering import Hand

SECRETS = {
    "gateway_secret": "gateway-secret-of-the-tests",
    "operator_secret": "operator-secret-of-the-tests",
    "room_secret": "room-secret-of-the-tests",
}


@dataclass(frozen=True)
class RunningLedger:
    """Where it listens, what it works with, and stubs for each audience."""

    address: str
    ledger: Ledger
    service: ledger_pb2_grpc.LedgerServiceStub
    funding: ledger_funding_pb2_grpc.LedgerFundingServiceStub
    maintenance: ledger_maintenance_pb2_grpc.LedgerMaintenanceServiceStub
    admin: ledger_admin_pb2_grpc.LedgerAdminServiceStub

    def raw_channel(self) -> grpc.aio.Channel:
        """A channel without our interceptors, as a foreign client would open it."""
        return grpc.aio.insecure_channel(self.address)


async def available(ledger: RunningLedger, tenant: str) -> int:
    """What the tenant can spend now."""
    return (await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))).balance.available


class Travel:
    """Moves the ledger's clock; everything in this process follows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ahead = timedelta()

    def forward(self, *, days: float = 0, hours: float = 0) -> None:
        self._ahead += timedelta(days=days, hours=hours)
        clock.move_to(self._file, self._ahead)


@pytest.fixture
def travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Travel:
    file = tmp_path / "clock"
    clock.move_to(file, timedelta())
    monkeypatch.setenv("BILLING_TEST_CLOCK", str(file))
    return Travel(file)


@pytest.fixture(scope="session")
async def ledger(database: Database) -> AsyncIterator[RunningLedger]:
    url = database.url("ledger_rw")
    engine = shared_database.create_engine(url, application_name="ledger-tests")
    lanes = Lanes(url, count=2, waiting_max=4000, waiting_per_tenant_max=2000)
    async with lanes, LimitReads(url) as limit_reads:
        room = Ledger(engine, lanes, limit_reads)
        settings = RoomSettings(**SECRETS, shed_after_ms=60_000)
        async with running_server(
            room="ledger", listen="127.0.0.1:0", settings=settings, doors=doors(room)
        ) as (
            address,
            _health,
            _server,
        ):
            product = open_channel(address, SecretStr(SECRETS["gateway_secret"]))
            rooms = open_channel(address, SecretStr(SECRETS["room_secret"]))
            operators = open_channel(address, SecretStr(SECRETS["operator_secret"]))
            async with product, rooms, operators:
                yield RunningLedger(
                    address,
                    room,
                    ledger_pb2_grpc.LedgerServiceStub(product),
                    ledger_funding_pb2_grpc.LedgerFundingServiceStub(rooms),
                    ledger_maintenance_pb2_grpc.LedgerMaintenanceServiceStub(rooms),
                    ledger_admin_pb2_grpc.LedgerAdminServiceStub(operators),
                )
    await engine.dispose()


@pytest.fixture
def operator_rows(database: Database) -> Callable[..., list[dict[str, Any]]]:
    """What somebody with the operator role sees."""

    def rows(query: str, *values: object) -> list[dict[str, Any]]:
        with psycopg.connect(database.url("billing_operator"), row_factory=dict_row) as db:
            return db.execute(query, values).fetchall()

    return rows


@pytest.fixture(scope="session")
def hand(database: Database) -> Iterator[Hand]:
    """Somebody with the keys to the database."""
    hand = Hand(database.admin_url)
    yield hand
    hand.db.close()
