"""Connections that are slow, silent or gone: they cost little and stop nobody."""

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from suite import processes
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Running, charged, eventually, sample
from tests.webhooks.processes import Process, post, process
from tests.webhooks.sockets import answers_in, connection, open_sockets, received, request, statuses

HEAD = request(b"", length="1000", signed=False)
PROBE = request(b"", method="GET", target="/healthz", signed=False)
_TCP_REPAIR = getattr(socket, "TCP_REPAIR", 19)


@dataclass
class Slow:
    """Sockets of one kind that keep an ingress busy until they are closed."""

    kind: str
    sockets: list[socket.socket]
    drip: bytes = b""

    def step(self) -> None:
        """One byte each, where the other side still listens."""
        for each in self.sockets if self.drip else ():
            with contextlib.suppress(OSError):
                each.send(self.drip[:1])

    def alive(self) -> int:
        """How many of them the other side has not closed."""
        return sum(_is_open(each) for each in self.sockets)

    def close(self) -> None:
        for each in self.sockets:
            each.close()


def _is_open(each: socket.socket) -> bool:
    try:
        while data := each.recv(65536):
            assert data
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def silent(url: str, count: int) -> Slow:
    return Slow("silent", open_sockets(url, count))


def dripping_headers(url: str, count: int) -> Slow:
    return Slow("headers", open_sockets(url, count), drip=b"G")


def dripping_body(url: str, count: int) -> Slow:
    opened = open_sockets(url, count)
    for each in opened:
        each.send(HEAD)
    return Slow("body", opened, drip=b"x")


def idle(url: str, count: int) -> Slow:
    opened = open_sockets(url, count)
    for each in opened:
        each.send(PROBE)
    return Slow("idle", opened)


def deaf(url: str, count: int) -> Slow:
    """They ask and never read."""
    opened = open_sockets(url, count, receive_buffer=2048)
    for each in opened:
        each.send(PROBE * 8)
    return Slow("deaf", opened)


def vanished(url: str, count: int) -> Slow:
    """Their machines are gone: no FIN, no RST. Where we may not do that, they are merely silent."""
    opened = open_sockets(url, count)
    kept = []
    for each in opened:
        each.send(HEAD)
        try:
            each.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        except OSError:
            kept.append(each)
        else:
            each.close()
    return Slow("vanished", kept)


KINDS: tuple[Callable[[str, int], Slow], ...] = (
    silent,
    dripping_headers,
    dripping_body,
    idle,
    deaf,
    vanished,
)


@contextlib.contextmanager
def attack(
    url: str, count: int, kinds: tuple[Callable[[str, int], Slow], ...] = KINDS
) -> Iterator[list[Slow]]:
    """So many connections of each kind, closed at the end."""
    found: list[Slow] = []
    try:
        for kind in kinds:
            found.append(kind(url, count))
        yield found
    finally:
        for each in found:
            each.close()


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass
class Seen:
    """What a process took while it was attacked, and what good deliveries felt."""

    megabytes: float = 0.0
    descriptors: int = 0
    statuses: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def look(self, pid: int) -> None:
        self.megabytes = max(self.megabytes, megabytes(pid))
        self.descriptors = max(self.descriptors, descriptors(pid))


def megabytes(pid: int) -> float:
    """Resident memory."""
    [line] = [
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    ]
    return int(line.split()[1]) / 1024


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def descriptors_allowed(pid: int) -> tuple[int, int]:
    """Soft and hard."""
    [found] = re.findall(r"Max open files +(\d+) +(\d+)", Path(f"/proc/{pid}/limits").read_text())
    return int(found[0]), int(found[1])


async def deliver_meanwhile(room: Process, slow: list[Slow], tenant: str, *, seconds: float) -> Seen:
    """Good deliveries, each over a connection of its own, while the slow ones drip."""
    seen = Seen()
    began_at, dripped_at = time.monotonic(), 0.0
    while time.monotonic() - began_at < seconds:
        if time.monotonic() - dripped_at >= 1:
            dripped_at = time.monotonic()
            for each in slow:
                each.step()
        body = charged(f"{tenant}_{len(seen.seconds)}")
        async with httpx.AsyncClient(timeout=10) as http:
            sent_at = time.monotonic()
            seen.statuses.append(await post(http, room.url, body))
            seen.seconds.append(time.monotonic() - sent_at)
        seen.look(room.pid)
        await asyncio.sleep(0.02)
    return seen


