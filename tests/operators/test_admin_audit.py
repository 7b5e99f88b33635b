"""Every call with which operators change something, in every room, leaves one line: who, what, before, after, why."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from billing.ledger.v1 import ledger_admin_pb2
from billing.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from billing.subscriptions.v1 import subscriptions_admin_pb2
from billing.webhooks.v1 import webhooks_admin_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from psycopg import sql
from psycopg.rows import dict_row
from pydantic import SecretStr

from services.scheduler import actions
from services.scheduler.clients import Maintenance
from services.scheduler.loop import Loop
from services.scheduler.rpc import SchedulerService
from shared import logs
from shared.config import RoomSettings
from shared.database import create_engine
from shared.errors import BillingError
from shared.rpc.client import open_channel
from shared.rpc.server import Audience, Door, running_server
from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.operators.samples import SAMPLES, World
from tests.operators.test_roles import LOGINS
from tests.subscriptions.conftest import Room
from tests.webhooks.harness import Running, Subscriptions, neighbour, room_settings, serving

DOORS: tuple[ServiceDescriptor, ...] = (
    ledger_admin_pb2.DESCRIPTOR.services_by_name["LedgerAdminService"],
    subscriptions_admin_pb2.DESCRIPTOR.services_by_name["SubscriptionsAdminService"],
    webhooks_admin_pb2.DESCRIPTOR.services_by_name["WebhooksAdminService"],
    scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"],
)
# They change nothing; VerifyLedger's findings are the auditor's, as by night, and freeze in its name.
LOOKS = re.compile(r"(List|Get|Diagnose|Verify)[A-Z]\w*")
CHANGES = {
    f"{door.full_name.split('.')[1]}.{name}": method
    for door in DOORS
    for name, method in door.methods_by_name.items()
    if not LOOKS.fullmatch(name)
}


@pytest.fixture(scope="module")
async def ingress(database: Database, secrets: Any) -> AsyncIterator[Running]:
    """The webhooks room, which gives an event up after one attempt."""
    async with AsyncExitStack() as stack:
        subscriptions, url = Subscriptions(), database.url("webhooks_rw")
        beside = room_settings(url, secrets, "127.0.0.1:1")
        address = await stack.enter_async_context(neighbour(beside, subscriptions))
        settings = room_settings(url, secrets, address, webhooks_delivery_attempts=1)
        db = await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True)
        await stack.enter_async_context(db)
        await db.execute("SET search_path = webhooks, ops")
        yield await stack.enter_async_context(serving(settings, subscriptions, db, deliver=True))


@pytest.fixture(scope="module")
async def scheduler(database: Database, room: Room) -> AsyncIterator[Any]:
    """The scheduler's door, beside the real ledger."""
    async with AsyncExitStack() as stack:
        engine = create_engine(database.url("scheduler_rw"), application_name="test_admin_audit")
        stack.push_async_callback(engine.dispose)
        await actions.prepare(engine)
        rooms = await stack.enter_async_context(
            open_channel(room.ledger.address, SecretStr(SECRETS["room_secret"]))
        )
        loop = Loop(engine, Maintenance({"ledger": rooms}), sink=None)
        stack.push_async_callback(loop.drain)
        door = Door(
            DOORS[-1].full_name,
            scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server,
            SchedulerService(engine, owner=loop.owner, start=loop.start),
            Audience.OPERATOR,
        )
        served = running_server(
            room="scheduler", listen="127.0.0.1:0", settings=RoomSettings(**SECRETS), doors=[door]
        )
        address, _, _ = await stack.enter_async_context(served)
        operators = open_channel(address, SecretStr(SECRETS["operator_secret"]))
        await stack.enter_async_context(operators)
        yield scheduler_pb2_grpc.SchedulerServiceStub(operators)


@pytest.fixture
def world(room: Room, ingress: Running, scheduler: Any, write_as: Any, tenant: str) -> World:
    return World(room, ingress, scheduler, write_as, tenant)


@pytest.fixture
def lines(database: Database) -> Iterator[Any]:
    """Reads the operators' lines that a part of the test added."""
    with psycopg.connect(database.admin_url, autocommit=True, row_factory=dict_row) as db:

        def read() -> dict[str, dict[str, Any]]:
            found = db.execute("SELECT * FROM ops.billing_audit_log WHERE actor_type = 'operator'").fetchall()
            return {row["id"]: row for row in found}

        @contextmanager
        def added() -> Iterator[list[dict[str, Any]]]:
            before, new = read(), []
            yield new
            new += [row for id, row in read().items() if id not in before]

        yield added


def request_of(method: MethodDescriptor, fields: dict[str, Any], *, key: str, says: str) -> Any:
    """What an operator asks: the sample's fields, a key, a name, and a sentence where the contract has it."""
    names = method.input_type.fields_by_name
    why = "description" if "description" in names else "reason"
    return message_factory.GetMessageClass(method.input_type)(
        **{"idempotency_key": key, "actor": "asha", why: says, **fields}
    )


def test_every_call_that_changes_something_has_a_sample() -> None:
    assert set(SAMPLES) == set(CHANGES)
    for method in CHANGES.values():
        assert {"idempotency_key", "actor"} <= {*method.input_type.fields_by_name}


@pytest.mark.parametrize("name", sorted(CHANGES))
async def test_a_change_leaves_one_line_its_repeat_and_a_refusal_none(
    world: World, lines: Any, name: str
) -> None:
    sample, method = SAMPLES[name], CHANGES[name]
    call = getattr(world.stub(name.split(".")[0]), method.name)
    fields = await sample.stage(world)
    key, says = f"T-9:{world.tenant}", f"because of {world.tenant}"
    asked = request_of(method, fields, key=key, says=says)
    named = logs.request_id.set(f"req_{world.tenant}")
    try:
        with lines() as first:
            await call(asked)
    finally:
        logs.request_id.reset(named)
    [line] = first
    assert (line["room"], line["actor_id"]) == (name.split(".")[0], "asha")
    assert line["tenant_id"] in (world.tenant, None)
    assert (line["tenant_id"] is None) == sample.of_nobody
    assert line["request_id"] == f"req_{world.tenant}"
    assert line["resource_type"]
    assert line["resource_id"]
    assert says in line["metadata"]["reason"]
    assert bool(line["metadata"]["after"]) != sample.takes_something_away
    assert bool(line["metadata"]["before"]) != sample.makes_something_new

    with lines() as again:
        await call(asked)
    assert again == []

    with lines() as refused:
        wrong = request_of(method, fields | sample.wrong, key=f"{key}:wrong", says=says)
        if sample.refused_within:
            assert (await call(wrong)).results[0].HasField("refusal")
        else:
            with pytest.raises(BillingError):
                await call(wrong)
    assert refused == []


@pytest.mark.parametrize("role", LOGINS)
@pytest.mark.parametrize("change", ["UPDATE", "DELETE", "TRUNCATE"])
def test_no_role_changes_a_line(database: Database, role: str, change: str) -> None:
    statement = {
        "UPDATE": "UPDATE ops.billing_audit_log SET {} = {} WHERE false",
        "DELETE": "DELETE FROM ops.billing_audit_log WHERE false",
        "TRUNCATE": "TRUNCATE ops.billing_audit_log",
    }[change]
    with psycopg.connect(database.url(role), autocommit=True) as db:
        columns = [
            column.name
            for column in db.execute("SELECT * FROM ops.billing_audit_log LIMIT 0").description or ()
        ]
        assert "actor_id" in columns
        for column in columns if change == "UPDATE" else columns[:1]:
            name = sql.Identifier(column)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(sql.SQL(statement).format(name, name))
