"""One gate in, one envoy out: what every call of every room passes."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import grpc
import pytest
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import ledger_pb2_grpc
from billing.webhooks.v1 import webhooks_admin_pb2 as webhooks_pb
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from pydantic import SecretStr
from structlog.testing import capture_logs

from shared import database as shared_database
from shared import errors, logs
from shared.config import RoomSettings
from shared.rpc import context as rpc_context
from shared.rpc import validation
from shared.rpc.auth import Keyring
from shared.rpc.client import open_channel
from shared.rpc.gate import Gate
from shared.rpc.server import Audience, Door, running_server
from tests.conftest import Database, Secrets

SERVICE = "billing.ledger.v1.LedgerService"


class Peer(ledger_pb2_grpc.LedgerServiceServicer):
    """A servicer that does what the test at hand asks for."""

    def __init__(self) -> None:
        self.behave: Any = None
        self.request_ids: list[str] = []
        self.remaining: list[float | None] = []

    async def StreamDebits(
        self, requests: AsyncIterator[pb.StreamDebitsRequest], context: Any
    ) -> AsyncIterator[pb.StreamDebitsResponse]:
        self.remaining.append(rpc_context.remaining_seconds())
        async for request in requests:
            if self.behave is not None:
                await self.behave()
            yield pb.StreamDebitsResponse(number=request.number)

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        self.request_ids.append(logs.request_id.get())
        self.remaining.append(rpc_context.remaining_seconds())
        if self.behave is not None:
            await self.behave()
        return pb.GetBalanceResponse()


@dataclass
class Pair:
    """A server with a peer behind the gate, and a stub that goes through the envoy."""

    address: str
    peer: Peer
    stub: ledger_pb2_grpc.LedgerServiceStub
    request: pb.GetBalanceRequest = field(default_factory=lambda: pb.GetBalanceRequest(tenant_id="t"))


@pytest.fixture
async def pair(secrets: Secrets) -> AsyncIterator[Pair]:
    settings = RoomSettings(
        gateway_secret=secrets.gateway,
        operator_secret=secrets.operator,
        room_secret=secrets.room,
        shed_after_ms=500,
    )
    peer = Peer()
    door = Door(SERVICE, ledger_pb2_grpc.add_LedgerServiceServicer_to_server, peer, Audience.PRODUCT)
    async with (
        running_server(room="ledger", listen="127.0.0.1:0", settings=settings, doors=[door]) as (
            address,
            _,
            _,
        ),
        open_channel(address, SecretStr(secrets.gateway)) as channel,
    ):
        yield Pair(address, peer, ledger_pb2_grpc.LedgerServiceStub(channel))


@pytest.mark.parametrize(
    "refusal",
    [
        errors.InvalidArgument("bad", violations=[("credits", "must be positive")]),
        errors.NotFound("none", reason="UNKNOWN_TENANT", tenant_id="t"),
        errors.AlreadyExists("there"),
        errors.FailedPrecondition("no", reason="INSUFFICIENT_CREDITS", shortfall=7),
        errors.PermissionDenied("not you"),
        errors.ResourceExhausted("later", retry_after_seconds=2.5),
        errors.Aborted("race"),
        errors.Unavailable("away"),
    ],
    ids=lambda refusal: refusal.code,
)
async def test_a_refusal_arrives_as_it_was_raised(pair: Pair, refusal: errors.BillingError) -> None:
    async def refuse() -> None:
        raise refusal

    pair.peer.behave = refuse

    with pytest.raises(type(refusal)) as arrived:
        await pair.stub.GetBalance(pair.request)

    assert arrived.value.message == refusal.message
    assert arrived.value.reason == refusal.reason
    assert arrived.value.metadata == refusal.metadata
    assert arrived.value.definite == refusal.definite
    if isinstance(refusal, errors.InvalidArgument):
        assert arrived.value.violations == refusal.violations
    if isinstance(refusal, errors.ResourceExhausted):
        assert arrived.value.retry_after_seconds == 2.5


async def test_an_unknown_exception_tells_nothing_but_a_request_id(pair: Pair, secrets: Secrets) -> None:
    async def crash() -> None:
        raise RuntimeError("postgresql://user:hunter2@db/")

    pair.peer.behave = crash
    metadata = (("x-gateway-key", secrets.gateway), ("x-request-id", "req-of-mine"))

    async with grpc.aio.insecure_channel(pair.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as answer:
            await ledger_pb2_grpc.LedgerServiceStub(channel).GetBalance(
                pair.request, metadata=metadata, timeout=5
            )

    status = rpc_status.from_call(answer.value)
    assert answer.value.code() == grpc.StatusCode.INTERNAL
    assert "hunter2" not in f"{answer.value.details()}{status}"
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.RequestInfo.DESCRIPTOR)]
    told = error_details_pb2.RequestInfo()
    infos[0].Unpack(told)
    assert told.request_id == "req-of-mine"


async def test_a_request_id_follows_the_call_and_reaches_the_log(pair: Pair) -> None:
    token = logs.request_id.set("req_from_the_webhook")
    try:
        await pair.stub.GetBalance(pair.request)
    finally:
        logs.request_id.reset(token)
    await pair.stub.GetBalance(pair.request)

    assert pair.peer.request_ids[0] == "req_from_the_webhook"
    assert pair.peer.request_ids[1].startswith("req_")


def test_a_log_line_is_json_with_room_and_request_id_and_no_secret() -> None:
    program = """