@pytest.fixture
async def ingress(
    database: Any, secrets: Any, db: psycopg.AsyncConnection
) -> AsyncIterator[Callable[..., Any]]:
    """Starts a process; its neighbour is away, which is none of the ingress's concern."""
    async with contextlib.AsyncExitStack() as stack:

        async def start_process(**settings: str) -> Process:
            room = await stack.enter_async_context(process(database, secrets, "127.0.0.1:1", **settings))
            await room.start()
            return room

        yield start_process


async def test_three_hundred_slow_connections_do_not_stop_good_deliveries(
    ingress: Callable[..., Any], tenant: str
) -> None:
    room = await ingress(WEBHOOKS_RECEIVE_SECONDS="1.5")
    before, memory = descriptors(room.pid), megabytes(room.pid)

    with attack(room.url, 50) as slow:
        seen = await deliver_meanwhile(room, slow, tenant, seconds=2)
        await eventually(lambda: _all_closed(slow, but="idle deaf"))
        left = {each.kind: each.alive() for each in slow}

    assert set(seen.statuses) == {200}
    assert max(seen.seconds) < 2
    assert before + 150 < seen.descriptors < before + 330
    assert seen.megabytes < memory + 64
    assert left == {"silent": 0, "headers": 0, "body": 0, "idle": 50, "deaf": 50, "vanished": 0}
    await eventually(lambda: _few_descriptors(room, before + 10))


async def _all_closed(slow: list[Slow], *, but: str = "") -> bool:
    return not any(each.alive() for each in slow if each.kind not in but.split())


async def _few_descriptors(room: Process, count: int) -> bool:
    return descriptors(room.pid) <= count


async def test_ever_more_connections_give_way_to_good_deliveries(
    ingress: Callable[..., Any], tenant: str
) -> None:
    room = await ingress(WEBHOOKS_CONNECTIONS_MAX="64", WEBHOOKS_RECEIVE_SECONDS="30")
    before = descriptors(room.pid)

    with attack(room.url, 60) as slow:
        await eventually(lambda: _few_descriptors(room, before + 70))
        seen = await deliver_meanwhile(room, slow, tenant, seconds=1)
        alive = sum(each.alive() for each in slow)
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(f"{room.url}/metrics")).text

    assert set(seen.statuses) == {200}
    assert seen.descriptors <= before + 70
    assert alive <= 64
    assert 'billing_webhook_connections_closed_total{reason="evicted"}' in metrics


def allow_descriptors(monkeypatch: pytest.MonkeyPatch, *, soft: int, hard: int) -> None:
    """For processes that are started from now on."""
    die_with_parent = processes.die_with_parent

    def limited(number: signal.Signals) -> Callable[[], None]:
        prepare = die_with_parent(number)

        def run() -> None:
            prepare()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        return run

    monkeypatch.setattr(processes, "die_with_parent", limited)


async def test_with_few_descriptors_it_takes_fewer_connections_and_goes_on(
    ingress: Callable[..., Any], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_descriptors(monkeypatch, soft=48, hard=64)
    room = await ingress()

    with attack(room.url, 60, (silent, dripping_body)) as slow:
        seen = await deliver_meanwhile(room, slow, tenant, seconds=1)

    assert set(seen.statuses) == {200}
    assert seen.descriptors <= 64
    assert descriptors_allowed(room.pid) == (64, 64)


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [300, 1500])
@pytest.mark.parametrize("kind", [*KINDS, None], ids=lambda kind: kind.__name__ if kind else "all")
async def test_slow_connections_of_one_kind(
    ingress: Callable[..., Any], tenant: str, kind: Callable[[str, int], Slow] | None, count: int
) -> None:
    room = await ingress()
    before, memory = descriptors(room.pid), megabytes(room.pid)

    with many_descriptors(), attack(room.url, count, (kind,) if kind else KINDS) as slow:
        seen = await deliver_meanwhile(room, slow, tenant, seconds=8)

    slowest = sorted(seen.seconds)
    print(
        f"\n{kind.__name__ if kind else 'all'} x {count}: {len(slowest)} good deliveries,"
        f" p50 {slowest[len(slowest) // 2] * 1000:.0f} ms, max {slowest[-1] * 1000:.0f} ms;"
        f" RSS {memory:.0f} -> {seen.megabytes:.0f} MB, descriptors {before} -> {seen.descriptors}"
    )
    assert set(seen.statuses) == {200}
    assert slowest[-1] < 2
    assert seen.descriptors <= before + 2048 + 16
    assert seen.megabytes < memory + 200
    await eventually(lambda: _few_descriptors(room, before + 10))


