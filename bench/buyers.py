"""Tenants that subscribe: `python -m bench.buyers` provisions them and begins their purchases over the product's door."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from billing.subscriptions.v1 import subscriptions_pb2_grpc as pb_grpc

from bench import child

TIMEOUT_SECONDS = 30.0
AT_ONCE = 12


async def handle(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Every tenant with the subscription that the provider made for it."""
    metadata = (("x-gateway-key", order["key"]),)
    waiting, bought = list(order["tenants"]), []

    async def one(stub: pb_grpc.SubscriptionsServiceStub, tenant: str) -> dict[str, Any]:
        provisioned = pb.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
        await stub.ProvisionTenant(provisioned, metadata=metadata, timeout=TIMEOUT_SECONDS)
        wanted = pb.CheckoutRequest(
            tenant_id=tenant,
            idempotency_key="buy",
            plan_code=order["plan"],
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
        answer = await stub.Checkout(wanted, metadata=metadata, timeout=TIMEOUT_SECONDS)
        return {
            "tenant_id": tenant,
            "subscription_id": answer.checkout.subscription_id,
            "plan_code": order["plan"],
            "intent_id": answer.checkout.intent_id,
            "total_paise": answer.checkout.total_paise,
            "since": int(time.time()),
        }

    async with grpc.aio.insecure_channel(order["address"]) as channel:
        stub = pb_grpc.SubscriptionsServiceStub(channel)

        async def worker() -> None:
            while waiting:
                bought.append(await one(stub, waiting.pop()))

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return bought


if __name__ == "__main__":
    child.serve(handle)
