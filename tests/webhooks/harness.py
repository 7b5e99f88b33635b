"""The room as it runs, on free ports, with a recording neighbour in the place of subscriptions."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from billing.subscriptions.v1 import payment_events_pb2 as events_pb
from billing.subscriptions.v1 import payment_events_pb2_grpc as events_grpc
from billing.webhooks.v1 import webhooks_admin_pb2_grpc as admin_grpc
from billing.webhooks.v1 import webhooks_maintenance_pb2_grpc as maintenance_grpc
from pydantic import SecretStr

from services.webhooks.config import WebhooksSettings
from services.webhooks.http.server import bind, serve_http
from services.webhooks.room import Room, open_room
from shared.rpc.client import open_channel
from shared.rpc.server import Audience, Door, running_server

PAYLOADS = Path(__file__).resolve().parents[1] / "payloads"
MANIFEST = json.loads((PAYLOADS / "MANIFEST.json").read_text())
SECRET = MANIFEST["sample_secrets"]["razorpay"]
OLD_SECRET = MANIFEST["sample_secrets"]["razorpay_old"]
SAMPLES = MANIFEST["files"]

Answer = Callable[[events_pb.ApplyPaymentEventRequest], Awaitable[events_pb.ApplyPaymentEventResponse | None]]


def sample(name: str) -> bytes:
    return (PAYLOADS / "razorpay" / name).read_bytes()


def signature(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def charged(tenant: str, *, subscription: str = "", payment: str = "", **changes: Any) -> bytes:
    """A first charge of a tenant's own subscription."""
    document = json.loads(sample("subscription.charged.json"))
    entity = document["payload"]["subscription"]["entity"]
    entity["id"] = subscription or f"sub_{tenant}"
    entity["notes"] = {"tenant_id": tenant}
    document["payload"]["payment"]["entity"]["id"] = payment or f"pay_{tenant}"
    document.update(changes)
    return json.dumps(document).encode()


class Subscriptions(events_grpc.PaymentEventsServiceServicer):
    """Keeps every request, and answers APPLIED once for each key as the real room does."""

    def __init__(self) -> None:
        self.requests: list[events_pb.ApplyPaymentEventRequest] = []
        self.request_ids: list[str] = []
        self.effects: list[str] = []
        self.before: Answer | None = None

    async def ApplyPaymentEvent(
        self, request: events_pb.ApplyPaymentEventRequest, context: Any
    ) -> events_pb.ApplyPaymentEventResponse:
        self.requests.append(request)
        self.request_ids += [value for name, value in context.invocation_metadata() if name == "x-request-id"]
        if self.before is not None and (answer := await self.before(request)) is not None:
            return answer
        key = request.idempotency_key
        outcome = events_pb.PAYMENT_EVENT_OUTCOME_DUPLICATE
        if key not in self.effects:
            self.effects.append(key)
            outcome = events_pb.PAYMENT_EVENT_OUTCOME_APPLIED
        tenant = request.event.subscription.notes.get("tenant_id", "")
        return events_pb.ApplyPaymentEventResponse(outcome=outcome, reason="recorded", tenant_id=tenant)

    @property
    def types(self) -> list[str]:
        return [request.event.event_type for request in self.requests]


@dataclass
class Running:
    """A running room and ways to talk to it."""

    room: Room
    url: str
    grpc_address: str
    settings: WebhooksSettings
    http: httpx.AsyncClient
    admin: Any
    maintenance: Any
    subscriptions: Subscriptions
    db: psycopg.AsyncConnection = field(repr=False)

    async def post(
        self, body: bytes, *, secret: str = SECRET, path: str = "/webhooks/razorpay", **headers: str
    ) -> httpx.Response:
        """A delivery signed as Razorpay would."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        signed = {"X-Razorpay-Signature": signature(body, secret), **named}
        return await self.http.post(self.url + path, content=body, headers=signed)

    async def rows(self, query: str = "SELECT * FROM webhook_events", *values: Any) -> list[dict[str, Any]]:
        cursor = await self.db.execute(query, values)  # type: ignore[arg-type]
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def settled(self, count: int, *, seconds: float = 8.0) -> list[dict[str, Any]]:
        """The events, once so many of them are processed."""
        async with asyncio.timeout(seconds):
            while True:
                rows = await self.rows("SELECT * FROM webhook_events ORDER BY received_at, id")
                if sum(row["processed"] for row in rows) >= count:
                    return rows
                await asyncio.sleep(0.02)


async def eventually(check: Callable[[], Awaitable[Any]], *, seconds: float = 8.0) -> Any:
    """The first true answer."""
    async with asyncio.timeout(seconds):
        while True:
            if answer := await check():
                return answer
            await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(
    settings: WebhooksSettings, subscriptions: Subscriptions, db: psycopg.AsyncConnection, *, deliver: bool
) -> AsyncIterator[Running]:
    """The room's HTTP and gRPC servers and its delivery loop, as `__main__` puts them together."""
    listener = bind("127.0.0.1:0")
    url = "http://{}:{}".format(*listener.getsockname())
    async with open_room(settings) as room:
        work = [
            asyncio.create_task(
                serve_http(
                    room.app,
                    listener,
                    receive_seconds=settings.webhooks_receive_seconds,
                    connections_max=settings.webhooks_connections_max,
                    on_closed=room.metrics.connection_closed,
                )
            )
        ]
        if deliver:
            work.append(asyncio.create_task(room.loop.run()))
        try:
            async with (
                running_server(
                    room="webhooks", listen="127.0.0.1:0", settings=settings, doors=room.doors
                ) as (address, _, _),
                open_channel(address, settings.operator_secret) as operators,
                open_channel(address, settings.room_secret) as rooms,
                httpx.AsyncClient(timeout=10) as http,
            ):
                yield Running(
                    room,
                    url,
                    address,
                    settings,
                    http,
                    admin_grpc.WebhooksAdminServiceStub(operators),
                    maintenance_grpc.WebhooksMaintenanceServiceStub(rooms),
                    subscriptions,
                    db,
                )
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)


@asynccontextmanager
async def neighbour(
    settings: WebhooksSettings, subscriptions: Subscriptions, listen: str = "127.0.0.1:0"
) -> AsyncIterator[str]:
    """A real server of subscriptions' contract, behind the same gate as the real room."""
    door = Door(
        "billing.subscriptions.v1.PaymentEventsService",
        events_grpc.add_PaymentEventsServiceServicer_to_server,
        subscriptions,
        Audience.ROOM,
    )
    async with running_server(room="subscriptions", listen=listen, settings=settings, doors=[door]) as (
        address,
        _,
        _,
    ):
        yield address


def room_settings(url: str, secrets: Any, address: str, **changes: Any) -> WebhooksSettings:
    values: dict[str, Any] = {
        "gateway_secret": secrets.gateway,
        "operator_secret": secrets.operator,
        "room_secret": secrets.room,
        "webhooks_database_url": SecretStr(url),
        "subscriptions_address": address,
        "razorpay_webhook_secret": SECRET,
        "webhooks_delivery_poll_seconds": 0.1,
        "webhooks_delivery_backoff_seconds": 0.05,
        "webhooks_unsigned_per_15_minutes": 0,  # tests forge a lot; those of the limit set one
        **changes,
    }
    return WebhooksSettings(**values)
