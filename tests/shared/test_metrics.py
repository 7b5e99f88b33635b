"""What Prometheus is told: every call by its true name, and an answer whatever the database does."""

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import ledger_pb2_grpc
from prometheus_client import REGISTRY, CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from shared import errors, metrics
from shared.config import RoomSettings
from shared.rpc.client import open_channel
from shared.rpc.server import Audience, Door, running_server, serve
from tests.conftest import Secrets

SERVICE = "billing.ledger.v1.LedgerService"
PROMTOOL = shutil.which("promtool")


class Peer(ledger_pb2_grpc.LedgerServiceServicer):
    def __init__(self) -> None:
        self.raises: errors.BillingError | None = None

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        if self.raises is not None:
            raise self.raises
        return pb.GetBalanceResponse()

    async def StreamDebits(
        self, requests: AsyncIterator[pb.StreamDebitsRequest], context: Any
    ) -> AsyncIterator[pb.StreamDebitsResponse]:
        async for request in requests:
            yield pb.StreamDebitsResponse(number=request.number)


@pytest.fixture
def settings(secrets: Secrets) -> RoomSettings:
    return RoomSettings(
        gateway_secret=secrets.gateway, operator_secret=secrets.operator, room_secret=secrets.room
    )


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def address(settings: RoomSettings, peer: Peer) -> AsyncIterator[str]:
    door = Door(SERVICE, ledger_pb2_grpc.add_LedgerServiceServicer_to_server, peer, Audience.PRODUCT)
    async with running_server(room="ledger", listen="127.0.0.1:0", settings=settings, doors=[door]) as (
        address,
        _,
        _,
    ):
        yield address


def calls() -> dict[tuple[str, ...], float]:
    """Counted calls by (type, service, method, code)."""
    return {
        tuple(sample.labels[f"grpc_{name}"] for name in ("type", "service", "method", "code")): sample.value
        for family in REGISTRY.collect()
        if family.name == "grpc_server_handled"
        for sample in family.samples
    }


