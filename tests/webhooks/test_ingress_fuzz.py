"""Random and broken bytes through a real socket: never a 5xx, and never a delivery that nobody signed."""

import asyncio
import hashlib
import json
import socket
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.faults import soaking
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Running, sample, signature
from tests.webhooks.sockets import Answer, answers_in, request, statuses

BODY = sample("payment.captured.json")
SIGNATURE = signature(BODY).encode()
GOOD = request(BODY)
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_!#$%&'*+.^`|~", min_size=1, max_size=20).map(
    str.encode
)
VALUE = st.binary(max_size=200).filter(lambda value: not {*value} & {*range(9), *range(10, 32), 127})
SPECIAL = st.sampled_from([
    b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"host", b"content-encoding",
    b"x-razorpay-signature", b"x-razorpay-event-id", b"x-forwarded-for", b"user-agent", b"trailer", b"te",
])  # fmt: skip
SPECIAL_VALUE = st.sampled_from([
    b"chunked", b"identity", b"gzip", b"close", b"keep-alive", b"upgrade", b"websocket", b"h2c", b"100-continue", b"0",
    b"5", b"-1", b"99999999999999999999", b"18446744073709551616", b"1, 1", b"", b"\xff" * 64, b"0" * 64, b"0" * 63,
    SIGNATURE.upper(), SIGNATURE[:-1], SIGNATURE + b"0", b"sha256=" + SIGNATURE, "é".encode() * 32, b"4111111111111111",
    b"[", b"a" * 9000, b"unknown, _x, 1.2.3.4",
])  # fmt: skip
HEADERS = st.lists(st.tuples(TOKEN | SPECIAL, VALUE | SPECIAL_VALUE), max_size=8)
TARGET = st.sampled_from([
    b"/webhooks/razorpay", b"/webhooks/razorpay/", b"/webhooks/razorpay/x", b"/webhooks/%00", b"//", b"*", b"/%", b"?",
    b"http://[::1", b"http://h/webhooks/razorpay", b"/webhooks/razorpay#x", b"/webhooks/razorpay/%2e%2e/%ff", b"/metrics",
])  # fmt: skip
METHOD = st.sampled_from(
    [b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI", b"SOURCE", b"post", b""]
)


@pytest.fixture
async def room(start: Start) -> Running:
    return await start(deliver=False)


def talk(room: Running, sent: bytes) -> list[Answer]:
    """What comes back until the connection is closed; anything that is no HTTP answer fails."""
    host, port = room.url.removeprefix("http://").split(":")
    data = b""
    with socket.create_connection((host, int(port)), timeout=20) as link:
        try:
            link.sendall(sent)
            link.shutdown(socket.SHUT_WR)
            while part := link.recv(65536):
                data += part
        except ConnectionError:
            pass
    head_only = sent[:4] in (b"HEAD", b"head")
    return [] if head_only else answers_in(data)


async def in_thread(check: Callable[[], None]) -> None:
    await asyncio.to_thread(check)


async def stored(room: Running) -> set[str]:
    return {row["body_sha256"] for row in await room.rows("SELECT body_sha256 FROM webhook_events")}


def mutated(data: bytes, place: int, how: int) -> bytes:
    """The data with one bit flipped, one byte more or one byte less."""
    place %= len(data)
    if how < 8:
        return data[:place] + bytes([data[place] ^ 1 << how]) + data[place + 1 :]
    if how == 8:
        return data[:place] + data[place + 1 :]
    return data[:place] + bytes([how % 256]) + data[place:]


def requests_of_nobody(room: Running, examples: int) -> Callable[[], None]:
    @settings(FUZZ, max_examples=examples)
    @given(METHOD, TARGET, HEADERS, st.binary(max_size=300), st.integers(0, 2))
    @example(b"POST", b"/webhooks/razorpay", [(b"x-razorpay-signature", SIGNATURE)] * 2, BODY, 1)
    @example(b"POST", b"/webhooks/razorpay", [(b"x-razorpay-signature", "é".encode() * 32)], BODY, 1)
    @example(b"POST", b"/webhooks/razorpay/", [(b"host", b"[")], b"", 1)
    @example(b"POST", b"/webhooks/razorpay", [(b"upgrade", b"h2c"), (b"connection", b"upgrade")], b"x", 1)
    @example(b"GET", b"/metrics", [(b"upgrade", b"h2c"), (b"connection", b"upgrade")], b"x" * 300, 0)
    def check(
        method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes, lengths: int
    ) -> None:
        told = [(b"content-length", b"%d" % len(body))] * lengths
        head = b"".join(b"%b: %b\r\n" % each for each in (*headers, *told))
        found = statuses(talk(room, b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, head, body)))
        if b"/metrics" not in target:
            assert not {*found} & {200, *range(500, 600)}

    return check


