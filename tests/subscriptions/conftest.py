"""The room in this process over a real socket, beside a real ledger and a sandbox in a process of its own."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from billing.ledger.v1 import ledger_pb2
from billing.subscriptions.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    payment_events_pb2,
    payment_events_pb2_grpc,
    subscriptions_admin_pb2_grpc,
    subscriptions_maintenance_pb2,
    subscriptions_maintenance_pb2_grpc,
    subscriptions_pb2,
    subscriptions_pb2_grpc,
)
from psycopg.rows import dict_row
from pydantic import SecretStr
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions.performing import Performer
from services.subscriptions.actions.reconciliation import Reconciler
from services.subscriptions.catalogue import apply_file
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rpc.doors import doors
from services.subscriptions.rpc.room import Room as Doors
from services.subscriptions.rules.policy import Policy, Supplier
from services.subscriptions.store import catalog as catalog_store
from services.webhooks.clients import PaymentEvents
from services.webhooks.rules.bodies import prepare
from services.webhooks.rules.delivery import Claimed, Decision
from services.webhooks.rules.providers.razorpay import normalise
from shared import clock
from shared import database as shared_database
from shared.config import RoomSettings
from shared.ops.limits import Limiter
from shared.rpc.client import open_channel
from shared.rpc.server import running_server
from tests.conftest import Database
from tests.ledger.conftest import SECRETS, RunningLedger, Travel, ledger
from tests.sandbox.running import KEY_ID, KEY_SECRET, Sandbox

__all__ = ["ledger"]

POLICY = Policy(
    supplier=Supplier(
        "Example Software Private Limited", "29AABCU9603R1ZJ", "29", "1 MG Road, Bengaluru 560001"
    )
)


class MovableClock:
    """The present, and further ahead when a test says so."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return clock.now() + self.ahead


@dataclass(frozen=True)
class Room:
    """The running room: its doors, its neighbours, and a reader of its rows."""

    address: str
    engine: AsyncEngine
    razorpay: Razorpay
    clock: MovableClock
    catalog: catalog_pb2_grpc.CatalogServiceStub
    product: subscriptions_pb2_grpc.SubscriptionsServiceStub
    admin: subscriptions_admin_pb2_grpc.SubscriptionsAdminServiceStub
    events: payment_events_pb2_grpc.PaymentEventsServiceStub
    maintenance: subscriptions_maintenance_pb2_grpc.SubscriptionsMaintenanceServiceStub
    webhooks: PaymentEvents
    sandbox: Sandbox
    ledger: RunningLedger
    admin_url: str

    async def provision(self, tenant: str) -> subscriptions_pb2.ProvisionTenantResponse:
        return await self.product.ProvisionTenant(
            subscriptions_pb2.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
        )

    async def checkout(
        self, tenant: str, *, plan: str = "pro", cycle: str = "monthly", key: str = "buy", trial: bool = False
    ) -> subscriptions_pb2.CheckoutResponse:
        return await self.product.Checkout(
            subscriptions_pb2.CheckoutRequest(
                tenant_id=tenant,
                idempotency_key=key,
                plan_code=plan,
                cycle=catalog_pb2.BillingCycle.Value(f"BILLING_CYCLE_{cycle.upper()}"),
                with_trial=trial,
            )
        )

    async def buy_credits(
        self, tenant: str, *, pack: str = "medium", key: str = "pack"
    ) -> subscriptions_pb2.BuyCreditsResponse:
        return await self.product.BuyCredits(
            subscriptions_pb2.BuyCreditsRequest(tenant_id=tenant, idempotency_key=key, pack_code=pack)
        )

    async def deliver(self, delivery: dict[str, Any], *, mode: str = "test") -> Decision:
        """Hands a sandbox delivery on, as the webhooks room does it."""
        body: bytes = delivery["body"]
        claimed = Claimed(
            id="evt_test",
            provider="razorpay",
            account_id="",
            mode=mode,
            body_sha256=hashlib.sha256(body).hexdigest(),
            event_id=delivery["event_id"],
            body=body,
            received_at=self.clock(),
            retry_count=0,
            attempt=1,
            event_type=None,
            tenant_id=None,
            body_removed_at=None,
            request_id="req_test",
        )
        return await self.webhooks.apply(claimed, normalise(prepare(body).body), timeout_seconds=10)

    async def current(self, tenant: str) -> subscriptions_pb2.GetCurrentResponse:
        return await self.product.GetCurrent(subscriptions_pb2.GetCurrentRequest(tenant_id=tenant))

    async def reconcile(self) -> subscriptions_maintenance_pb2.ReconcileResponse:
        return await self.maintenance.Reconcile(
            subscriptions_maintenance_pb2.ReconcileRequest(idempotency_key="job:reconcile:test")
        )

    async def balance(self, tenant: str) -> dict[str, int]:
        """Credits by bucket, from the ledger itself."""
        found = await self.ledger.service.GetBalance(ledger_pb2.GetBalanceRequest(tenant_id=tenant))
        buckets = {bucket.bucket: bucket.credits for bucket in found.balance.buckets}
        return {"subscription": buckets.get(1, 0), "permanent": buckets.get(2, 0)}

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """What the tables of the room hold."""
        with psycopg.connect(self.admin_url, autocommit=True, row_factory=dict_row) as db:
            db.execute("SET search_path = subscriptions, ops")
            return db.execute(query, values).fetchall()

    def change(self, statement: str, *values: Any) -> None:
        """An incident, staged; whoever changes the catalogue by hand passes by what the room remembers of it."""
        catalog_store._read.clear()
        with psycopg.connect(self.admin_url, autocommit=True) as db:
            db.execute("SET search_path = subscriptions, ops")
            db.execute(statement, values)


