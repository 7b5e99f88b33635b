"""What Prometheus may ask of a room: the numbers every room has, and the small HTTP door that shows them all.

RPC metrics have the names of go-grpc-prometheus, so that dashboards made for any gRPC service need few changes; codes
are spelled as in our logs. Numbers that lie in the database are read when somebody asks, at most once a second.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import uvicorn
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared import logs

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Two Prometheus and a curious operator cost the database one reading.
FRESH_SECONDS = 1.0
# Whoever asks has an answer well within five seconds, whatever the database does.
REFRESH_SECONDS_MAX = 4.0
_CONNECTIONS_MAX = 32

Refresh = Callable[[], Awaitable[None]]

# A second series for each, that says only when the process began to count.
disable_created_metrics()  # type: ignore[no-untyped-call]

_handled = Counter(
    "grpc_server_handled",
    "Calls that were answered, by what was answered; grpc_method is empty where no known method was asked for",
    ["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
)
_handling_seconds = Histogram(
    "grpc_server_handling_seconds",
    "From the arrival of a call to its answer; for a stream, to its end",
    ["grpc_type", "grpc_service", "grpc_method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
_audit_entries = Counter(
    "billing_audit_log_entries", "Lines written to the audit log, by the action", ["room", "action"]
)
_audit_errors = Counter(
    "billing_audit_log_errors",
    "Lines of the audit log that could not be written; their action failed",
    ["room"],
)
_refresh_failures = Counter(
    "billing_metrics_refresh_failures", "Times that numbers could not be read and the last ones were shown"
)
_refreshed_at = Gauge(
    "billing_metrics_refreshed_timestamp_seconds", "When numbers that lie in the database were last read"
)

# Two rooms look for findings, and tests run both in one process.
_findings_open = Gauge(
    "billing_integrity_findings_open",
    "Findings of the integrity audit that nobody has resolved",
    ["room", "check_type", "severity"],
)
_found: set[tuple[str, str, str]] = set()

_log = logs.get_logger()


class RpcMeter:
    """Counts the calls of one method; its children are looked up once."""

    def __init__(self, method: str, kind: str) -> None:
        service, _, name = method.lstrip("/").rpartition("/")
        self._labels = (kind, service, name)
        self._seconds = _handling_seconds.labels(*self._labels)
        self._by_code: dict[str, Counter] = {}

    def handled(self, code: str, seconds: float) -> None:
        """One call was answered."""
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = _handled.labels(*self._labels, code)
        counter.inc()
        self._seconds.observe(seconds)


def refused(service: str, code: str) -> None:
    """One call was refused before it had a method; `service` is one of ours or empty: strangers make names up."""
    _handled.labels("unary", service, "", code).inc()


def expect(room: str) -> None:
    """Counts this room's failures from nothing: a rate needs a first value."""
    _audit_errors.labels(room)


def audited(room: str, action: str) -> None:
    """One line of the audit log was written."""
    _audit_entries.labels(room, action).inc()


def audit_failed(room: str) -> None:
    """One line of the audit log could not be written."""
    _audit_errors.labels(room).inc()


def show_findings(room: str, open_findings: Mapping[tuple[str, str], int]) -> None:
    """The open findings of a room by check type and severity; kinds that are no longer open fall to 0."""
    now = {(room, check_type, severity): count for (check_type, severity), count in open_findings.items()}
    _found.update(now)
    for labels in _found:
        if labels[0] == room:
            _findings_open.labels(*labels).set(now.get(labels, 0))


class _Page(CollectorRegistry):
    """Several registries as one: a name that two of them know has one heading, as Prometheus' format asks."""

    def __init__(self, *registries: CollectorRegistry) -> None:
        super().__init__()
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        """Every family once, with the samples of all."""
        found: dict[str, Metric] = {}
        for family in (family for registry in self._registries for family in registry.collect()):
            if family.name in found:
                found[family.name].samples.extend(family.samples)
            else:
                found[family.name] = family
        yield from found.values()


class Exposition:
    """Everything that one process tells Prometheus."""

    def __init__(self, refresh: Refresh | None = None, *, also: CollectorRegistry | None = None) -> None:
        self._refresh = refresh
        self._also = also
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def text(self) -> bytes:
        """All numbers in Prometheus' text format; what cannot be read now is as it was, and that is counted."""
        if self._refresh is not None:
            await self._freshen(self._refresh)
        return generate_latest(REGISTRY if self._also is None else _Page(REGISTRY, self._also))

    async def _freshen(self, refresh: Refresh) -> None:
        if self._reading is None or self._reading.done():
            if time.monotonic() - self._read_at <= FRESH_SECONDS:
                return
            self._read_at = time.monotonic()
            self._reading = asyncio.create_task(self._read(refresh), name="metrics refresh")
        # Whoever comes meanwhile waits for the same reading, and none for longer than one may take. A reading that
        # does not even end when it is cancelled, as on a connection that swallows everything, is left to end alone.
        left = self._read_at + REFRESH_SECONDS_MAX - time.monotonic()
        await asyncio.wait([self._reading], timeout=max(0.0, left))

    async def _read(self, refresh: Refresh) -> None:
        reading = asyncio.ensure_future(refresh())
        try:
            done, _ = await asyncio.wait([reading], timeout=REFRESH_SECONDS_MAX - 0.1)
            if not done:
                raise TimeoutError
            reading.result()
        except Exception as error:
            _refresh_failures.inc()
            _log.warning("metrics_not_refreshed", error=logs.brief(error))
        else:
            _refreshed_at.set(time.time())
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the room, which drains all its doors together."""
        yield


def bind(listen: str, setting: str) -> socket.socket:
    """Takes the address now, so that a clash ends the start-up with a sentence that names the setting."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        listener.bind((host, int(port)))
        listener.listen()
    except (OSError, OverflowError, ValueError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else "that is no address"
        raise SystemExit(f"{setting}: metrics cannot be shown on {listen}: {why}") from error
    return listener


def door(exposition: Exposition) -> Starlette:
    """The HTTP application: `GET /metrics`, and nothing else."""

    async def scrape(_request: Request) -> Response:
        return Response(await exposition.text(), media_type=MEDIA_TYPE)

    app = Starlette(routes=[Route("/metrics", scrape, methods=["GET"])])
    # It would send people to wherever the Host header says.
    app.router.redirect_slashes = False
    return app


async def serve_metrics(exposition: Exposition, listener: socket.socket) -> None:
    """Answers `GET /metrics` until cancelled."""
    server = _Server(
        uvicorn.Config(
            door(exposition),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS_MAX,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
        )
    )
    host, port = listener.getsockname()[:2]
    _log.info("showing_metrics", address=f"{host}:{port}")
    serving: asyncio.Task[Any] = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
