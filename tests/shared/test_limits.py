"""Rate limits: counted in the database, over every process, by its clock."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import ledger_pb2_grpc
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from shared import errors
from shared.config import RoomSettings
from shared.database import create_engine, transaction
from shared.ops import limits
from shared.ops.limits import Limit, Limiter
from shared.rpc.client import open_channel
from shared.rpc.server import Audience, Door, running_server
from tests.conftest import Database, Secrets
from tests.shared.test_rpc import SERVICE, Peer

FIVE = Limit(5, 900)


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database.url("webhooks_rw"), application_name="test", pool_size=8)
    yield engine
    await engine.dispose()


async def ask(engine: AsyncEngine, key: str, limit: Limit = FIVE) -> float:
    async with transaction(engine) as db:
        return await limits.take(db, room="webhooks", key=key, limit=limit)


def set_bucket(database: Database, key: str, ahead: str) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as db:
        db.execute(
            "UPDATE ops.rate_limit_buckets SET tat = clock_timestamp() + %s::interval WHERE key = %s",
            (ahead, key),
        )


async def test_a_burst_passes_and_then_one_each_interval(
    engine: AsyncEngine, database: Database, tenant: str
) -> None:
    assert [await ask(engine, tenant) for _ in range(5)] == [0.0] * 5
    wait = await ask(engine, tenant)
    assert 178 <= wait <= 180  # 900 s / 5
    assert await ask(engine, f"{tenant}-other") == 0.0

    set_bucket(database, tenant, "719 seconds")  # as if 181 seconds had passed
    assert await ask(engine, tenant) == 0.0
    assert await ask(engine, tenant) >= 1


async def test_many_at_once_take_no_more_than_there_is(engine: AsyncEngine, tenant: str) -> None:
    answers = await asyncio.gather(*(ask(engine, tenant, Limit(20, 3600)) for _ in range(100)))
    assert answers.count(0.0) == 20
    assert min(answer for answer in answers if answer) >= 1


async def test_a_wait_is_a_whole_second_at_least(engine: AsyncEngine, tenant: str) -> None:
    quick = Limit(2, 0.2)
    answers = await asyncio.gather(*(ask(engine, tenant, quick) for _ in range(30)))
    assert {answer for answer in answers if answer} == {1.0}


async def test_a_clock_that_was_set_back_locks_nobody_out(
    engine: AsyncEngine, database: Database, tenant: str
) -> None:
    await ask(engine, tenant)
    set_bucket(database, tenant, "3 hours")  # an hour from which the clock came back
    assert [await ask(engine, tenant) for _ in range(5)] == [0.0] * 5
    assert await ask(engine, tenant) > 0


async def test_a_refused_key_is_refused_from_memory_and_comes_back(engine: AsyncEngine, tenant: str) -> None:
    limiter, slow = Limiter(engine, "webhooks"), Limit(1, 1.2)
    assert await limiter.take(tenant, slow) == 0.0
    refused = [await limiter.take(tenant, slow) for _ in range(3)]
    assert all(wait >= 1 for wait in refused)
    await asyncio.sleep(2.1)
    assert await limiter.take(tenant, slow) == 0.0


async def test_another_process_shares_the_bucket(engine: AsyncEngine, tenant: str) -> None:
    one, two = Limiter(engine, "webhooks"), Limiter(engine, "webhooks")
    taken = [await limiter.take(tenant, FIVE) for limiter in (one, two, one, two, one)]
    assert taken == [0.0] * 5
    assert await one.take(tenant, FIVE) > 0
    assert await two.take(tenant, FIVE) > 0


async def test_while_the_database_is_away_everything_goes_on(secrets: Any, tenant: str) -> None:
    engine = create_engine("postgresql://webhooks_rw@127.0.0.1:1/none", application_name="test")
    assert await Limiter(engine, "webhooks").take(tenant, Limit(1, 900)) == 0.0
    await engine.dispose()


async def test_a_stranger_cannot_make_a_process_remember_without_end(
    engine: AsyncEngine, tenant: str
) -> None:
    limiter = Limiter(engine, "webhooks")
    limiter._refused_until.update({f"{tenant}-{number}": 1e12 for number in range(5000)})
    await ask(engine, tenant, Limit(1, 900))
    assert await limiter.take(tenant, Limit(1, 900)) > 0
    assert len(limiter._refused_until) == 4096


async def test_operators_calls_are_limited_by_method_and_address(
    secrets: Secrets, database: Database, tenant: str
) -> None:
    settings = RoomSettings(
        gateway_secret=secrets.gateway,
        operator_secret=secrets.operator,
        room_secret=secrets.room,
        admin_calls_per_15_minutes=3,
    )
    engine = create_engine(database.url("ledger_rw"), application_name="test")
    doors = [Door(SERVICE, ledger_pb2_grpc.add_LedgerServiceServicer_to_server, Peer(), Audience.OPERATOR)]
    limiter = Limiter(engine, "ledger")
    async with (
        running_server(
            room="ledger", listen="127.0.0.1:0", settings=settings, doors=doors, limiter=limiter
        ) as (address, _, _),
        open_channel(address, SecretStr(secrets.operator)) as operator,
        open_channel(address, SecretStr("a stranger's key")) as stranger,
    ):
        request = pb.GetBalanceRequest(tenant_id=tenant)
        for _ in range(5):
            with pytest.raises(errors.Unauthenticated):
                await ledger_pb2_grpc.LedgerServiceStub(stranger).GetBalance(request)
        stub = ledger_pb2_grpc.LedgerServiceStub(operator)
        for _ in range(3):
            await stub.GetBalance(request)
        with pytest.raises(errors.ResourceExhausted) as refused:
            await stub.GetBalance(request)
        with pytest.raises(errors.Unimplemented):
            await stub.ListTransactions(pb.ListTransactionsRequest(tenant_id=tenant))
        async with grpc.aio.insecure_channel(address) as bare:
            with pytest.raises(grpc.aio.AioRpcError) as bared:
                await ledger_pb2_grpc.LedgerServiceStub(bare).GetBalance(
                    request, metadata=[("x-gateway-key", secrets.operator)]
                )
    await engine.dispose()
    assert refused.value.reason == "RATE_LIMITED"
    assert refused.value.metadata["limit"] == "3 in 15 minutes"
    assert 295 <= refused.value.retry_after_seconds <= 300
    trailers = dict(bared.value.trailing_metadata() or ())
    assert int(trailers["grpc-retry-pushback-ms"]) >= 1000
