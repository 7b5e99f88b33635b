"""The load generator: `python -m bench.load`. The same one for our debits, our batches, limits and the echo."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any

import grpc
from billing.ledger.v1 import ledger_funding_pb2 as funding
from billing.ledger.v1 import ledger_funding_pb2_grpc, types_pb2
from billing.ledger.v1 import ledger_pb2 as pb

from bench import child, loops

SERVICE = "/billing.ledger.v1.LedgerService"
TIMEOUT_SECONDS = 30.0
LIMIT = "blog.posts"

_channels: dict[str, grpc.aio.Channel] = {}


def channel(address: str) -> grpc.aio.Channel:
    if address not in _channels:
        _channels[address] = grpc.aio.insecure_channel(
            address, options=[("grpc.max_receive_message_length", 16 * 1024 * 1024)]
        )
    return _channels[address]


def debit(tenants: list[str]) -> pb.DebitRequest:
    """One credit, under a key that is random as callers' keys are."""
    return pb.DebitRequest(
        tenant_id=random.choice(tenants),
        idempotency_key=os.urandom(12).hex(),
        credits=1,
        reason="bench.debit",
    )


def batch(tenants: list[str], items: int) -> pb.BatchDebitRequest:
    return pb.BatchDebitRequest(items=[pb.BatchDebitItem(debit=debit(tenants)) for _ in range(items)])


def call(order: dict[str, Any]) -> loops.Call:
    """One call of the kind ordered. Answers stay bytes where nothing in them is looked at: the client is not measured."""
    method, tenants, items = order["method"], order["tenants"], order.get("items", 1)
    parse = pb.BatchDebitResponse.FromString if method == "BatchDebit" else None
    ask: Any = channel(order["address"]).unary_unary(f"{SERVICE}/{method}", response_deserializer=parse)
    key = ("x-gateway-key", order["key"])
    # Built beforehand where building would take a part of the window.
    ready = [batch(tenants, items).SerializeToString() for _ in range(order.get("ready", 0))]

    def request() -> bytes:
        if method == "BatchDebit":
            return ready.pop() if ready else batch(tenants, items).SerializeToString()
        if method == "CheckLimit":
            return pb.CheckLimitRequest(
                tenant_id=random.choice(tenants),
                limit_key=LIMIT,
                requested=1,
                max_staleness_ms=order["max_staleness_ms"],
            ).SerializeToString()
        return debit(tenants).SerializeToString()

    async def one() -> int:
        body = request()
        metadata = (key, ("x-sent-ms", str(time.time_ns() // 1_000_000)))
        answer = await ask(body, metadata=metadata, timeout=TIMEOUT_SECONDS)
        if method == "BatchDebit":
            return sum(result.HasField("debit") for result in answer.results)
        return 1

    return one


async def provision(order: dict[str, Any]) -> int:
    """Two lots for each tenant, far more than is ever spent, and one limit far away."""
    stub = ledger_funding_pb2_grpc.LedgerFundingServiceStub(channel(order["address"]))
    metadata = (("x-gateway-key", order["key"]),)
    waiting = list(order["tenants"])
    limit = types_pb2.Limit(key="posts", value=10**9)
    service = types_pb2.ServiceEntitlement(service_code="blog", enabled=True, limits=[limit])

    async def one(tenant: str) -> None:
        for bucket in ("SUBSCRIPTION", "PERMANENT"):
            grant = funding.GrantCreditsRequest(
                tenant_id=tenant,
                idempotency_key=f"bench-{bucket}",
                bucket=types_pb2.Bucket.Value(f"BUCKET_{bucket}"),
                credits=10**11,
                reference_id=f"bench-{bucket}",
                reason="bench.grant",
            )
            if bucket == "SUBSCRIPTION":
                grant.expires_at.FromSeconds(int(time.time()) + 30 * 86400)
            await stub.GrantCredits(grant, metadata=metadata, timeout=TIMEOUT_SECONDS)
        entitlements = funding.SetEntitlementsRequest(
            tenant_id=tenant, idempotency_key="bench", version=1, plan_code="bench", services=[service]
        )
        await stub.SetEntitlements(entitlements, metadata=metadata, timeout=TIMEOUT_SECONDS)

    async def worker() -> None:
        while waiting:
            await one(waiting.pop())

    await asyncio.gather(*(worker() for _ in range(16)))
    return len(order["tenants"])


async def handle(order: dict[str, Any]) -> Any:
    if order["do"] == "provision":
        return await provision(order)
    if order["do"] == "open":
        return await loops.open_(
            call(order), rate=order["rate"], seconds=order["seconds"], seed=order["seed"]
        )
    if order["do"] == "counted":
        return await loops.counted(call(order), count=order["count"], callers=order["callers"])
    return await loops.closed(
        call(order),
        warm_seconds=order["warm_seconds"],
        seconds=order["seconds"],
        callers=order.get("callers", loops.CALLERS),
    )


if __name__ == "__main__":
    child.serve(handle)
