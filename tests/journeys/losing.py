"""A suite under load that is lost an hour too early: what its callers were told, and what they still know."""

from __future__ import annotations

import asyncio
import base64
import itertools
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from billing.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as subscriptions_pb
from google.protobuf.json_format import MessageToDict
from pydantic import SecretStr

from shared import clock
from shared.rpc.client import open_channel
from tests.journeys.test_kill import Clients
from tests.suite.running import RunningSuite

SPENDERS = ("spender_0", "spender_1", "spender_2", "spender_3")
FUNDED = 1_000_000
PACK_CREDITS = 500
PRO_CREDITS = 15_000


@dataclass
class Told:
    """What callers remember, whatever became of the suite."""

    debits: dict[tuple[str, str], tuple[datetime, str]] = field(
        default_factory=dict
    )  # when, and which transaction
    packs: dict[str, datetime] = field(default_factory=dict)  # by tenant: when its payment was made
    subscribed: dict[str, datetime] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)  # of every delivery


class Load:
    """Product and customers at work until told to stop."""

    def __init__(self, clients: Clients, told: Told) -> None:
        self.clients = clients
        self.told = told
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        for tenant in SPENDERS:
            await self.clients.funding.GrantCredits(
                funding_pb.GrantCreditsRequest(
                    tenant_id=tenant,
                    idempotency_key="grant",
                    bucket=types.BUCKET_PERMANENT,
                    credits=FUNDED,
                    reference_id="test:all",
                    reason="credit_pack",
                )
            )
        self._tasks = [asyncio.create_task(self._spend(tenant)) for tenant in SPENDERS]
        self._tasks += [asyncio.create_task(self._buy()), asyncio.create_task(self._subscribe())]

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _spend(self, tenant: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            answer = await self.clients.ledger.Debit(debit(tenant, f"debit-{number}"), timeout=10)
            self.told.debits[tenant, f"debit-{number}"] = (clock.now(), answer.transaction.id)

    async def _buy(self) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            tenant = f"buyer_{number}"
            order = await order_of(self.clients, tenant)
            await self._pays(f"orders/{order}/pay")
            self.told.packs[tenant] = clock.now()
            await asyncio.sleep(0.2)

    async def _subscribe(self) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            tenant = f"subscriber_{number}"
            await self._pays(f"subscriptions/{await checkout_of(self.clients, tenant)}/pay")
            self.told.subscribed[tenant] = clock.now()
            await asyncio.sleep(0.4)

    async def _pays(self, path: str) -> None:
        """The sandbox sends the deliveries itself, and the test keeps them too."""
        self.told.bodies += await pay(self.clients, path, deliver=True)


def debit(tenant: str, key: str) -> pb.DebitRequest:
    return pb.DebitRequest(tenant_id=tenant, idempotency_key=key, credits=1, reason="blog.publish")


async def provision(clients: Clients, tenant: str) -> None:
    await clients.subscriptions.ProvisionTenant(
        subscriptions_pb.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
    )


async def order_of(clients: Clients, tenant: str) -> str:
    await provision(clients, tenant)
    order = await clients.subscriptions.BuyCredits(
        subscriptions_pb.BuyCreditsRequest(tenant_id=tenant, idempotency_key="pack", pack_code="small")
    )
    return str(order.order_id)


async def checkout_of(clients: Clients, tenant: str) -> str:
    await provision(clients, tenant)
    begun = await clients.subscriptions.Checkout(
        subscriptions_pb.CheckoutRequest(
            tenant_id=tenant,
            idempotency_key="buy",
            plan_code="pro",
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
    )
    return str(begun.checkout.subscription_id)


async def pay(clients: Clients, path: str, *, deliver: bool) -> list[bytes]:
    answer = await clients.sandbox.post(f"/_sandbox/{path}", json={"deliver": deliver})
    answer.raise_for_status()
    return [base64.b64decode(delivery["body_base64"]) for delivery in answer.json()]


async def balance(clients: Clients, tenant: str) -> int:
    answer = await clients.ledger.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))
    return sum(bucket.credits for bucket in answer.balance.buckets)


async def run_job(suite: RunningSuite, job: str, key: str) -> dict[str, Any]:
    """What the rooms answered, by `<room>.<Method>`."""
    secret = SecretStr(suite.runtime["secrets"]["operator_secret"])
    async with open_channel(suite.runtime["addresses"]["scheduler"], secret) as channel:
        request = scheduler_pb2.RunJobRequest(job=job, idempotency_key=key, actor="asha")
        run = (await scheduler_pb2_grpc.SchedulerServiceStub(channel).RunJob(request, timeout=100)).run
    assert run.outcome == scheduler_pb2.RUN_OUTCOME_SUCCEEDED, run
    return dict(MessageToDict(run.summary))


def rows(suite: RunningSuite, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(suite.runtime["database"]["urls"]["billing_operator"]) as db:
        return db.execute(query, values).fetchall()  # type: ignore[arg-type]
