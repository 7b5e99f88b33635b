"""kill -9 of every process in the middle of debits and deliveries, then the sums."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_funding_pb2_grpc, ledger_pb2_grpc
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from billing.subscriptions.v1 import subscriptions_pb2 as subscriptions_pb
from billing.subscriptions.v1 import subscriptions_pb2_grpc
from pydantic import SecretStr

from shared.errors import BillingError, FailedPrecondition
from shared.rpc.client import open_channel
from tests.suite.running import RunningSuite

WRITERS = 8
DEBITS_EACH = 60
FUNDED = WRITERS * DEBITS_EACH - 40  # so that some debits are refused
PURCHASES = 6
PACK_CREDITS = 500
PATIENCE_SECONDS = 60
VICTIMS = ("ledger", "webhooks", "subscriptions", "scheduler", "sandbox", "postgres")


@dataclass
class History:
    """What callers were told, by idempotency key."""

    acknowledged: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    unknown_at_first: set[str] = field(default_factory=set)
    deliveries: int = 0


@dataclass(frozen=True)
class Clients:
    """Whoever talks to the suite while its processes die."""

    ledger: ledger_pb2_grpc.LedgerServiceStub
    funding: ledger_funding_pb2_grpc.LedgerFundingServiceStub
    subscriptions: subscriptions_pb2_grpc.SubscriptionsServiceStub
    ingress: httpx.AsyncClient
    sandbox: httpx.AsyncClient


async def test_kill_9_of_each_process_loses_nothing_and_repeats_nothing(
    running_suite: RunningSuite, tenant: str
) -> None:
    history, buyers = History(), [f"{tenant}_buyer_{number}" for number in range(PURCHASES)]
    async with clients_of(running_suite) as clients:
        await clients.funding.GrantCredits(a_grant(tenant))
        deliveries = [each for buyer in buyers for each in await a_paid_purchase(clients, buyer)]

        chaos = asyncio.create_task(kill_each_in_turn(running_suite))
        await asyncio.gather(
            *(spend(clients, history, tenant, writer) for writer in range(WRITERS)),
            *(deliver_twice(clients, history, delivery) for delivery in deliveries),
        )
        await chaos
        await until_funded(clients, buyers)

    check_debits(running_suite, tenant, history)
    check_purchases(running_suite, buyers)
    assert history.deliveries == 2 * len(deliveries)
    assert history.unknown_at_first, "nobody was interrupted, so this run proves nothing"


async def kill_each_in_turn(suite: RunningSuite) -> None:
    for victim in VICTIMS:
        await asyncio.sleep(1.0)
        before = suite.pid(victim)
        suite.kill(victim)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while suite.pid(victim) in (None, before):
                await asyncio.sleep(0.05)


async def spend(clients: Clients, history: History, tenant: str, writer: int) -> None:
    for number in range(DEBITS_EACH):
        key = f"writer-{writer}-{number}"
        request = pb.DebitRequest(tenant_id=tenant, idempotency_key=key, credits=1, reason="blog.publish")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await debit_until_definite(clients, history, request)
        await asyncio.sleep(0.08)


async def debit_until_definite(clients: Clients, history: History, request: pb.DebitRequest) -> None:
    while True:
        try:
            await clients.ledger.Debit(request, timeout=4)
        except FailedPrecondition as refusal:
            assert refusal.reason == "INSUFFICIENT_CREDITS"
            history.refused.add(request.idempotency_key)
            return
        except BillingError as error:
            assert error.code in {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL"}, error
            history.unknown_at_first.add(request.idempotency_key)
            await asyncio.sleep(0.1)
        else:
            history.acknowledged.add(request.idempotency_key)
            return


async def deliver_twice(clients: Clients, history: History, delivery: dict[str, Any]) -> None:
    """As Razorpay does it: again until answered 2xx, and then once more by mistake."""
    body = base64.b64decode(delivery["body_base64"])
    for _ in range(2):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await posted(clients, body, delivery["headers"]):
                await asyncio.sleep(0.3)
        history.deliveries += 1
        await asyncio.sleep(2.5)


async def posted(clients: Clients, body: bytes, headers: dict[str, str]) -> bool:
    try:
        answer = await clients.ingress.post("/webhooks/razorpay", content=body, headers=headers)
    except httpx.HTTPError:
        return False
    assert answer.status_code in {200, 503}, answer.text
    return answer.status_code == 200


async def a_paid_purchase(clients: Clients, buyer: str) -> list[dict[str, Any]]:
    """The deliveries about one paid credit pack, not yet sent."""
    await clients.subscriptions.ProvisionTenant(
        subscriptions_pb.ProvisionTenantRequest(tenant_id=buyer, idempotency_key="provision")
    )
    order = await clients.subscriptions.BuyCredits(
        subscriptions_pb.BuyCreditsRequest(tenant_id=buyer, idempotency_key="pack", pack_code="small")
    )
    paid = await clients.sandbox.post(f"/_sandbox/orders/{order.order_id}/pay", json={"deliver": False})
    paid.raise_for_status()
    return list(paid.json())


async def until_funded(clients: Clients, buyers: list[str]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        for buyer in buyers:
            while True:
                try:
                    answer = await clients.ledger.GetBalance(pb.GetBalanceRequest(tenant_id=buyer))
                except BillingError:
                    answer = None
                if answer is not None and answer.balance.available >= PACK_CREDITS:
                    break
                await asyncio.sleep(0.2)


def check_debits(suite: RunningSuite, tenant: str, history: History) -> None:
    """Every acknowledged debit is there once, no refused one is, and the sums agree with the mirror."""
    rows = query(
        suite,
        "SELECT idempotency_key, tx_status, amount FROM credit_transactions WHERE tenant_id = %s AND kind = 'debit'",
        tenant,
    )
    booked = {key for key, status, _ in rows if status == "posted"}
    assert booked == history.acknowledged
    assert len(booked) == FUNDED
    assert {key for key, status, _ in rows if status == "rejected"} == history.refused
    sums = query(
        suite,
        "SELECT balance, (SELECT sum(amount) FROM credit_transactions t WHERE t.tenant_id = c.tenant_id),"
        " (SELECT sum(d_posted) FROM credit_entries e WHERE e.tenant_id = c.tenant_id),"
        " (SELECT count(*) FROM credit_entries e WHERE e.tenant_id = c.tenant_id) - seq"
        " FROM tenant_credits c WHERE tenant_id = %s",
        tenant,
    )
    assert sums == [(0, 0, 0, 0)]


def check_purchases(suite: RunningSuite, buyers: list[str]) -> None:
    """One grant for each payment, however often it was told of."""
    for buyer in buyers:
        grants = query(
            suite,
            "SELECT amount FROM credit_transactions WHERE tenant_id = %s AND kind = 'grant' AND reason = 'credit_pack'",
            buyer,
        )
        assert grants == [(PACK_CREDITS,)]


def query(suite: RunningSuite, statement: str, tenant: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(suite.runtime["database"]["urls"]["billing_operator"]) as db:
        return db.execute(statement, [tenant]).fetchall()


def a_grant(tenant: str) -> funding_pb.GrantCreditsRequest:
    return funding_pb.GrantCreditsRequest(
        tenant_id=tenant,
        idempotency_key="grant:all",
        bucket=types.BUCKET_PERMANENT,
        credits=FUNDED,
        reference_id="test:all",
        reason="credit_pack",
    )


@asynccontextmanager
async def clients_of(suite: RunningSuite) -> AsyncIterator[Clients]:
    addresses, secrets = suite.runtime["addresses"], suite.runtime["secrets"]
    product, room = SecretStr(secrets["gateway_secret"]), SecretStr(secrets["room_secret"])
    async with (
        open_channel(addresses["ledger"], product) as ledger,
        open_channel(addresses["ledger"], room) as funding,
        open_channel(addresses["subscriptions"], product) as subscriptions,
        httpx.AsyncClient(base_url=suite.runtime["webhooks_http_url"], timeout=5) as ingress,
        # A kept connection may be closed by the other end just when it is used again, and nobody knows then what was done.
        httpx.AsyncClient(
            base_url=suite.runtime["sandbox_url"],
            timeout=10,
            limits=httpx.Limits(max_keepalive_connections=0),
        ) as sandbox,
    ):
        yield Clients(
            ledger_pb2_grpc.LedgerServiceStub(ledger),
            ledger_funding_pb2_grpc.LedgerFundingServiceStub(funding),
            subscriptions_pb2_grpc.SubscriptionsServiceStub(subscriptions),
            ingress,
            sandbox,
        )
