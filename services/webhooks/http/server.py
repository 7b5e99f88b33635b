"""uvicorn in the room's own loop, with the limits that it lacks."""

import asyncio
import contextlib
import functools
import resource
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from services.webhooks.http.crowd import Crowd
from services.webhooks.http.protocol import PatientProtocol
from shared import logs

_STOP_SECONDS = 5
# How often somebody looks after the clock of each connection.
_LOOK_SECONDS = 0.25
# Nobody needs more to send a delivery or to read its answer: the kernel keeps so much for each connection.
_RECEIVE_BUFFER_BYTES = 128 << 10
_SEND_BUFFER_BYTES = 64 << 10
_BACKLOG = 1024
# Files and sockets that are no connections of strangers: the database's, gRPC's, and a burst that is still to be dropped.
_OTHER_DESCRIPTORS = 256 + _BACKLOG

_log = logs.get_logger()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the room, which drains all its doors together."""
        yield


def bind(listen: str) -> socket.socket:
    """Takes the address now, so that a clash ends the start-up with its name."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SystemExit(f"WEBHOOKS_HTTP_LISTEN: {listen}: {error.strerror}") from error
    # All of them are inherited by connections. Without the first an answer, written in two pieces, waits 40 ms for the
    # sender's ACK.
    options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    if sys.platform == "linux":
        # Who vanished is found out, and what was written to him is not kept for a quarter of an hour.
        options += [
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
        ]
    for option in options:
        listener.setsockopt(*option)
    return listener


def connections_allowed(connections_max: int) -> int:
    """So many connections as wished for, or as the process may have descriptors for; it takes all that it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wished = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    if soft != resource.RLIM_INFINITY and soft < wished:
        # Some systems have a lower limit than the one they name.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wished, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= connections_max + _OTHER_DESCRIPTORS:
        return connections_max
    allowed = min(connections_max, max(16, soft // 4, soft - _OTHER_DESCRIPTORS))
    _log.warning("few_descriptors", limit=soft, connections_max=allowed)
    return allowed


async def serve_http(
    app: ASGIApp,
    listener: socket.socket,
    *,
    receive_seconds: float,
    connections_max: int,
    on_closed: Callable[[str], None] = lambda _reason: None,
) -> None:
    """Serves until cancelled, then answers what was received and closes."""
    crowd = Crowd(connections_allowed(connections_max), on_closed)
    protocol = functools.partial(PatientProtocol, crowd=crowd, receive_seconds=receive_seconds)
    server = _Server(
        uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            # Its warnings are for what any stranger can send.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )
    watching = asyncio.create_task(crowd.watch(min(_LOOK_SECONDS, receive_seconds / 4)), name="crowd")
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    host, port = listener.getsockname()[:2]
    _log.info("serving_http", address=f"{host}:{port}")
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        watching.cancel()
