"""No transaction is open while the room waits for anybody else."""

from __future__ import annotations

import asyncio
import inspect
import types
import typing
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from billing.subscriptions.v1 import (
    catalog_pb2,
    payment_events_pb2,
    subscriptions_admin_pb2,
    subscriptions_maintenance_pb2,
    subscriptions_pb2,
)
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from pydantic import SecretStr
from sqlalchemy import text

from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.notices import NoticeSink
from services.subscriptions.clients.razorpay import Razorpay
from shared.database import transaction
from shared.errors import BillingError, Internal
from shared.rpc.client import open_channel
from tests.ledger.conftest import SECRETS
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import Life

NO_ROUND_TRIP = {"close", "configured"}
WORDS = {"bucket": "subscription", "cycle": "monthly"}
SERVICES = [
    service
    for module in (
        catalog_pb2,
        payment_events_pb2,
        subscriptions_admin_pb2,
        subscriptions_maintenance_pb2,
        subscriptions_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
]


def calls_of(client: type) -> list[str]:
    """Every public method of a client: a new one is covered as soon as it is written."""
    return [name for name in vars(client) if not name.startswith("_") and name not in NO_ROUND_TRIP]


def an_argument(kind: Any) -> Any:
    """Something that a method accepts for a parameter of this type."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return an_argument(typing.get_args(kind)[0])
    if origin is typing.Literal:
        return typing.get_args(kind)[0]
    if inspect.isclass(origin) and issubclass(origin, Mapping | Sequence):
        return {} if issubclass(origin, Mapping) else ()
    values = {str: "sub_00000000000000", int: 1, bool: False, datetime: datetime(2026, 11, 20, tzinfo=UTC)}
    return values[kind]


async def ask(client: Any, name: str) -> None:
    """Calls a method with arguments that it accepts."""
    method = getattr(client, name)
    hints = typing.get_type_hints(method)
    given = {
        parameter.name: WORDS.get(parameter.name) or an_argument(hints[parameter.name])
        for parameter in inspect.signature(method).parameters.values()
    }
    positional = [
        given.pop(parameter.name)
        for parameter in inspect.signature(method).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    answer = method(*positional, **given)
    if inspect.isasyncgen(answer):
        async for _ in answer:
            pass
    else:
        await answer


@pytest.mark.parametrize("name", calls_of(Razorpay))
async def test_the_provider_is_never_asked_inside_a_transaction(room: Room, name: str) -> None:
    async with transaction(room.engine):
        with pytest.raises(AssertionError, match="Razorpay inside a transaction"):
            await ask(room.razorpay, name)


@pytest.mark.parametrize("name", calls_of(Ledger))
async def test_the_ledger_is_never_asked_inside_a_transaction(room: Room, name: str) -> None:
    async with open_channel(room.ledger.address, SecretStr(SECRETS["room_secret"])) as channel:
        ledger = Ledger(channel)
        async with transaction(room.engine):
            with pytest.raises(AssertionError, match=r"RPC .* inside a transaction"):
                await ask(ledger, name)


@pytest.mark.parametrize("name", calls_of(NoticeSink))
async def test_no_notice_leaves_inside_a_transaction(room: Room, name: str) -> None:
    sink = NoticeSink("http://127.0.0.1:1/")
    async with transaction(room.engine):
        with pytest.raises(AssertionError, match="notice sink inside a transaction"):
            await ask(sink, name)


@contextmanager
def watching(room: Room) -> Iterator[list[dict[str, Any]]]:
    """Every transaction of the room that was seen doing nothing for longer than any statement takes to be sent."""
    seen: list[dict[str, Any]] = []
    stop = asyncio.Event()

    def look(db: psycopg.Connection[Any]) -> None:
        idle = db.execute(
            "SELECT pid, query, clock_timestamp() - state_change AS since FROM pg_stat_activity"
            " WHERE application_name = 'subscriptions-tests' AND state LIKE 'idle in transaction%'"
            # One that has only begun holds nothing: a machine without time for us leaves it there.
            " AND query NOT LIKE 'BEGIN%' AND clock_timestamp() - state_change > interval '0.6 seconds'"
        )
        seen.extend({"pid": pid, "query": query, "since": since} for pid, query, since in idle)

    async def keep_looking() -> None:
        with psycopg.connect(room.admin_url, autocommit=True) as db:
            while not stop.is_set():
                await asyncio.to_thread(look, db)
                await asyncio.sleep(0.02)

    looking = asyncio.ensure_future(keep_looking())
    yield seen
    stop.set()
    looking.cancel()


@asynccontextmanager
async def slow_provider(room: Room, seconds: float) -> AsyncIterator[None]:
    """Every answer of the provider takes its time."""
    room.sandbox.set("faults", kind="delay", seconds=seconds, times=10_000)
    yield
    room.sandbox.http.delete("/_sandbox/faults")


def a_request(method: MethodDescriptor, tenant: str) -> Message:
    """A request that passes the contract as far as its fields can be guessed by their names."""
    request = GetMessageClass(method.input_type)()
    words = {"tenant_id": tenant, "idempotency_key": f"job:{method.name}:1", "actor": "asha@example.com"}
    for field in method.input_type.fields:
        if field.is_repeated or field.message_type is not None or field.containing_oneof is not None:
            continue
        if field.type == FieldDescriptor.TYPE_STRING and field.name not in ("page_token", "quote_token"):
            setattr(request, field.name, words.get(field.name, "unknown"))
        elif field.type == FieldDescriptor.TYPE_ENUM:
            setattr(request, field.name, 1)
    return request


async def a_whole_life(room: Room, tenant: str) -> set[str]:
    """What a tenant asks of the provider and the ledger, each call once; answers which calls those were."""
    life = Life(room, tenant)
    await life.subscribe("starter")
    await life.pause()
    await life.resume()
    quote = await life.preview("pro")
    changed = await life.change("pro", token=quote.quote_token)
    await life.act(changed.checkout.subscription_id, "pay", method="card")
    order = await room.buy_credits(tenant)
    await life.tell(room.sandbox.act(f"orders/{order.order_id}/pay", method="upi"))
    await life.refund(life.payments()[-1]["id"], 20_000)
    await life.switch("yearly")
    await life.undo()
    await life.cancel("now")
    return {
        "ProvisionTenant", "Checkout", "PauseSubscription", "ResumeSubscription", "PreviewChange", "ChangePlan",
        "BuyCredits", "RefundPayment", "SwitchCycle", "CancelPendingChange", "CancelSubscription", "ApplyPaymentEvent",
    }  # fmt: skip


async def test_an_idle_transaction_would_be_seen(room: Room) -> None:
    with watching(room) as idle:
        async with transaction(room.engine) as db:
            await db.execute(text("SELECT 1"))
            await asyncio.sleep(0.9)

    assert idle


async def test_no_call_of_the_room_holds_a_transaction_open_while_the_provider_is_slow(
    room: Room, tenant: str, capfd: pytest.CaptureFixture[str]
) -> None:
    channels = {
        name: open_channel(room.address, SecretStr(SECRETS[f"{name}_secret"]))
        for name in ("gateway", "operator", "room")
    }
    broken: dict[str, str] = {}
    asked: set[str] = set()
    with watching(room) as idle:
        async with slow_provider(room, 0.7):
            asked |= await a_whole_life(room, tenant)
            for service in SERVICES:
                for method in service.methods:
                    try:
                        await call(channels, service.full_name, method, tenant)
                    except Internal as error:
                        broken[method.name] = error.message
                    except BillingError:
                        pass  # a guess that was refused was decided all the same
                    asked.add(method.name)
    for channel in channels.values():
        await channel.close()

    assert idle == []
    assert broken == {}
    assert asked == {method.name for service in SERVICES for method in service.methods}
    assert "inside a transaction" not in "".join(capfd.readouterr())
    assert (
        room.rows(
            "SELECT task_type, last_error FROM billing_reconciliation_queue WHERE last_error LIKE '%%AssertionError%%'"
        )
        == []
    )


async def call(channels: Mapping[str, Any], service: str, method: MethodDescriptor, tenant: str) -> None:
    """Asks a method of the room with the key that opens its service."""
    key = "gateway"
    if service.endswith("AdminService"):
        key = "operator"
    elif service.endswith(("MaintenanceService", "PaymentEventsService")):
        key = "room"
    answer = GetMessageClass(method.output_type)
    stub = channels[key].unary_unary(
        f"/{service}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    await stub(a_request(method, tenant), timeout=15)
