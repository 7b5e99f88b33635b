"""Traces go from room to room over real calls, say who asked whom with what answer, and nothing that anybody said."""

import asyncio
import contextvars
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import ledger_pb2_grpc
from pydantic import SecretStr

from shared import errors, logs, tracing
from shared.config import RoomSettings, load
from shared.rpc.client import open_channel
from shared.rpc.server import Audience, Door, running_server
from tests.conftest import Secrets
from tests.shared.collector import Collector, Span, collecting

SERVICE = "billing.ledger.v1.LedgerService"
CALL = f"{SERVICE}/GetBalance"


class Far(ledger_pb2_grpc.LedgerServiceServicer):
    """Says what the test wants, and remembers what reached it."""

    def __init__(self) -> None:
        self.raises: Exception | None = None
        self.traceparents: list[str] = []

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        self.traceparents += [value for key, value in context.invocation_metadata() if key == "traceparent"]
        if self.raises is not None:
            raise self.raises
        return pb.GetBalanceResponse()

    async def StreamDebits(
        self, requests: AsyncIterator[pb.StreamDebitsRequest], context: Any
    ) -> AsyncIterator[pb.StreamDebitsResponse]:
        async for request in requests:
            yield pb.StreamDebitsResponse(number=request.number)


class Near(ledger_pb2_grpc.LedgerServiceServicer):
    """A room that asks another one to answer."""

    def __init__(self, far: Any) -> None:
        self._far = far

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        answer: pb.GetBalanceResponse = await self._far.GetBalance(request)
        return answer


def settings_of(secrets: Secrets) -> RoomSettings:
    return RoomSettings(
        gateway_secret=secrets.gateway, operator_secret=secrets.operator, room_secret=secrets.room
    )


@asynccontextmanager
async def served(secrets: Secrets, servicer: Any) -> AsyncIterator[Any]:
    """A room with this servicer, and a stub that goes there through the envoy."""
    settings = settings_of(secrets)
    door = Door(SERVICE, ledger_pb2_grpc.add_LedgerServiceServicer_to_server, servicer, Audience.PRODUCT)
    async with (
        running_server(room="ledger", listen="127.0.0.1:0", settings=settings, doors=[door]) as (
            address,
            _,
            _,
        ),
        open_channel(address, SecretStr(secrets.gateway)) as channel,
    ):
        yield ledger_pb2_grpc.LedgerServiceStub(channel)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
async def traced(collector: Collector) -> AsyncIterator[Collector]:
    tracing.start("test", collector.url)
    try:
        yield collector
    finally:
        await tracing.stop()


def request(tenant: str = "tenant-4111-secret") -> pb.GetBalanceRequest:
    return pb.GetBalanceRequest(tenant_id=tenant)


async def finished(collector: Collector) -> list[Span]:
    """Every span, the last ones handed over."""
    await tracing.stop()
    return collector.spans


async def test_one_trace_goes_from_the_delivery_through_a_room_to_the_next(
    traced: Collector, secrets: Secrets
) -> None:
    logs.request_id.set("req_of_the_delivery")
    async with served(secrets, Far()) as far, served(secrets, Near(far)) as near:
        with tracing.working("webhook delivery", provider="razorpay", attempt=2):
            await near.GetBalance(request())

    spans = await finished(traced)

    ordered = [next(span for span in spans if not span.parent_id)]
    while below := [span for span in spans if span.parent_id == ordered[-1].id]:
        ordered += below
    assert [(span.kind, span.name) for span in ordered] == [
        ("internal", "webhook delivery"),
        ("client", CALL),
        ("server", CALL),
        ("client", CALL),
        ("server", CALL),
    ]
    assert len(ordered) == len(spans)
    assert len({span.trace_id for span in spans}) == 1
    assert {span.attributes["billing.request_id"] for span in spans} == {"req_of_the_delivery"}
    assert ordered[0].attributes | {"billing.request_id": ""} == {
        "billing.provider": "razorpay",
        "billing.attempt": 2,
        "billing.request_id": "",
    }
    assert traced.paths == {"/v1/traces"}
    assert {span.service for span in spans} == {"billing-test"}


@pytest.mark.parametrize(
    ("raises", "code", "is_fault"),
    [
        (None, "OK", False),
        (errors.FailedPrecondition("no", reason="INSUFFICIENT_CREDITS"), "FAILED_PRECONDITION", False),
        (errors.Unavailable("away"), "UNAVAILABLE", True),
        (RuntimeError("row (tenant-4111-secret, 42)"), "INTERNAL", True),
    ],
    ids=["ok", "refused", "away", "broken"],
)
async def test_a_span_says_the_method_and_the_code_and_nothing_that_was_said(
    traced: Collector, secrets: Secrets, raises: Exception | None, code: str, is_fault: bool
) -> None:
    room = Far()
    room.raises = raises
    async with served(secrets, room) as stub:
        try:
            await stub.GetBalance(request())
        except errors.BillingError as error:
            assert error.code == code

    spans = await finished(traced)

    assert {span.kind for span in spans} == {"client", "server"}
    for span in spans:
        request_id = span.attributes.pop("billing.request_id")
        assert str(request_id).startswith("req_")
        assert span.attributes == {
            "rpc.system": "grpc",
            "rpc.service": SERVICE,
            "rpc.method": "GetBalance",
            "rpc.response.status_code": code,
        }
        assert (span.failed, span.events) == (is_fault, 0)
    assert not [body for body in traced.bodies if b"4111" in body or b"INSUFFICIENT" in body]