def since(before: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    return {labels: value - before.get(labels, 0) for labels, value in calls().items()}


def timed(method: str, le: str = "+Inf") -> float:
    labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": method, "le": le}
    return REGISTRY.get_sample_value("grpc_server_handling_seconds_bucket", labels) or 0.0


async def test_a_room_shows_calls_by_method_and_code_and_how_long_they_took(
    address: str, peer: Peer, secrets: Secrets
) -> None:
    before, timed_before = calls(), timed("GetBalance")
    async with open_channel(address, SecretStr(secrets.gateway)) as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        for _ in range(3):
            await stub.GetBalance(pb.GetBalanceRequest(tenant_id="t"))
        peer.raises = errors.FailedPrecondition("no")
        with pytest.raises(errors.FailedPrecondition):
            await stub.GetBalance(pb.GetBalanceRequest(tenant_id="t"))
        with pytest.raises(errors.InvalidArgument):
            await stub.GetBalance(pb.GetBalanceRequest())
        stream = stub.StreamDebits(metadata=[("x-gateway-key", secrets.gateway)])
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        await stream.code()

    new = {labels: value for labels, value in since(before).items() if value}
    assert new == {
        ("unary", SERVICE, "GetBalance", "OK"): 3,
        ("unary", SERVICE, "GetBalance", "FAILED_PRECONDITION"): 1,
        ("unary", SERVICE, "GetBalance", "INVALID_ARGUMENT"): 1,
        ("bidi_stream", SERVICE, "StreamDebits", "OK"): 1,
    }
    assert timed("GetBalance") - timed_before == 5
    text = (await metrics.Exposition().text()).decode()
    assert f'grpc_server_handling_seconds_bucket{{grpc_method="GetBalance",grpc_service="{SERVICE}"' in text


@pytest.mark.parametrize(
    ("key", "method"),
    [
        (None, f"/{SERVICE}/GetBalance"),
        ("not-a-key-of-anybody", f"/{SERVICE}/GetBalance"),
        (None, "/evil.Made/Up1234"),
        (None, f"/{SERVICE}/MadeUp1234"),
        (None, '/x"} 1\nbilling_made_up 1234/é'.encode("ascii", "ignore").decode()),
        ("room", f"/{SERVICE}/MadeUp1234"),
        ("room", "/evil.Made/Up1234"),
        ("gateway", f"/{SERVICE}/MadeUp1234"),
        ("gateway", f"/{SERVICE}/" + "MadeUp1234" * 50),
    ],
    ids=[
        *("no key", "a wrong key", "a made-up service", "a made-up method", "breaking out of a label"),
        *("a room's made-up method", "a room's made-up service", "a caller's made-up method", "a long one"),
    ],
)
async def test_what_a_stranger_makes_up_never_becomes_a_label(
    address: str, secrets: Secrets, key: str | None, method: str
) -> None:
    before = calls()
    value = {"room": secrets.room, "gateway": secrets.gateway}.get(key or "", key)
    metadata = [("x-gateway-key", value)] if value else []
    async with grpc.aio.insecure_channel(address) as channel:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(method)(b"", metadata=metadata, timeout=5)

    new = {labels: count for labels, count in since(before).items() if count}
    assert {labels[1] for labels in new} <= {SERVICE, ""}
    assert {labels[2] for labels in new} <= {"GetBalance", ""}
    text = (await metrics.Exposition().text()).decode()
    assert "1234" not in text.replace(".1234", "")
    assert "evil" not in text
    list(text_string_to_metric_families(text))


@asynccontextmanager
async def shown(exposition: metrics.Exposition) -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    listener = metrics.bind("127.0.0.1:0", "LEDGER_METRICS_LISTEN")
    serving = asyncio.create_task(metrics.serve_metrics(exposition, listener))
    try:
        async with httpx.AsyncClient(timeout=10) as http:
            yield "http://{}:{}".format(*listener.getsockname()), http
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


class Gauges:
    """A room's numbers, read from something that the test commands."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.gauge = Gauge("made_for_a_test", "Read so many times", registry=self.registry)
        self.readings = 0
        self.during: Callable[[], Any] = lambda: asyncio.sleep(0)

    async def refresh(self) -> None:
        self.readings += 1
        await self.during()
        self.gauge.set(self.readings)

    def exposition(self) -> metrics.Exposition:
        return metrics.Exposition(self.refresh, also=self.registry)


def failures() -> float:
    return REGISTRY.get_sample_value("billing_metrics_refresh_failures_total") or 0.0


def value(text: str) -> float:
    [line] = [line for line in text.splitlines() if line.startswith("made_for_a_test ")]
    return float(line.split()[1])


async def test_the_door_has_one_page() -> None:
    async with shown(metrics.Exposition()) as (url, http):
        page = await http.get(f"{url}/metrics")
        others = [
            await http.get(url + path) for path in ("/", "/metrics/", "/metrics/x", "/healthz", "//metrics")
        ]
        posted = await http.post(f"{url}/metrics", content=b"x" * 100_000)

    assert page.status_code == 200
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "server" not in page.headers
    assert [other.status_code for other in others] == [404] * 5
    assert posted.status_code == 405


async def test_two_that_ask_at_once_cost_one_reading_and_a_third_none() -> None:
    gauges = Gauges()
    go = asyncio.Event()
    gauges.during = go.wait
    async with shown(gauges.exposition()) as (url, http):
        both = [asyncio.create_task(http.get(f"{url}/metrics")) for _ in range(2)]
        while gauges.readings == 0:
            await asyncio.sleep(0.01)
        go.set()
        answers = await asyncio.gather(*both)
        third = await http.get(f"{url}/metrics")

    assert [value(answer.text) for answer in (*answers, third)] == [1, 1, 1]
    assert gauges.readings == 1


async def test_what_cannot_be_read_is_as_it_was_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)
    gauges = Gauges()
    exposition = gauges.exposition()
    assert value((await exposition.text()).decode()) == 1
    before = failures()

    async def away() -> None:
        raise ConnectionError("the database is away")

    gauges.during = away
    text = (await exposition.text()).decode()

    assert value(text) == 1
    assert failures() == before + 1
    gauges.during = lambda: asyncio.sleep(0)
    assert value((await exposition.text()).decode()) == 3
    assert failures() == before + 1


@pytest.mark.parametrize("stubborn", [False, True], ids=["it can be cancelled", "it cannot be cancelled"])
async def test_a_database_that_is_silent_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, stubborn: bool
) -> None:
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(metrics, "REFRESH_SECONDS_MAX", 0.3)
    gauges, end = Gauges(), asyncio.Event()
    before = failures()

    async def silent() -> None:
        try:
            await end.wait()
        except asyncio.CancelledError:
            if stubborn:
                await end.wait()
            raise

    gauges.during = silent
    async with shown(gauges.exposition()) as (url, http), asyncio.timeout(5):
        answers = await asyncio.gather(*(http.get(f"{url}/metrics") for _ in range(4)))
        late = await http.get(f"{url}/metrics")
        counted = failures() - before
        readings = gauges.readings
        end.set()

    assert [answer.status_code for answer in (*answers, late)] == [200] * 5
    # While one hangs for good no other is begun on top of it.
    assert (readings, counted) == ((1, 1) if stubborn else (2, 2))


def test_what_a_room_promises_to_prometheus_is_within_its_patience() -> None:
    assert metrics.REFRESH_SECONDS_MAX < 5


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:99999", "no such host:9051", "203.0.113.1:9051"], ids=["port", "name", "elsewhere"]
)
def test_an_address_that_cannot_be_had_is_told_with_its_setting(listen: str) -> None:
    with pytest.raises(SystemExit, match=r"^LEDGER_METRICS_LISTEN: metrics cannot be shown on .+: \S+"):
        metrics.bind(listen, "LEDGER_METRICS_LISTEN")


async def test_a_port_that_is_taken_ends_the_start_up_before_anything_is_served(
    settings: RoomSettings,
) -> None:
    with metrics.bind("127.0.0.1:0", "OTHER") as taken:
        listen = "{}:{}".format(*taken.getsockname())
        with pytest.raises(SystemExit) as ended:
            await serve(
                room="ledger", listen="127.0.0.1:0", settings=settings, doors=[], metrics_listen=listen
            )

    assert ended.value.code == f"LEDGER_METRICS_LISTEN: metrics cannot be shown on {listen}: " + (
        "Address already in use"
    )


def test_findings_that_are_no_longer_open_fall_to_nothing() -> None:
    def shown(check_type: str) -> float | None:
        labels = {"room": "test_metrics", "check_type": check_type, "severity": "critical"}
        return REGISTRY.get_sample_value("billing_integrity_findings_open", labels)

    metrics.show_findings("test_metrics", {("balance_mismatch", "critical"): 2})
    assert (shown("balance_mismatch"), shown("orphan_pending_sub")) == (2, None)

    metrics.show_findings("test_metrics", {("orphan_pending_sub", "critical"): 1})
    metrics.show_findings("another", {})

    assert (shown("balance_mismatch"), shown("orphan_pending_sub")) == (0, 1)


def test_the_audit_log_is_counted_by_room_and_action() -> None:
    labels = {"room": "test_metrics", "action": "grant"}
    metrics.audited("test_metrics", "grant")
    metrics.audited("test_metrics", "grant")
    metrics.audit_failed("test_metrics")

    assert REGISTRY.get_sample_value("billing_audit_log_entries_total", labels) == 2
    assert REGISTRY.get_sample_value("billing_audit_log_errors_total", {"room": "test_metrics"}) == 1


async def test_prometheus_own_parser_reads_every_line() -> None:
    text = (await Gauges().exposition().text()).decode()

    families = {family.name: family for family in text_string_to_metric_families(text)}

    assert families["made_for_a_test"].documentation == "Read so many times"
    assert families["grpc_server_handled"].type == "counter"
    assert not [name for name in families if name.endswith("_created")]
    assert text.endswith("\n")


async def test_a_name_that_two_registries_know_has_one_heading() -> None:
    also = CollectorRegistry()
    gauge = Gauge(
        "billing_integrity_findings_open", "Mine", ["room", "check_type", "severity"], registry=also
    )
    gauge.labels("test_one_heading", "overdue_holds", "warning").set(3)

    text = (await metrics.Exposition(also=also).text()).decode()

    assert text.count("# TYPE billing_integrity_findings_open gauge") == 1
    assert 'severity="warning"} 3.0' in text


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH")
def test_promtool_has_nothing_to_say_of_what_every_room_shows() -> None:
    assert PROMTOOL is not None
    told = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=asyncio.run(metrics.Exposition().text()),
        capture_output=True,
        check=False,
    )

    assert (told.returncode, told.stderr.decode()) == (0, "")