@pytest.fixture(scope="session")
def clock_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one test clock that the sandbox follows, and the rooms too while a test travels."""
    file = tmp_path_factory.mktemp("clock") / "offset"
    clock.move_to(file, timedelta())
    return file


@pytest.fixture(scope="session")
def sandbox(clock_file: Path) -> Iterator[Sandbox]:
    running = Sandbox(BILLING_TEST_CLOCK=str(clock_file))
    yield running
    running.close()


@pytest.fixture
def travel(clock_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Travel]:
    """Moves the sandbox, the room and the ledger through time together; back at the end of the test."""
    monkeypatch.setenv("BILLING_TEST_CLOCK", str(clock_file))
    yield Travel(clock_file)
    clock.move_to(clock_file, timedelta())


@pytest.fixture(autouse=True)
def _calm(request: pytest.FixtureRequest) -> Iterator[None]:
    """No fault and no leap of one test reaches the next."""
    yield
    if "room" in request.fixturenames:
        running: Room = request.getfixturevalue("room")
        running.sandbox.http.delete("/_sandbox/faults")
        running.clock.ahead = timedelta()


@pytest.fixture(scope="session")
async def room(database: Database, ledger: RunningLedger, sandbox: Sandbox) -> AsyncIterator[Room]:
    razorpay = Razorpay(api_url=sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    async with serving(database, ledger.address, razorpay, MovableClock()) as (address, engine, moving):
        await apply_file(engine, razorpay, dry_run=False, console=Console(quiet=True))
        channels = {
            name: open_channel(address, SecretStr(SECRETS[f"{name}_secret"]))
            for name in ("gateway", "operator", "room")
        }
        yield Room(
            address=address,
            engine=engine,
            razorpay=razorpay,
            clock=moving,
            catalog=catalog_pb2_grpc.CatalogServiceStub(channels["gateway"]),
            product=subscriptions_pb2_grpc.SubscriptionsServiceStub(channels["gateway"]),
            admin=subscriptions_admin_pb2_grpc.SubscriptionsAdminServiceStub(channels["operator"]),
            events=payment_events_pb2_grpc.PaymentEventsServiceStub(channels["room"]),
            maintenance=subscriptions_maintenance_pb2_grpc.SubscriptionsMaintenanceServiceStub(
                channels["room"]
            ),
            webhooks=PaymentEvents(channels["room"]),
            sandbox=sandbox,
            ledger=ledger,
            admin_url=database.admin_url,
        )
        for channel in channels.values():
            await channel.close()


@asynccontextmanager
async def serving(
    database: Database,
    ledger_address: str,
    razorpay: Razorpay,
    moving: MovableClock,
    policy: Policy = POLICY,
) -> AsyncIterator[tuple[str, AsyncEngine, MovableClock]]:
    """The room's doors on a free port."""
    engine = shared_database.create_engine(
        database.url("subscriptions_rw"), application_name="subscriptions-tests"
    )
    to_ledger = open_channel(ledger_address, SecretStr(SECRETS["room_secret"]))
    ours = Ledger(to_ledger)
    performer = Performer(engine, ours, razorpay, mode="test", clock=moving, policy=policy)
    reconciler = Reconciler(engine, performer, clock=moving, policy=policy)
    settings = RoomSettings(**SECRETS, shed_after_ms=60_000)
    async with running_server(
        room="subscriptions",
        listen="127.0.0.1:0",
        settings=settings,
        doors=doors(
            Doors(
                engine, ours, razorpay, reconciler, "test", moving, policy, Limiter(engine, "subscriptions")
            )
        ),
    ) as (address, _health, _server):
        yield address, engine, moving
    await reconciler.drain()
    await to_ledger.close()
    await engine.dispose()
    razorpay.close()


def event(**of: Any) -> payment_events_pb2.ApplyPaymentEventRequest:
    """An event that is valid by default; a test says what it is about."""
    received = datetime.now(UTC)
    defaults: dict[str, Any] = {
        "provider": "razorpay",
        "account_id": "acc_test",
        "mode": "test",
        "event_id": "evt",
        "event_type": "payment.authorized",
        "received_at": received,
        "occurred_at": received,
    }
    values = defaults | of
    identity = values.pop("identity", repr(sorted(values.items(), key=lambda item: item[0])))
    values.setdefault("body_sha256", hashlib.sha256(identity.encode()).hexdigest())
    return payment_events_pb2.ApplyPaymentEventRequest(
        idempotency_key=f"event:razorpay:{values['account_id']}:{values['mode']}:{values['body_sha256']}",
        event=payment_events_pb2.PaymentEvent(**values),
    )