@pytest.fixture
async def room(start: Start) -> Running:
    return await start(deliver=False, webhooks_connections_max=16)


async def test_whom_we_keep_waiting_is_not_dropped_for_newcomers(
    room: Running, db: psycopg.AsyncConnection, tenant: str
) -> None:
    async with db.transaction():
        await db.execute("LOCK TABLE webhook_events IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(room.post(charged(f"{tenant}_{number}"))) for number in range(10)]
        await asyncio.sleep(0.3)
        crowd = silent(room.url, 200)
        await eventually(lambda: _alive(crowd, 6))
    answers = await asyncio.gather(*waiting)
    crowd.close()

    assert [answer.status_code for answer in answers] == [200] * 10


async def _alive(slow: Slow, count: int) -> bool:
    return slow.alive() <= count


async def test_when_everybody_waits_for_us_the_newcomer_is_told_to_come_again(
    room: Running, db: psycopg.AsyncConnection, tenant: str
) -> None:
    async with db.transaction():
        await db.execute("LOCK TABLE webhook_events IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(room.post(charged(f"{tenant}_{number}"))) for number in range(16)]
        await asyncio.sleep(0.5)
        async with connection(room.url) as (reader, _):
            [refused] = answers_in(await received(reader))
    answers = await asyncio.gather(*waiting)

    assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "NOT_STORED", "1")
    assert [answer.status_code for answer in answers] == [200] * 16


async def test_who_never_reads_is_dropped_with_his_answers(
    room: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.webhooks.http.protocol._WRITE_SECONDS", 0.5)
    [deaf_one] = open_sockets(room.url, 1, receive_buffer=2048)
    ask = request(b"", method="GET", target="/metrics", signed=False)

    async def dropped() -> bool:
        with contextlib.suppress(OSError):
            deaf_one.send(ask * 4)
        metrics = (await room.http.get(f"{room.url}/metrics")).text
        return 'connections_closed_total{reason="not_reading"}' in metrics

    with deaf_one:
        await eventually(dropped)
        assert not _is_open(deaf_one)


async def test_empty_lines_do_not_keep_a_connection(start: Start) -> None:
    room = await start(deliver=False, webhooks_receive_seconds=0.5)
    async with connection(room.url) as (reader, writer):
        writer.write(PROBE)
        answer = await reader.readuntil(b'{"status":"ok"}')
        ended = asyncio.create_task(received(reader))
        began_at = time.monotonic()
        while not ended.done() and time.monotonic() - began_at < 8:
            with contextlib.suppress(ConnectionError):
                writer.write(b"\r\n")
            await asyncio.sleep(0.05)

    assert answer.startswith(b"HTTP/1.1 200")
    assert ended.done()
    assert ended.result() == b""


async def test_many_large_bodies_at_once_take_bounded_memory(
    ingress: Callable[..., Any], tenant: str
) -> None:
    """Two hundred forged megabytes, all at once: most are told to come again, small deliveries pass."""
    room = await ingress()
    memory = megabytes(room.pid)
    large = request(b"x" * (1 << 20), ("X-Razorpay-Signature", "0" * 64), signed=False)
    peak = 0.0

    async def send() -> list[int]:
        async with connection(room.url) as (reader, writer):
            with contextlib.suppress(ConnectionError):
                writer.write(large)
                await writer.drain()
                writer.write_eof()
            return statuses(answers_in(await received(reader)))

    sending = [asyncio.create_task(send()) for _ in range(200)]
    async with httpx.AsyncClient(timeout=10) as http:
        good: list[int] = []
        while not all(each.done() for each in sending):
            good.append(await post(http, room.url, charged(f"{tenant}_{len(good)}")))
            peak = max(peak, megabytes(room.pid))
        afterwards = await post(http, room.url, sample("payment.captured.json"))
    found = {status for each in sending for status in each.result()}
    print(f"\nlarge bodies: RSS {memory:.0f} -> {peak:.0f} MB")

    assert found <= {401, 429, 503}
    assert set(good) == {200}
    assert peak < memory + 160
    assert afterwards == 200
