"""Structured logs: one JSON object a line on stderr, with the room and the request id."""

import contextvars
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog

from shared import ids

_access: Callable[[str, float], None] | None = None

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

# Values under these names never reach a log line, whoever logs them.
_SECRET_WORDS = ("secret", "password", "signature", "authorization", "gateway_key", "cvv", "card_number")


def new_request_id() -> str:
    """A fresh request id, for work that no caller named."""
    return ids.new_id("req")


def configure(room: str, level: str = "info") -> None:
    """Makes every log line of this process JSON; called once by each `__main__`."""
    global _access
    threshold = logging.getLevelNamesMapping()[level.upper()]
    _access = _access_writer(room) if threshold <= logging.INFO else _write_nothing
    structlog.configure(
        processors=[
            # Not by a context variable: work in a context of its own would log without its room.
            lambda _logger, _method, event: {"room": room, **event},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            _add_request_id,
            _redact,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard module; only their warnings are worth a line.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)


def access(method: str, milliseconds: float) -> None:
    """The line of a call that went well: `info("rpc", …)` word for word, at a fraction of its cost.

    Every call ends with one, so this is the one line that is worth a path of its own.
    """
    if _access is None:
        get_logger().info("rpc", method=method, code="OK", ms=milliseconds)
    else:
        _access(method, milliseconds)


def get_logger() -> Any:
    """A structlog logger: `log.info("event_in_words", field=value)`."""
    return structlog.get_logger()


def _access_writer(room: str) -> Callable[[str, float], None]:
    # Nothing in it needs escaping: methods are those that we serve, request ids are checked where they come in.
    start, write = f'{{"room": {json.dumps(room)}, "method": "', sys.stderr.write
    second, prefix = 0, ""

    def line(method: str, milliseconds: float) -> None:
        nonlocal second, prefix
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if seconds != second:
            second, prefix = seconds, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        at = f"{prefix}.{nanoseconds // 1000:06d}Z"
        named = f', "request_id": "{current}"' if (current := request_id.get()) else ""
        write(
            f'{start}{method}", "code": "OK", "ms": {milliseconds}, "event": "rpc", "level": "info", "at": "{at}"{named}}}\n'
        )

    return line


def _write_nothing(_method: str, _milliseconds: float) -> None:
    pass


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    if current := request_id.get():
        event.setdefault("request_id", current)
    return event


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = "[redacted]"
    return event
