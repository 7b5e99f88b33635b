"""Whether the rooms serve, and how fast they say so. Their health needs no key."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

SOURCE = "grpc.health.v1.Health/Check"
PATIENCE_SECONDS = 2.0


async def ask(addresses: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each room."""
    return list(await asyncio.gather(*(_ask(room, address) for room, address in addresses.items())))


async def _ask(room: str, address: str) -> dict[str, Any]:
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        began = time.monotonic()
        try:
            answer = await HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS, wait_for_ready=False
            )
            said = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status).lower()
        except grpc.RpcError as error:
            said = {grpc.StatusCode.DEADLINE_EXCEEDED: "hangs", grpc.StatusCode.UNAVAILABLE: "down"}.get(
                error.code(), str(error.code().name).lower()
            )
        took = round((time.monotonic() - began) * 1000, 1)
    return {"room": room, "address": address, "says": said, "milliseconds": took}