from shared import logs
logs.configure("ledger")
logs.request_id.set("req_1")
logs.get_logger().info("something", razorpay_key_secret="hunter2", credits=5)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )

    line = json.loads(ended.stderr.splitlines()[-1])
    assert (line["room"], line["request_id"], line["credits"]) == ("ledger", "req_1", 5)
    assert "hunter2" not in str(line)


def test_the_line_of_a_call_that_went_well_is_the_one_that_any_logger_writes() -> None:
    program = """
from shared import logs
logs.configure("ledger")
logs.request_id.set("req_1")
logs.access("/billing.ledger.v1.LedgerService/Debit", 1.2)
logs.get_logger().info("rpc", method="/billing.ledger.v1.LedgerService/Debit", code="OK", ms=1.2)
logs.configure("ledger", "warning")
logs.access("/billing.ledger.v1.LedgerService/Debit", 1.2)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )

    ours, theirs = (json.loads(line) for line in ended.stderr.splitlines())
    ours_at, theirs_at = (datetime.fromisoformat(line.pop("at")) for line in (ours, theirs))
    assert ours == theirs
    assert timedelta(0) <= theirs_at - ours_at < timedelta(seconds=10)


async def test_a_deadline_is_passed_on_shaved(pair: Pair) -> None:
    token = rpc_context.deadline.set(time.monotonic() + 1.5)
    try:
        await pair.stub.GetBalance(pair.request)
    finally:
        rpc_context.deadline.reset(token)

    passed_on = pair.peer.remaining[0]
    assert passed_on is not None
    assert passed_on < 1.5


async def test_a_caller_without_time_left_asks_nobody(pair: Pair) -> None:
    token = rpc_context.deadline.set(time.monotonic() + 0.001)
    try:
        with pytest.raises(errors.DeadlineExceeded):
            await pair.stub.GetBalance(pair.request)
    finally:
        rpc_context.deadline.reset(token)

    assert pair.peer.request_ids == []


async def test_a_servicer_that_takes_too_long_is_cut_off(pair: Pair) -> None:
    ended = asyncio.Event()

    async def linger() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    pair.peer.behave = linger

    with pytest.raises(errors.DeadlineExceeded) as refusal:
        await pair.stub.GetBalance(pair.request, timeout=0.3)

    assert not refusal.value.definite
    await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.parametrize(("age_seconds", "answered"), [(0, True), (3, False), (-3, True), (3600, True)])
async def test_a_request_that_waited_too_long_is_refused_undone(
    pair: Pair, secrets: Secrets, age_seconds: int, answered: bool
) -> None:
    sent = str(int((time.time() - age_seconds) * 1000))
    metadata = (("x-gateway-key", secrets.gateway), ("x-sent-ms", sent))

    async with grpc.aio.insecure_channel(pair.address) as channel:
        call = ledger_pb2_grpc.LedgerServiceStub(channel).GetBalance(
            pair.request, metadata=metadata, timeout=5
        )
        code = await call.code()

    assert code == (grpc.StatusCode.OK if answered else grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert len(pair.peer.request_ids) == int(answered)


async def test_nothing_leaves_the_process_inside_a_transaction(pair: Pair, database: Database) -> None:
    engine = shared_database.create_engine(database.url("ledger_rw"), application_name="tests")

    async with shared_database.transaction(engine):
        with pytest.raises(AssertionError, match="inside a transaction"):
            await pair.stub.GetBalance(pair.request)
    await pair.stub.GetBalance(pair.request)

    await engine.dispose()


async def test_health_is_open_and_reflection_asks_for_any_key(pair: Pair, secrets: Secrets) -> None:
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    async with grpc.aio.insecure_channel(pair.address) as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=""), timeout=5
        )
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in reflect.ServerReflectionInfo(iter([ask]), timeout=5):
                pass
        key = (("x-gateway-key", secrets.operator),)
        names = [
            service.name
            async for answer in reflect.ServerReflectionInfo(iter([ask]), metadata=key, timeout=5)
            for service in answer.list_services_response.service
        ]

    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert SERVICE in names


async def test_strangers_learn_nothing_about_what_exists(pair: Pair) -> None:
    async with grpc.aio.insecure_channel(pair.address) as channel:
        unknown = channel.unary_unary("/billing.ledger.v1.LedgerService/NoSuchCall")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await unknown(b"", timeout=5)

    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def raw_call(
    address: str, method: str, body: bytes, metadata: tuple[tuple[str, str], ...]
) -> grpc.aio.AioRpcError:
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as answer:
            await channel.unary_unary(f"/{SERVICE}/{method}")(body, metadata=metadata, timeout=5)
    return answer.value


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a\x01\xff", b"\x0a\x03\xed\xa0\x80"])
async def test_bytes_that_are_no_request_are_refused_for_good(
    pair: Pair, secrets: Secrets, body: bytes
) -> None:
    refusal = await raw_call(pair.address, "GetBalance", body, (("x-gateway-key", secrets.gateway),))

    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert pair.peer.request_ids == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GetTransactionRequest(tenant_id="t", transaction_id="a\0b"), "transaction_id"),
        (pb.DebitRequest(tenant_id="t", metadata={"note": "\0"}), "metadata[note]"),
        (pb.GetBalanceRequest(tenant_id="t", as_of=Timestamp(seconds=253402300800)), "as_of"),
        (pb.GetBalanceRequest(tenant_id="t", as_of=Timestamp(nanos=-1, seconds=-(2**62))), "as_of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nothing_could_store_is_refused_naming_the_field(request_: Message, field: str) -> None:
    with pytest.raises(errors.InvalidArgument) as refusal:
        validation.check(request_)

    assert [name for name, _ in refusal.value.violations] == [field]


def test_whoever_chose_nothing_is_told_what_there_is_to_choose() -> None:
    nothing = webhooks_pb.ReplayEventsRequest(actor="asha", reason="why", idempotency_key="k")

    with pytest.raises(errors.InvalidArgument) as refusal:
        validation.check(nothing)

    assert list(refusal.value.violations) == [("selection", "is missing: give one of id, range, tenant_id")]


async def test_a_refusal_fits_its_trailer_however_much_was_wrong(pair: Pair, secrets: Secrets) -> None:
    request = pb.DebitRequest(metadata={"é" * 3000 + str(number): "v" * 300 for number in range(16)})

    refusal = await raw_call(
        pair.address, "Debit", request.SerializeToString(), (("x-gateway-key", secrets.gateway),)
    )

    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stranger_is_refused_before_sending_anything(pair: Pair) -> None:
    async with grpc.aio.insecure_channel(pair.address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/StreamDebits")(timeout=5)

        assert await call.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_each_message_of_a_stream_is_validated(pair: Pair, secrets: Secrets) -> None:
    item = pb.BatchDebitItem(
        debit=pb.DebitRequest(tenant_id="t", idempotency_key="k", credits=1, reason="a.b")
    )
    async with grpc.aio.insecure_channel(pair.address) as channel:
        call = ledger_pb2_grpc.LedgerServiceStub(channel).StreamDebits(
            metadata=(("x-gateway-key", secrets.gateway),), timeout=5
        )
        await call.write(pb.StreamDebitsRequest(number=1, items=[item]))
        first = await call.read()
        await call.write(pb.StreamDebitsRequest(number=0, items=[item]))

        assert first == pb.StreamDebitsResponse(number=1)
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def stream(pair: Pair, secrets: Secrets) -> AsyncIterator[Any]:
    """Opens a stream: `stream(timeout=…)`."""
    async with grpc.aio.insecure_channel(pair.address) as channel:
        # Bytes out, so that they need not be a message.
        open_stream = channel.stream_stream(
            f"/{SERVICE}/StreamDebits", response_deserializer=pb.StreamDebitsResponse.FromString
        )
        yield lambda **options: open_stream(metadata=(("x-gateway-key", secrets.gateway),), **options)


ITEM = pb.BatchDebitItem(debit=pb.DebitRequest(tenant_id="t", idempotency_key="k", credits=1, reason="a.b"))


def numbered(number: int) -> bytes:
    return pb.StreamDebitsRequest(number=number, items=[ITEM]).SerializeToString()


async def test_bytes_in_a_stream_that_are_no_request_are_refused_for_good(stream: Any) -> None:
    call = stream(timeout=5)
    await call.write(numbered(1))
    first = await call.read()
    await call.write(b"\xff\xff\xff")

    assert first.number == 1
    assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("seconds", "known"), [(1.5, True), (None, False)])
async def test_a_stream_knows_its_callers_deadline_and_none_where_there_is_none(
    pair: Pair, stream: Any, seconds: float | None, known: bool
) -> None:
    call = stream(timeout=seconds)
    await call.write(numbered(1))
    await call.read()
    await call.done_writing()

    assert await call.code() == grpc.StatusCode.OK
    remaining = pair.peer.remaining[0]
    assert (remaining is not None and 0 < remaining < 2) if known else remaining is None


async def test_a_stream_that_outlives_its_deadline_is_cut_off(pair: Pair, stream: Any) -> None:
    ended = asyncio.Event()

    async def linger() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    pair.peer.behave = linger
    call = stream(timeout=0.3)
    await call.write(numbered(1))

    assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(ended.wait(), 5)


async def test_streams_are_in_the_log_as_calls_are(
    pair: Pair, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_well: list[str] = []
    monkeypatch.setattr(logs, "_access", lambda method, _milliseconds: went_well.append(method))
    call = stream(timeout=5)
    await call.write(numbered(1))
    await call.read()
    await call.done_writing()
    await call.code()

    started = asyncio.Event()

    async def linger() -> None:
        started.set()
        await asyncio.sleep(30)

    pair.peer.behave = linger
    with capture_logs() as lines:
        left = stream(timeout=5)
        await left.write(numbered(1))
        await started.wait()
        left.cancel()
        async with asyncio.timeout(5):
            while not lines:
                await asyncio.sleep(0.01)

    assert went_well == [f"/{SERVICE}/StreamDebits"]
    assert [(line["method"], line["code"]) for line in lines] == [(f"/{SERVICE}/StreamDebits", "CANCELLED")]


@pytest.mark.parametrize("sent", ["9" * 5000, "9" * 400, "-1", "soon"])
async def test_an_age_that_is_none_is_ignored(pair: Pair, secrets: Secrets, sent: str) -> None:
    metadata = (("x-gateway-key", secrets.gateway), ("x-sent-ms", sent))

    async with grpc.aio.insecure_channel(pair.address) as channel:
        answer = await ledger_pb2_grpc.LedgerServiceStub(channel).GetBalance(
            pair.request, metadata=metadata, timeout=5
        )

    assert answer == pb.GetBalanceResponse()


async def test_method_names_that_callers_make_up_are_not_kept(secrets: Secrets) -> None:
    gate = Gate(
        room="ledger",
        keyring=Keyring(SecretStr(secrets.gateway), SecretStr(secrets.operator), SecretStr(secrets.room)),
        audiences={SERVICE: Audience.PRODUCT},
        shed_after_seconds=1,
    )

    class Details:
        method = f"/{SERVICE}/MadeUp"
        invocation_metadata = (("x-gateway-key", secrets.gateway),)

    async def unknown(_details: object) -> None:
        return None

    assert await gate.intercept_service(unknown, Details()) is None  # type: ignore[arg-type]
    assert gate._wrapped == {}