async def test_a_stream_is_one_span(traced: Collector, secrets: Secrets) -> None:
    async with served(secrets, Far()) as stub:
        stream = stub.StreamDebits(metadata=[("x-gateway-key", secrets.gateway)])
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        await stream.code()

    [span] = await finished(traced)

    assert (span.kind, span.name) == ("server", f"{SERVICE}/StreamDebits")
    assert span.attributes["rpc.response.status_code"] == "OK"


@pytest.mark.parametrize(
    "traceparent",
    ["", "00-zz-zz-01", "x" * 3000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"],
    ids=["empty", "no numbers", "long", "nothing"],
)
async def test_a_broken_parent_begins_a_trace(traced: Collector, secrets: Secrets, traceparent: str) -> None:
    # A stream, since the envoy of our own unary calls adds a parent of its own.
    metadata = [("x-gateway-key", secrets.gateway), ("traceparent", traceparent), ("tracestate", "card=4111")]
    async with served(secrets, Far()) as stub:
        stream = stub.StreamDebits(metadata=metadata)
        await stream.done_writing()
        assert await stream.code() == grpc.StatusCode.OK

    [span] = await finished(traced)

    assert (len(span.trace_id), span.parent_id) == (32, "")
    assert not [body for body in traced.bodies if b"4111" in body]


async def test_a_good_parent_is_continued(traced: Collector, secrets: Secrets) -> None:
    metadata = [("x-gateway-key", secrets.gateway), ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")]
    async with served(secrets, Far()) as stub:
        stream = stub.StreamDebits(metadata=metadata)
        await stream.done_writing()
        assert await stream.code() == grpc.StatusCode.OK

    [span] = await finished(traced)

    assert (span.trace_id, span.parent_id) == ("a" * 32, "b" * 16)


async def test_whoever_is_not_admitted_makes_no_span(traced: Collector, secrets: Secrets) -> None:
    async with served(secrets, Far()) as stub:
        await stub.GetBalance(request())
        stream = stub.StreamDebits(metadata=[("x-gateway-key", "not-a-key-of-anybody")])
        assert await stream.code() == grpc.StatusCode.UNAUTHENTICATED

    spans = await finished(traced)

    assert {span.name for span in spans} == {CALL}


async def test_work_in_a_context_of_its_own_can_stay_in_the_trace(
    traced: Collector, secrets: Secrets
) -> None:
    async with served(secrets, Far()) as stub:
        with tracing.working("webhook delivery", provider="razorpay"):
            carried, bare = contextvars.Context(), contextvars.Context()
            tracing.carry_into(carried)
            for context in (carried, bare):
                await asyncio.create_task(_ask(stub), context=context)

    spans = await finished(traced)

    [root] = [span for span in spans if span.name == "webhook delivery"]
    clients = [span for span in spans if span.kind == "client"]
    assert sorted(span.parent_id for span in clients) == ["", root.id]


async def _ask(stub: Any) -> None:
    await stub.GetBalance(request())


async def test_without_an_endpoint_nothing_is_made_or_carried(collector: Collector, secrets: Secrets) -> None:
    tracing.start("test", "")
    tracing.carry_into(contextvars.Context())
    room = Far()
    async with served(secrets, room) as stub:
        with tracing.working("webhook delivery", provider="razorpay"):
            await stub.GetBalance(request())
    await tracing.stop()

    assert room.traceparents == []
    assert collector.bodies == []


async def test_a_collector_that_is_away_costs_no_call_and_little_time_at_the_end(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_FLUSH_SECONDS", 0.2)
    tracing.start("test", "http://127.0.0.1:1")
    room = Far()
    async with served(secrets, room) as stub:
        assert await stub.GetBalance(request()) == pb.GetBalanceResponse()
    await tracing.stop()

    assert len(room.traceparents) == 1


def test_the_variable_without_the_packages_ends_the_start_up_with_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "shared.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    with pytest.raises(
        SystemExit, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT is set, but .*requirements-traces\.lock.*unset it$"
    ):
        tracing.start("ledger", "http://127.0.0.1:4318")


def test_another_protocol_is_refused_rather_than_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")

    with pytest.raises(SystemExit, match=r"OTEL_EXPORTER_OTLP_PROTOCOL: .* http/protobuf only, not as grpc"):
        tracing.start("ledger", "http://127.0.0.1:4317")


def test_an_endpoint_that_is_no_url_is_told_by_its_name(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")

    with pytest.raises(SystemExit, match="OTEL_EXPORTER_OTLP_ENDPOINT is wrong"):
        load(
            RoomSettings,
            gateway_secret=secrets.gateway,
            operator_secret=secrets.operator,
            room_secret=secrets.room,
        )


def test_a_room_that_traces_nothing_does_not_even_load_the_packages() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import shared.rpc.server, sys; print('opentelemetry' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout == "False\n"
