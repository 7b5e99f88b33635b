"""uvicorn's HTTP protocol with the limits that it lacks: on time, on headers, on requests in a row, on slow readers."""

import asyncio
import json
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from services.webhooks.http.body import WHOLE
from services.webhooks.http.crowd import Crowd

# What a whole set of headers, or of trailers, may weigh, and how many there may be; uvicorn's parser has no limit.
_HEADER_BYTES_MAX = 32 << 10
_HEADERS_MAX = 128
# Requests that came before the one ahead of them was answered.
_PIPELINE_MAX = 8
# How much is parsed before the limits are looked at again.
_SLICE_BYTES = 16 << 10
# How long an answer may lie here because nobody reads it.
_WRITE_SECONDS = 5.0
# How long a sender may take to notice that it was refused.
_LINGER_SECONDS = 1.0

_MALFORMED = (400, "MALFORMED", "this is not HTTP/1.1")
_LARGE_HEADERS = (431, "HEADERS_TOO_LARGE", "too many headers, or too large ones")
_FULL = (503, "NOT_STORED", "too many connections; send it again")
_PHRASES = {400: b"Bad Request", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}

_Refusal = tuple[int, str, str]


class _LargeHeaders(Exception):
    """Ends the parsing."""


class PatientProtocol(HttpToolsProtocol):
    """Answers each request for itself and in order, or closes; waits for nobody longer than allowed."""

    def __init__(self, *args: Any, crowd: Crowd, receive_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._crowd = crowd
        self._receive_seconds = receive_seconds
        self._running: RequestResponseCycle | None = None
        self._stopped = False  # nothing that still comes is read
        self._in_headers = False
        self._headers_complete = False
        self._ignoring_upgrade = False
        self._header_bytes = 0
        self._header_count = 0
        self._unfinished_bytes = 0
        self._complete_by: float | None = None
        self._unread_since: float | None = None

    # What the transport calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of every answer left unread
        if self._crowd.enter(self):
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.leave(self)
        if self._running is not None and self._running is not self.cycle:
            self._running.disconnected = True
        self._unset_keepalive_if_required()  # which uvicorn leaves running after a reset, and it holds all this in memory
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        if not self._answering:
            return False
        # It has said everything and still listens.
        self._close_when_answered()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()
        self._crowd.waiting(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None
        if self._answering:
            self._crowd.working(self)

    def data_received(self, data: bytes) -> None:
        if len(data) <= _SLICE_BYTES:
            self._parse(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), _SLICE_BYTES):
            self._parse(view[start : start + _SLICE_BYTES])

    def _parse(self, data: bytes | memoryview) -> None:
        if self._stopped or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._complete_by is None and not self._answering:
            # Also for what begins no request, such as empty lines.
            self._expect_request()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._ignoring_upgrade:
                self._parse_without_upgrade(bytes(data[upgrade.args[0] :]))
            else:
                self._refuse(_MALFORMED)
        except httptools.HttpParserError as error:
            self._refuse(_LARGE_HEADERS if isinstance(error.__context__, _LargeHeaders) else _MALFORMED)
        else:
            self._unfinished_bytes = self._unfinished_bytes + len(data) if self._in_headers else 0
            if self._unfinished_bytes > _HEADER_BYTES_MAX + _SLICE_BYTES:
                self._refuse(_LARGE_HEADERS)
            elif len(self.pipeline) > _PIPELINE_MAX:
                self._close_when_answered()

    def _parse_without_upgrade(self, rest: bytes) -> None:
        # Whoever offers another protocol is content with this one, but the parser would leave out the request's body.
        self._ignoring_upgrade = False
        head = b"%b %b HTTP/1.1\r\n" % (self.parser.get_method(), self.url)
        head += b"".join(b"%b: %b\r\n" % each for each in self.headers if each[0] != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self._parse(head + b"\r\n" + rest)

    # What the parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers, self._headers_complete = True, False
        self._header_bytes = self._header_count = 0
        self._expect_request()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        self._header_count += 1
        if self._header_count > _HEADERS_MAX:
            raise _LargeHeaders
        if not self._headers_complete:  # trailers are none of ours: nobody verified the body by them
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers, self._headers_complete = False, True
        self._header_bytes = self._header_count = 0
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._ignoring_upgrade = True
            return
        if self.parser.get_http_version() != "1.1":
            self.expect_100_continue = False  # who speaks an older one would take it for the answer
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._ignoring_upgrade:
            return
        super().on_message_complete()
        self.scope["state"][WHOLE] = True
        self._complete_by = None
        if self._answering and self._unread_since is None:
            self._crowd.working(self)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _HEADER_BYTES_MAX:
            raise _LargeHeaders

    # What uvicorn calls

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering:
            self._crowd.waiting(self)

    def shutdown(self) -> None:
        if self._answering:
            self._close_when_answered()
        else:
            super().shutdown()

    # What the crowd calls

    def look(self, now: float) -> None:
        if self._unread_since is not None:
            if now - self._unread_since > _WRITE_SECONDS:
                self.drop("not_reading")
        elif self._complete_by is not None and now > self._complete_by and not self._answering:
            if not self._stopped:
                self._crowd.closed("too_slow")
            self._complete_by = None
            self.transport.close()

    def drop(self, why: str) -> None:
        self._crowd.closed(why)
        self._stopped = True
        self.transport.abort()

    def turn_away(self) -> None:
        self._end(_FULL)

    # Ends

    @property
    def _answering(self) -> bool:
        """A whole request is here and its answer is not yet written."""
        return (
            self._running is not None and not self._running.response_complete and not self._running.more_body
        )

    def _expect_request(self) -> None:
        # A little later than the deadline for the body, which still answers 408.
        self._complete_by = self.loop.time() + self._receive_seconds + 0.5
        if not self._answering:
            self._crowd.waiting(self)

    def _refuse(self, refusal: _Refusal) -> None:
        """Ends the connection: after the requests that are here as a whole are answered, or at once with a refusal."""
        if self._answering:
            self._close_when_answered()
            return
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
            if running.response_started:
                self._stopped = True
                self.transport.close()
                return
        self._crowd.closed("malformed")
        self._end(refusal)

    def _close_when_answered(self) -> None:
        self._stopped = True
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # it will never be whole
        last = self.pipeline[0][0] if self.pipeline else self._running
        if last is not None:
            last.keep_alive = False

    def _end(self, refusal: _Refusal) -> None:
        status, code, message = refusal
        body = json.dumps({"error": {"code": code, "message": message}}, separators=(",", ":")).encode()
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        self._stopped = True
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
            % (status, _PHRASES[status], len(body), retry, body)
        )
        # Closed while bytes are on their way it would be reset, and the answer lost with it.
        self.transport.write_eof()
        self._complete_by = self.loop.time() + _LINGER_SECONDS