def bytes_of_nobody(room: Running, examples: int) -> Callable[[], None]:
    @settings(FUZZ, max_examples=examples)
    @given(
        st.binary(max_size=600)
        | st.tuples(st.binary(max_size=30), st.binary(max_size=30)).map(GOOD[:60].join)
    )
    @example(b"\r\n" * 3000)
    @example(b"POST " + b"/" * 300_000)
    @example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    def check(sent: bytes) -> None:
        assert not {*statuses(talk(room, sent))} & {200, *range(500, 600)}

    return check


def a_signed_one_that_was_touched(room: Running, examples: int) -> Callable[[], None]:
    @settings(FUZZ, max_examples=examples)
    @given(st.booleans(), st.integers(0, len(BODY) * 2), st.integers(0, 263))
    @example(True, 0, 5)  # a digit of the signature in upper case, if it is a letter
    @example(False, 0, 8)
    @example(False, len(BODY) - 1, 0)
    def check(the_signature: bool, place: int, how: int) -> None:
        body, signed = BODY, SIGNATURE
        if the_signature:
            signed = mutated(SIGNATURE, place, how)
        else:
            body = mutated(BODY, place, how)
        if (body, signed.strip()) != (BODY, SIGNATURE):
            found = statuses(talk(room, request(body, ("X-Razorpay-Signature", signed), signed=False)))
            assert set(found) <= {400, 401}

    return check


def a_signed_one_with_anything_beside_it(room: Running, examples: int) -> Callable[[], None]:
    names = TOKEN.filter(
        lambda name: (
            name.lower()
            not in (b"connection", b"upgrade", b"expect", b"te", b"content-length", b"transfer-encoding")
        )
    )

    @settings(FUZZ, max_examples=examples)
    @given(st.lists(st.tuples(names, VALUE), max_size=6), st.binary(max_size=400))
    @example([(b"x-razorpay-event-id", b"\xff\xfe")], b"\x00")
    @example([(b"x-razorpay-event-id", b"4111111111111111"), (b"user-agent", b"\xe9" * 100)], b"[" * 400)
    def check(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        more = [(name.decode(), value) for name, value in headers]
        [answer] = talk(room, request(body, *more))
        assert answer.status == 200
        assert json.loads(answer.body)["status"] in ("stored", "duplicate")

    return check


FUZZERS = [requests_of_nobody, bytes_of_nobody, a_signed_one_that_was_touched]


@pytest.mark.parametrize("fuzzer", FUZZERS, ids=lambda fuzzer: fuzzer.__name__)
async def test_nothing_unsigned_is_taken_in_or_makes_it_fail(
    room: Running, fuzzer: Callable[[Running, int], Callable[[], None]]
) -> None:
    await in_thread(fuzzer(room, 200))

    assert await stored(room) == set()
    assert (await room.post(BODY)).status_code == 200
    assert await stored(room) == {hashlib.sha256(BODY).hexdigest()}


async def test_whatever_stands_beside_a_good_signature_is_taken_in(room: Running) -> None:
    await in_thread(a_signed_one_with_anything_beside_it(room, 100))

    assert await stored(room)


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
@pytest.mark.parametrize(
    "fuzzer", [*FUZZERS, a_signed_one_with_anything_beside_it], ids=lambda each: each.__name__
)
async def test_long_fuzzing(room: Running, fuzzer: Callable[[Running, int], Callable[[], None]]) -> None:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + soaking.SECONDS
    rounds = 0
    while loop.time() < ends_at:
        await in_thread(fuzzer(room, 1000))
        rounds += 1
    print(f"\n{fuzzer.__name__}: {rounds} rounds of 1000")

    assert rounds
    assert (fuzzer is a_signed_one_with_anything_beside_it) == bool(await stored(room))
