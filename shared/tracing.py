"""Traces, for deployments that collect them: which room asked which, with what answer, under which request id.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set; then every call costs a span, and the packages of the extra `traces` have
to be there. A span never holds what a message said, and no exception: both may quote anything.
"""

import asyncio
import importlib
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from typing import Any, Protocol

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"

# What has not arrived at the collector by then is lost: a room does not wait for it to stop.
_FLUSH_SECONDS = 3.0

Headers = tuple[tuple[str, str], ...]
Behaviour = Callable[[Any, Any], Awaitable[Any]]


class Spans(Protocol):
    """What makes spans; `shared.spans` has the one there is."""

    def served(self, method: str, behaviour: Behaviour) -> Behaviour:
        """The behaviour, each call of it in a span that continues the caller's trace."""

    def answered(self, code: str) -> None:
        """The call that is being served was answered."""

    def calling(self, method: str, request_id: str) -> AbstractContextManager[Headers]:
        """A span around a call of another room, and the metadata that carries it there."""

    def working(self, name: str, facts: dict[str, str | int]) -> AbstractContextManager[None]:
        """A span around work that no call asked for."""

    def carry_into(self, other: Context) -> None:
        """What runs in the other context belongs to the span of this one."""

    def shut_down(self) -> None:
        """Hands over what it has, for as long as that takes."""


_spans: Spans | None = None
_NOTHING: AbstractContextManager[Headers] = nullcontext(())
_NO_SPAN: AbstractContextManager[None] = nullcontext()


def start(room: str, endpoint: str) -> None:
    """Begins to trace if there is where to send it; ends the process if it cannot."""
    global _spans
    if not endpoint:
        return
    if (protocol := os.environ.get(PROTOCOL) or "http/protobuf") != "http/protobuf":
        raise SystemExit(
            f"{PROTOCOL}: traces are sent as http/protobuf only, not as {protocol[:20]}: unset it"
        )
    try:
        made = importlib.import_module("shared.spans")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise SystemExit(
            f"{ENDPOINT} is set, but the packages for traces are not installed: install requirements-traces.lock in "
            "place of requirements.lock (for the image: --build-arg LOCK=requirements-traces.lock), or unset it"
        ) from None
    _spans = made.OtlpSpans(room, endpoint)


async def stop() -> None:
    """Hands over the last spans, if they are taken soon, and traces no more."""
    global _spans
    spans, _spans = _spans, None
    if spans is not None:
        flushing = threading.Thread(target=spans.shut_down, name="last spans", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, _FLUSH_SECONDS)


def served(method: str, behaviour: Behaviour) -> Behaviour:
    """The behaviour as it is, or with a span around each call while traces are on."""
    return behaviour if _spans is None else _spans.served(method, behaviour)


def answered(code: str) -> None:
    """Notes how the call that is being served was answered."""
    if _spans is not None:
        _spans.answered(code)


def calling(method: str, request_id: str) -> AbstractContextManager[Headers]:
    """Around a call of another room; gives the metadata that carries the trace there."""
    return _NOTHING if _spans is None else _spans.calling(method, request_id)


def working(name: str, **facts: str | int) -> AbstractContextManager[None]:
    """Around work that no call asked for, so that the calls it makes belong together."""
    return _NO_SPAN if _spans is None else _spans.working(name, facts)


def carry_into(other: Context) -> None:
    """What runs in the other context, which was made empty, still belongs to the trace of this one."""
    if _spans is not None:
        _spans.carry_into(other)
