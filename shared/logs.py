"""Structured logs: one JSON object a line on stderr, with the room and the request id."""

import contextvars
import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from shared import ids

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

# Values under these names never reach a log line, whoever logs them.
_SECRET_WORDS = ("secret", "password", "signature", "authorization", "gateway_key", "cvv", "card_number")


def new_request_id() -> str:
    """A fresh request id, for work that no caller named."""
    return ids.new_id("req")


def configure(room: str, level: str = "info") -> None:
    """Makes every log line of this process JSON; called once by each `__main__`."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
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


def get_logger() -> Any:
    """A structlog logger: `log.info("event_in_words", field=value)`."""
    return structlog.get_logger()


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    if current := request_id.get():
        event.setdefault("request_id", current)
    return event


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = "[redacted]"
    return event
