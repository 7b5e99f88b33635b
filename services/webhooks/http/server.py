"""uvicorn in the room's own loop, with the limits that it lacks."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared import logs

# What a whole set of headers may weigh; uvicorn's parser has no limit of its own.
_HEADER_BYTES_MAX = 32 << 10
_STOP_SECONDS = 5

_log = logs.get_logger()


class PatientProtocol(HttpToolsProtocol):
    """Closes connections that take longer than allowed for a whole request, or send endless headers."""

    def __init__(self, *args: Any, receive_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_seconds = receive_seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._header_bytes: int | None = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._header_bytes is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        # Counted after parsing: a body that came with its headers has ended the count already.
        if self._header_bytes is not None and self._header_bytes > _HEADER_BYTES_MAX:
            self._close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0 if self._header_bytes is None else self._header_bytes
        if self._deadline is None:
            self._start_deadline()

    def on_headers_complete(self) -> None:
        self._header_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_deadline()
        super().on_message_complete()

    def _start_deadline(self) -> None:
        # A little later than the one for the body, which still answers 408.
        self._deadline = self.loop.call_later(self._receive_seconds + 0.5, self._close)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()


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
        listener = socket.create_server((host, int(port)), family=family, backlog=1024)
    except OSError as error:
        raise SystemExit(f"WEBHOOKS_HTTP_LISTEN: {listen}: {error.strerror}") from error
    # Inherited by connections. Without it an answer, written in two pieces, waits 40 ms for the sender's ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def serve_http(
    app: Starlette, listener: socket.socket, *, receive_seconds: float, connections_max: int
) -> None:
    """Serves until cancelled, then answers what was received and closes."""
    server = _Server(
        uvicorn.Config(
            app,
            http=functools.partial(PatientProtocol, receive_seconds=receive_seconds),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            # Its warnings are for what any stranger can send.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=connections_max,
            backlog=1024,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    host, port = listener.getsockname()[:2]
    _log.info("serving_http", address=f"{host}:{port}")
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
