"""What the scheduler's tests share: its database, empty, and the rooms that it calls, as real servers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from billing.ledger.v1 import ledger_maintenance_pb2 as ledger_pb
from billing.ledger.v1 import ledger_maintenance_pb2_grpc as ledger_grpc
from billing.maintenance.v1 import alert_pb2
from billing.scheduler.v1 import scheduler_pb2_grpc as scheduler_grpc
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as subscriptions_pb
from billing.subscriptions.v1 import subscriptions_maintenance_pb2_grpc as subscriptions_grpc
from billing.webhooks.v1 import webhooks_maintenance_pb2_grpc as webhooks_grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import actions
from services.scheduler.clients import Maintenance
from services.scheduler.loop import Loop
from services.scheduler.rpc import SchedulerService
from shared.config import RoomSettings
from shared.database import create_engine
from shared.errors import BillingError
from shared.rpc.client import open_channel
from shared.rpc.server import Audience, Door, running_server


@pytest.fixture
def admin(database: Any) -> psycopg.Connection:
    """The scheduler's schema with its jobs' past removed, as the administrator sees it."""
    url = database.admin_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True, options="-c search_path=scheduler") as connection:
        connection.execute("TRUNCATE jobs, job_runs, alerts, operator_requests, sink_posts")
        yield connection


@pytest.fixture
async def engine(database: Any, admin: psycopg.Connection) -> AsyncIterator[AsyncEngine]:
    """The scheduler's own sessions, on jobs that have existed for years."""
    engine = create_engine(database.url("scheduler_rw"), application_name="test_scheduler")
    await actions.prepare(engine)
    admin.execute("UPDATE jobs SET created_at = '2020-01-01T00:00:00Z'")
    yield engine
    await engine.dispose()


@pytest.fixture
def settings(secrets: Any) -> RoomSettings:
    """Keys of a room that a test serves itself."""
    return RoomSettings(
        gateway_secret=secrets.gateway, operator_secret=secrets.operator, room_secret=secrets.room
    )


@dataclass
class Rooms:
    """The rooms that jobs call: what they were asked, and what they shall answer."""

    asked: list[tuple[str, str, bool]] = field(default_factory=list)
    refuse: dict[str, list[BillingError]] = field(default_factory=dict)
    alerts: dict[str, list[alert_pb2.Alert]] = field(default_factory=dict)
    wait_for: dict[str, asyncio.Event] = field(default_factory=dict)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""

    def keys(self, name: str) -> list[str]:
        """The idempotency keys that one RPC was given, in order."""
        return [key for asked, key, _ in self.asked if asked == name]

    async def answer(self, name: str, request: Any) -> list[alert_pb2.Alert]:
        """Note the question; wait, refuse or name the alerts, as the test arranged."""
        self.asked.append((name, request.idempotency_key, request.dry_run))
        if name in self.wait_for:
            self.waiting.set()
            await self.wait_for[name].wait()
        if self.refuse.get(name):
            raise self.refuse[name].pop(0)
        return self.alerts.get(name, [])


class Ledger(ledger_grpc.LedgerMaintenanceServiceServicer):
    """Settles, audits and cleans up nothing."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    async def SettleExpired(self, request: Any, context: Any) -> ledger_pb.SettleExpiredResponse:
        alerts = await self.rooms.answer("ledger.SettleExpired", request)
        return ledger_pb.SettleExpiredResponse(lots=3, credits=2**53 - 1, alerts=alerts)

    async def Cleanup(self, request: Any, context: Any) -> ledger_pb.CleanupResponse:
        return ledger_pb.CleanupResponse(alerts=await self.rooms.answer("ledger.Cleanup", request))


class Subscriptions(subscriptions_grpc.SubscriptionsMaintenanceServiceServicer):
    """Serves escalation alone: the rest is for a later release."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    async def EscalatePastDue(self, request: Any, context: Any) -> subscriptions_pb.EscalatePastDueResponse:
        alerts = await self.rooms.answer("subscriptions.EscalatePastDue", request)
        return subscriptions_pb.EscalatePastDueResponse(past_due=2, auto_downgraded=1, alerts=alerts)


@pytest.fixture
async def rooms(settings: RoomSettings) -> AsyncIterator[Rooms]:
    """The three rooms on one address, with the stack that they really have."""
    rooms = Rooms()
    doors = [
        Door(
            "billing.ledger.v1.LedgerMaintenanceService",
            ledger_grpc.add_LedgerMaintenanceServiceServicer_to_server,
            Ledger(rooms),
            Audience.ROOM,
        ),
        Door(
            "billing.subscriptions.v1.SubscriptionsMaintenanceService",
            subscriptions_grpc.add_SubscriptionsMaintenanceServiceServicer_to_server,
            Subscriptions(rooms),
            Audience.ROOM,
        ),
        Door(
            "billing.webhooks.v1.WebhooksMaintenanceService",
            webhooks_grpc.add_WebhooksMaintenanceServiceServicer_to_server,
            webhooks_grpc.WebhooksMaintenanceServiceServicer(),
            Audience.ROOM,
        ),
    ]
    async with running_server(room="rooms", listen="127.0.0.1:0", settings=settings, doors=doors) as served:
        rooms.address = served[0]
        yield rooms


@pytest.fixture
async def maintenance(rooms: Rooms, settings: RoomSettings) -> AsyncIterator[Maintenance]:
    """The scheduler's way to the rooms."""
    channel = open_channel(rooms.address, settings.room_secret)
    yield Maintenance(dict.fromkeys(("ledger", "subscriptions", "webhooks"), channel))
    await channel.close()


@pytest.fixture
async def loop(engine: AsyncEngine, maintenance: Maintenance) -> AsyncIterator[Loop]:
    """The scheduler that executes what the door claims."""
    loop = Loop(engine, maintenance, sink=None)
    yield loop
    await loop.drain()


@pytest.fixture
async def address(engine: AsyncEngine, loop: Loop, settings: RoomSettings) -> AsyncIterator[str]:
    """The scheduler's door, served with the whole stack."""
    door = Door(
        "billing.scheduler.v1.SchedulerService",
        scheduler_grpc.add_SchedulerServiceServicer_to_server,
        SchedulerService(engine, owner=loop.owner, start=loop.start),
        Audience.OPERATOR,
    )
    async with running_server(
        room="scheduler", listen="127.0.0.1:0", settings=settings, doors=[door]
    ) as served:
        yield served[0]


@pytest.fixture
async def operator(address: str, settings: RoomSettings) -> AsyncIterator[Any]:
    """An operator's stub."""
    channel = open_channel(address, settings.operator_secret)
    yield scheduler_grpc.SchedulerServiceStub(channel)
    await channel.close()
