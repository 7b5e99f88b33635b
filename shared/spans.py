"""Spans by OpenTelemetry, sent as OTLP over HTTP. Imported only where traces are on: it needs the extra `traces`."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context as Variables
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared import ids, logs
from shared.errors import BillingError
from shared.tracing import Behaviour, Headers

# Only this of the two: `tracestate` may say anything.
TRACEPARENT = "traceparent"

# Answers that are the room's own doing; others are what a caller is told in the ordinary course of things.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_PATH = "/v1/traces"
_ATTRIBUTE_CHARACTERS_MAX = 200

_w3c = TraceContextTextMapPropagator()


class OtlpSpans:
    """Makes spans and sends them in batches, from a thread of its own; what the collector does not take is dropped."""

    def __init__(self, room: str, endpoint: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create(
                {"service.name": f"billing-{room}", "service.instance.id": ids.new_id("run")}
            ),
            span_limits=SpanLimits(max_span_attribute_length=_ATTRIBUTE_CHARACTERS_MAX),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + _PATH)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("billing")

    def served(self, method: str, behaviour: Behaviour) -> Behaviour:
        """The behaviour, each call of it in a span that continues the caller's trace."""
        name, attributes = _named(method)

        async def serve(request: Any, call: Any) -> Any:
            carried = {key: value for key, value in call.invocation_metadata() or () if key == TRACEPARENT}
            caller = _w3c.extract(carried, context=Context())
            with self._tracer.start_as_current_span(
                name,
                context=caller,
                kind=SpanKind.SERVER,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ):
                return await behaviour(request, call)

        return serve

    def answered(self, code: str) -> None:
        """The call that is being served was answered."""
        span = trace.get_current_span()
        span.set_attribute("billing.request_id", logs.request_id.get())
        _answer(span, code)

    @contextmanager
    def calling(self, method: str, request_id: str) -> Iterator[Headers]:
        """A span around a call of another room, and the metadata that carries it there."""
        name, attributes = _named(method)
        with self._tracer.start_as_current_span(
            name,
            kind=SpanKind.CLIENT,
            attributes={**attributes, "billing.request_id": request_id},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            _w3c.inject(carrier)
            try:
                yield ((TRACEPARENT, carrier[TRACEPARENT]),) if TRACEPARENT in carrier else ()
            except BillingError as error:
                _answer(span, error.code)
                raise
            except asyncio.CancelledError:
                _answer(span, "CANCELLED")
                raise
            else:
                _answer(span, "OK")

    @contextmanager
    def working(self, name: str, facts: Mapping[str, str | int]) -> Iterator[None]:
        """A span around work that no call asked for."""
        attributes = {f"billing.{key}": value for key, value in facts.items()}
        attributes["billing.request_id"] = logs.request_id.get()
        with self._tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ):
            yield

    def carry_into(self, other: Variables) -> None:
        """What runs in the other context belongs to the span of this one."""
        other.run(attach, trace.set_span_in_context(trace.get_current_span(), Context()))

    def shut_down(self) -> None:
        """Hands over what it has, for as long as that takes."""
        self._provider.shutdown()


def _named(method: str) -> tuple[str, dict[str, str]]:
    path = method.lstrip("/")
    service, _, name = path.rpartition("/")
    return path, {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


def _answer(span: trace.Span, code: str) -> None:
    span.set_attribute("rpc.response.status_code", code)
    if code in _FAULTS:
        span.set_status(Status(StatusCode.ERROR))
