"""Knows when a door answers."""

from __future__ import annotations

import os

# Read when grpc is imported: the launcher forks only to start programs, and each fork would be complained of.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import asyncio
from dataclasses import dataclass
from typing import Protocol

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

POLL_SECONDS = 0.05
ANSWER_SECONDS_MAX = 1.0


class Door(Protocol):
    """Something that a process listens at."""

    @property
    def name(self) -> str:
        """What a person calls it."""

    async def answers(self) -> bool:
        """Whether who calls now is served."""


@dataclass(frozen=True)
class GrpcDoor:
    """A room, by its grpc.health.v1."""

    name: str
    address: str

    async def answers(self) -> bool:
        # A proxy in the environment is for the world outside.
        directly = [("grpc.enable_http_proxy", 0)]
        async with grpc.aio.insecure_channel(self.address, options=directly) as channel:
            ask = health_pb2_grpc.HealthStub(channel).Check
            try:
                answer = await ask(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS_MAX)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass(frozen=True)
class HttpDoor:
    """An HTTP server, by its /healthz."""

    name: str
    url: str

    async def answers(self) -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_SECONDS_MAX) as client:
            try:
                return (await client.get(f"{self.url}/healthz")).status_code == 200
            except httpx.HTTPError:
                return False


async def until_open(door: Door) -> None:
    """Returns when the door answers."""
    while not await door.answers():  # noqa: ASYNC110 - another process's state; nothing here could set an event
        await asyncio.sleep(POLL_SECONDS)
