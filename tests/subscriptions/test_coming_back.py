"""What a neighbour's absence left undone is done soon after its return, whether the scheduler lives or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from billing.subscriptions.v1 import subscriptions_pb2, subscriptions_pb2_grpc
from pydantic import SecretStr

from services.subscriptions.actions import reconciliation
from services.subscriptions.actions.performing import Performer
from services.subscriptions.actions.reconciliation import Reconciler
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.razorpay import Razorpay
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.sandbox.running import KEY_ID, KEY_SECRET, free_port
from tests.subscriptions.conftest import POLICY, MovableClock, Room, serving
from tests.webhooks.harness import eventually


@asynccontextmanager
async def returned(ledger_address: str, port: int) -> AsyncIterator[None]:
    """The real ledger answers at this port from now on."""
    host, _, ledger_port = ledger_address.rpartition(":")
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(host, int(ledger_port))
        writers.extend((ours, writer))
        await asyncio.gather(pump(reader, ours), pump(theirs, writer))

    async with await asyncio.start_server(carry, "127.0.0.1", port):
        yield
        for writer in writers:
            writer.close()
        for writer in writers:
            await writer.wait_closed()


async def test_a_task_that_met_no_ledger_is_done_when_due_without_any_job(
    room: Room, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "BACKOFF_BASE_SECONDS", 0.5)
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    port = free_port()
    async with (
        serving(database, f"127.0.0.1:{port}", razorpay, MovableClock()) as (address, _, _),
        open_channel(address, SecretStr(SECRETS["gateway_secret"])) as channel,
    ):
        await subscriptions_pb2_grpc.SubscriptionsServiceStub(channel).ProvisionTenant(
            subscriptions_pb2.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision"), timeout=1
        )
        await asyncio.sleep(1)  # the caller's deadline is over, and must not bind what it caused
        [owed] = room.rows("SELECT * FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
        assert owed["completed_at"] is None
        async with returned(room.ledger.address, port):

            async def done() -> bool:
                [task] = room.rows("SELECT * FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
                return task["completed_at"] is not None

            assert await eventually(done, seconds=10)


async def test_waiting_to_come_back_does_not_keep_the_room_from_stopping(
    room: Room, database: Database, tenant: str
) -> None:
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)

    def waiting() -> set[asyncio.Task[object]]:
        return {task for task in asyncio.all_tasks() if "_take_up" in repr(task.get_coro())}

    others = waiting()  # of the room that all tests share
    async with asyncio.timeout(reconciliation.PATIENCE_SECONDS * 2 + 4):
        async with (
            serving(database, f"127.0.0.1:{free_port()}", razorpay, MovableClock()) as (address, _, _),
            open_channel(address, SecretStr(SECRETS["gateway_secret"])) as channel,
        ):
            await subscriptions_pb2_grpc.SubscriptionsServiceStub(channel).ProvisionTenant(
                subscriptions_pb2.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
            )

    assert waiting() <= others


async def test_what_a_killed_process_held_is_taken_over_without_any_job(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    room.change(
        "UPDATE billing_reconciliation_queue SET completed_at = NULL, attempts = 1,"
        " locked_until = clock_timestamp() + interval '0.4 seconds' WHERE tenant_id = %s",
        tenant,
    )
    async with open_channel(room.ledger.address, SecretStr(SECRETS["room_secret"])) as channel:
        performer = Performer(
            room.engine, Ledger(channel), room.razorpay, mode="test", clock=room.clock, policy=POLICY
        )
        successor = Reconciler(room.engine, performer, clock=room.clock, policy=POLICY)
        taking_over = asyncio.create_task(successor.take_over(every=timedelta(seconds=0.1)))

        await eventually(lambda: done(room, tenant))

        taking_over.cancel()
        await asyncio.wait({taking_over})
    [task] = room.rows("SELECT * FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
    assert task["attempts"] == 2


async def done(room: Room, tenant: str) -> bool:
    tasks = room.rows("SELECT completed_at FROM billing_reconciliation_queue WHERE tenant_id = %s", tenant)
    return all(task["completed_at"] is not None for task in tasks)
