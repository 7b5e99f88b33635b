"""Structured logs: one JSON object a line on stderr, with the room and the request id."""

import contextvars
import errno
import json
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import structlog

from shared import ids

_access: Callable[[str, float], None] | None = None
_often: Callable[[str, Mapping[str, str | float | None]], None] | None = None

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

# Values under these names never reach a log line, whoever logs them.
_SECRET_WORDS = ("secret", "password", "signature", "authorization", "gateway_key", "cvv", "card_number")


def new_request_id() -> str:
    """A fresh request id, for work that no caller named."""
    return ids.new_id("req")


def configure(room: str, level: str = "info") -> None:
    """Makes every log line of this process JSON; called once by each `__main__`."""
    global _access, _often
    threshold = logging.getLevelNamesMapping()[level.upper()]
    _access = _access_writer(room) if threshold <= logging.INFO else _write_nothing
    _often = _often_writer(room) if threshold <= logging.INFO else _write_nothing
    structlog.configure(
        processors=[
            # Not by a context variable: work in a context of its own would log without its room.
            lambda _logger, _method, event: {"room": room, **event},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            _add_request_id,
            _redact,
            _tell_exception,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard module; only their warnings are worth a line.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LibraryLine(room))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    sys.excepthook = _tell_the_end
    # Python's own would print what the exceptions say.
    sys.unraisablehook = lambda told: get_logger().error("unraisable", exc_info=told.exc_value)
    threading.excepthook = lambda told: get_logger().error("thread_crashed", exc_info=told.exc_value)


def access(method: str, milliseconds: float) -> None:
    """The line of a call that went well: `info("rpc", …)` word for word, at a fraction of its cost.

    Every call ends with one, so this is the one line that is worth a path of its own.
    """
    if _access is None:
        get_logger().info("rpc", method=method, code="OK", ms=milliseconds)
    else:
        _access(method, milliseconds)


def often(event: str, **fields: str | float | None) -> None:
    """`info(event, …)` word for word, at a third of its cost: for lines that every delivery writes."""
    if _often is None:
        get_logger().info(event, **fields)
    else:
        _often(event, fields)


def get_logger() -> Any:
    """A structlog logger: `log.info("event_in_words", field=value)`."""
    return structlog.get_logger()


def _access_writer(room: str) -> Callable[[str, float], None]:
    # Nothing in it needs escaping: methods are those that we serve, request ids are checked where they come in.
    start, write, now = f'{{"room": {json.dumps(room)}, "method": "', sys.stderr.write, _stamps()

    def line(method: str, milliseconds: float) -> None:
        named = f', "request_id": "{current}"' if (current := request_id.get()) else ""
        write(
            f'{start}{method}", "code": "OK", "ms": {milliseconds}, "event": "rpc", "level": "info", '
            f'"at": "{now()}"{named}}}\n'
        )

    return line


def _often_writer(room: str) -> Callable[[str, Mapping[str, str | float | None]], None]:
    start, write, now = f'{{"room": {json.dumps(room)}, ', sys.stderr.write, _stamps()

    def line(event: str, fields: Mapping[str, str | float | None]) -> None:
        told = {name: "[redacted]" if _is_secret(name) else value for name, value in fields.items()}
        told |= {"event": event, "level": "info", "at": now()}
        if current := request_id.get():
            told["request_id"] = current
        write(f"{start}{json.dumps(told)[1:]}\n")

    return line


def _stamps() -> Callable[[], str]:
    # Years to seconds are rendered once a second.
    second, prefix = 0, ""

    def now() -> str:
        nonlocal second, prefix
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if seconds != second:
            second, prefix = seconds, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{prefix}.{nanoseconds // 1000:06d}Z"

    return now


class _LibraryLine(logging.Formatter):
    """A library's warning as a line of ours, its exception without values."""

    def __init__(self, room: str) -> None:
        super().__init__()
        self._room = room

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        # Not what its arguments come to, nor what follows its first line or a bracket: asyncio shows exceptions there,
        # and what callbacks were given.
        said = (
            re.split(r"[\n<({\[]", record.msg, maxsplit=1)[0].rstrip()
            if isinstance(record.msg, str)
            else type(record.msg).__name__
        )
        line = {"room": self._room, "event": said, "logger": record.name, "level": record.levelname.lower()}
        line["at"] = datetime.fromtimestamp(record.created, UTC).isoformat()
        if error is not None:
            line["exception"] = described(error)
        return json.dumps(line)


def described(error: BaseException) -> str:
    """An exception and its causes with their places in the code, and none of their values.

    What an exception says may quote anything: a row that broke a constraint, a body, a setting. Only what says by its
    nature what happened is kept of it: PostgreSQL's code and the names of table and constraint, a refusal's reason.
    """
    told, seen = list[str](), set[int]()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = traceback.format_list(traceback.extract_tb(current.__traceback__))
        told.append("".join([*frames, _named(current)]))
        if isinstance(current, BaseExceptionGroup):
            told += [described(each) for each in current.exceptions[:5]]
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nbecause of\n".join(told)


def brief(error: BaseException) -> str:
    """An exception in a word, for lines that need no places: `psycopg.errors.DiskFull(code=53100)`."""
    told = getattr(error, "orig", None)  # SQLAlchemy's own says only that the driver raised one
    return _named(told if isinstance(told, BaseException) else error)


def _named(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    facts = {"code": getattr(error, "sqlstate", None), "reason": getattr(error, "reason", None)}
    if isinstance(error, OSError) and kind.__module__ == "builtins":
        facts["code"] = errno.errorcode.get(error.errno or 0)
    diagnostics = getattr(error, "diag", None)
    for fact in ("schema_name", "table_name", "column_name", "constraint_name"):
        facts[fact] = getattr(diagnostics, fact, None)
    known = [f"{fact}={value}" for fact, value in facts.items() if isinstance(value, str) and value]
    return f"{name}({', '.join(known)})"


def _tell_the_end(kind: type[BaseException], error: BaseException, _traceback: object) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        get_logger().error("crashed", exc_info=error)


def _tell_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["exception"] = described(error)
    return event


def _write_nothing(*_: object) -> None:
    pass


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    if current := request_id.get():
        event.setdefault("request_id", current)
    return event


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    for name in event:
        if _is_secret(name):
            event[name] = "[redacted]"
    return event


@cache
def _is_secret(name: str) -> bool:
    # Names are written in the code: there are few of them.
    return any(word in name.lower() for word in _SECRET_WORDS)
