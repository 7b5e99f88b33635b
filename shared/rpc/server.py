"""Starts a room's gRPC server, keeps it honest about its health, and drains it when asked to stop."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shared import logs, metrics, tracing
from shared.config import RoomSettings
from shared.ops.limits import Limiter, per_quarter_hour
from shared.rpc.auth import Audience, Keyring
from shared.rpc.gate import Gate

__all__ = ["Audience", "Door", "running_server", "serve"]

_OPTIONS = [
    # Two servers on one port would share it silently; a clash must fail instead.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
_PROBE_EVERY_SECONDS = 2.0
# Between telling that we leave and leaving: what has arrived by now is taken up instead of dropped as CANCELLED.
_FAREWELL_SECONDS = 0.25

_log = logs.get_logger()


@dataclass(frozen=True)
class Door:
    """One gRPC service of a room and who may call it."""

    service_name: str
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object
    audience: Audience


@asynccontextmanager
async def running_server(
    *,
    room: str,
    listen: str,
    settings: RoomSettings,
    doors: Sequence[Door],
    limiter: Limiter | None = None,
) -> AsyncIterator[tuple[str, health.aio.HealthServicer, grpc.aio.Server]]:
    """A started server with the whole stack; answers (its address, its health, itself). Port 0 takes a free one."""
    gate = Gate(
        room=room,
        keyring=Keyring(settings.gateway_secret, settings.operator_secret, settings.room_secret),
        audiences={door.service_name: door.audience for door in doors},
        shed_after_seconds=settings.shed_after_ms / 1000,
        limiter=limiter,
        admin_limit=per_quarter_hour(calls) if (calls := settings.admin_calls_per_15_minutes) else None,
    )
    server = grpc.aio.server(interceptors=[gate], options=_OPTIONS)
    for door in doors:
        door.add(door.servicer, server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if settings.reflection:
        names = [door.service_name for door in doors] + [health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        raise SystemExit(
            f"cannot listen on {listen}: it is taken, or not an address of this machine"
        ) from None
    await server.start()
    try:
        yield f"{listen.rpartition(':')[0]}:{port}", servicer, server
    finally:
        await server.stop(grace=0)


async def serve(
    *,
    room: str,
    listen: str,
    settings: RoomSettings,
    doors: Sequence[Door],
    limiter: Limiter | None = None,
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    probe: Callable[[], Awaitable[None]] | None = None,
    on_stop: Callable[[], Awaitable[None]] | None = None,
    grace_seconds: float = 8.0,
    metrics_listen: str = "",
    exposition: metrics.Exposition | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains: health first, background work, calls in flight, `on_stop`.

    `background` runs beside the doors; one that ends by itself ends the room, so that its supervisor restarts it.
    `limiter` counts the calls at operators' doors; without one they are not limited.
    `probe` fails while the room cannot do its work; health follows it.
    `metrics_listen` is where Prometheus asks, empty for nowhere; `exposition` is what it is told there.
    """
    metrics.expect(room)
    tracing.start(room, settings.otel_exporter_otlp_endpoint)
    shown = metrics.bind(metrics_listen, f"{room.upper()}_METRICS_LISTEN") if metrics_listen else None
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running_server(room=room, listen=listen, settings=settings, doors=doors, limiter=limiter) as (
        address,
        servicer,
        server,
    ):
        tasks = [
            asyncio.create_task(work(), name=getattr(work, "__name__", "background")) for work in background
        ]
        tasks.append(asyncio.create_task(_follow_health(servicer, probe), name="health"))
        if shown is not None:
            showing = metrics.serve_metrics(exposition or metrics.Exposition(), shown)
            tasks.append(asyncio.create_task(showing, name="metrics"))
        waiter = asyncio.create_task(stop.wait(), name="stop")
        _log.info("serving", address=address)
        done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
        await servicer.enter_graceful_shutdown()
        _log.info("draining")
        for task in tasks:
            task.cancel()
        await asyncio.sleep(_FAREWELL_SECONDS)
        await server.stop(grace_seconds)
        await asyncio.gather(*tasks, return_exceptions=True)
        if on_stop is not None:
            await on_stop()
        await tracing.stop()
        _log.info("stopped")
    _raise_what_ended(done - {waiter})


async def _follow_health(
    servicer: health.aio.HealthServicer, probe: Callable[[], Awaitable[None]] | None
) -> None:
    serving = None
    while True:
        healthy = True
        if probe is not None:
            try:
                async with asyncio.timeout(_PROBE_EVERY_SECONDS):
                    await probe()
            except Exception as error:
                healthy = False
                if serving is not False:
                    _log.error("unhealthy", error=logs.brief(error))
        if healthy != serving:
            serving = healthy
            states = health_pb2.HealthCheckResponse
            await servicer.set("", states.SERVING if healthy else states.NOT_SERVING)
        await asyncio.sleep(_PROBE_EVERY_SECONDS)


def _raise_what_ended(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            task.result()
        raise SystemExit(f"background work ended by itself: {task.get_name()}")
