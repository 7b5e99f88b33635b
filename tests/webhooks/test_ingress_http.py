"""HTTP as strangers speak it: each request is answered for itself, or the connection is closed."""

import asyncio
import gzip
import hashlib
import json
import zlib
from typing import Any

import pytest

from services.webhooks.rules.providers import razorpay
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Running, charged, sample, signature
from tests.webhooks.sockets import (
    PATH,
    Answer,
    answers_in,
    chunked,
    connection,
    converse,
    received,
    request,
    statuses,
)

BODY = sample("payment.captured.json")
GOOD = request(BODY)
UPGRADE = (("Connection", "Upgrade"), ("Upgrade", "websocket"))


def in_chunks(body: bytes = BODY, *more: tuple[str, str], version: str = "1.1", **how: Any) -> bytes:
    head = request(body, ("Transfer-Encoding", "chunked"), *more, length=None, version=version)
    return head[: -len(body)] + chunked(body, **how)


@pytest.fixture
async def room(start: Start) -> Running:
    return await start(deliver=False)


async def told(room: Running, cases: dict[str, bytes]) -> dict[str, list[int]]:
    return {name: statuses(await converse(room.url, sent)) for name, sent in cases.items()}


# What is odd but is a delivery, with a second request behind it, to see that the connection is not confused.
ODD = {
    "trailing slash": request(BODY, target=PATH + "/"),
    "an address written by a proxy": request(BODY, target="http://elsewhere/webhooks/razorpay?x=1"),
    "chunked": in_chunks(),
    "chunks of a byte": in_chunks(size=1),
    "huge chunk extensions": in_chunks(extension=b";a=" + b"x" * 40_000),
    "odd chunk extensions": in_chunks(extension=b';a="q\\"\x80";;b'),
    "a signature in the trailers as well": in_chunks(trailers=b"X-Razorpay-Signature: 00\r\n"),
    "empty lines first": b"\r\n\r\n" + GOOD,
    "no Host": GOOD.replace(b"Host: billing.example\r\n", b""),
    "a Host that is none": GOOD.replace(b"billing.example", b"["),
    "a large header": request(BODY, ("X-Large", "a" * 31_000)),
    "a hundred headers": request(BODY, *[("X-Many", "a")] * 100),
    "bytes in headers": request(BODY, ("X-Odd", b"\xff\x80\xc3"), ("User-Agent", b"\xe2\x82\xb9")),
    "an encoding that it has not": request(BODY, ("Content-Encoding", "gzip"), ("Content-Type", "no/such")),
    "websocket": request(BODY, *UPGRADE),
    "websocket, chunked": in_chunks(BODY, *UPGRADE),
    "HTTP/2 offered": request(BODY, ("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c")),
}


async def test_odd_deliveries_are_stored_and_the_next_request_is_answered_for_itself(room: Running) -> None:
    forged = request(b'{"another":"body"}', ("X-Razorpay-Signature", "0" * 64), signed=False)

    found = await told(room, {name: sent + forged for name, sent in ODD.items()})

    assert found == {name: [200, 401] for name in ODD}
    [row] = await room.rows()
    assert bytes(row["body"]) == BODY


# What ends the connection: no byte behind it is taken for a request.
CLOSING = {
    "garbage": (b"\x00\x01garbage\r\n\r\n", 400),
    "TLS": (bytes.fromhex("1603010200010001fc0303") + b"\x00" * 500, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9, 400),
    "HTTP/1.9": (request(BODY, version="1.9"), 400),
    "no such method": (request(BODY, method="BREW"), 400),
    "CONNECT": (request(BODY, method="CONNECT", target="elsewhere:443"), 400),
    "a host and no path": (request(BODY, target="http://elsewhere"), 400),
    "bytes in the path": (GOOD.replace(b"/webhooks", b"/\xff\xfe"), 400),
    "negative length": (request(BODY, length="-1"), 400),
    "length with a sign": (request(BODY, length="+5"), 400),
    "hexadecimal length": (request(BODY, length="0x10"), 400),
    "endless length": (request(BODY, length="9" * 30), 400),
    "two lengths": (request(BODY, ("Content-Length", "5")), 400),
    "the same length twice": (request(BODY, ("Content-Length", str(len(BODY)))), 400),
    "length and chunks": (request(BODY, ("Transfer-Encoding", "chunked")), 400),
    "no such transfer": (request(BODY, ("Transfer-Encoding", "xchunked"), length=None), 400),
    "chunked, then not": (in_chunks(BODY, ("Transfer-Encoding", "identity")), 400),
    "a blank before the colon": (in_chunks().replace(b"Encoding:", b"Encoding :"), 400),
    "a chunk that is none": (in_chunks().replace(b"\r\n\r\n", b"\r\n\r\nzz\r\n", 1), 400),
    "a header over two lines": (request(BODY, ("X-Folded", "a\r\n b")), 400),
    "a header with NUL": (request(BODY, ("X-Nul", b"a\0b")), 400),
    "lines that end early": (GOOD.replace(b"\r\n", b"\n"), 400),
    "too large a header": (request(BODY, ("X-Large", "a" * 33_000)), 431),
    "far too large a header": (request(BODY, ("X-Large", "a" * 300_000)), 431),
    "too many headers": (request(BODY, *[("X-Many", "a")] * 130), 431),
    "thousands of headers": (request(BODY, *[("a", "")] * 5000), 431),
    "too many trailers": (in_chunks(trailers=b"a: b\r\n" * 200), 431),
    "too long an address": (request(BODY, target="/" + "a" * 40_000), 431),
    "not found": (request(BODY, target="/nowhere"), 404),
    "OPTIONS *": (request(BODY, target="*", method="OPTIONS"), 404),
    "two slashes": (request(BODY, target="//webhooks/razorpay"), 404),
    "OPTIONS": (request(BODY, method="OPTIONS"), 405),
    "GET": (request(BODY, method="GET"), 405),
    "a websocket": (request(b"", *UPGRADE, method="GET"), 405),
    "HTTP/1.0": (request(BODY, version="1.0"), 200),
    "HTTP/1.0 in chunks": (in_chunks(version="1.0"), 200),
    "asked to close": (request(BODY, ("Connection", "close")), 200),
}


async def test_what_is_no_request_ends_the_connection_and_hides_nothing_behind_it(room: Running) -> None:
    hidden = request(b'{"hidden":1}')

    found = await told(room, {name: sent + hidden for name, (sent, _) in CLOSING.items()})

    assert found == {name: [status] for name, (_, status) in CLOSING.items()}
    assert {bytes(row["body"]) for row in await room.rows()} == {BODY}


async def test_every_refusal_has_one_shape_and_names_no_software(room: Running) -> None:
    refusals = [sent for sent, status in CLOSING.values() if status >= 400]
    answers = [(await converse(room.url, sent))[0] for sent in refusals]
    answers += await converse(room.url, request(BODY, ("X", "y"), signed=False))

    for answer in answers:
        assert answer.headers["content-type"] == "application/json"
        assert json.loads(answer.body).keys() == {"error"}
        assert json.loads(answer.body)["error"].keys() == {"code", "message"}
        assert "server" not in answer.headers
        for word in (b"uvicorn", b"python", b"starlette", b"httptools"):
            assert word not in answer.body.lower()


async def test_head_is_answered_without_a_body(room: Running) -> None:
    async with connection(room.url) as (reader, writer):
        writer.write(request(method="HEAD", target="/healthz") + request(method="HEAD"))
        first, second, rest = (await received(reader)).split(b"\r\n\r\n")

    assert (first[:12], second[:12], rest) == (b"HTTP/1.1 200", b"HTTP/1.1 405", b"")


async def test_what_follows_a_good_delivery_cannot_take_its_answer(room: Running) -> None:
    followers = {
        "garbage": b"\x00\x01\r\n\r\n",
        "part of another": GOOD[:60],
        "headers": request(b"", ("a", "b" * 40_000)),
    }

    found = await told(room, {name: GOOD + sent for name, sent in followers.items()})

    assert found == {name: [200] for name in followers}


async def test_a_long_row_of_requests_is_answered_in_order_until_it_is_too_long(
    room: Running, tenant: str
) -> None:
    bodies = [charged(f"{tenant}_{number}") for number in range(4)]
    forged = request(b"{}", signed=False)

    some = await converse(room.url, b"".join(request(body) + forged for body in bodies))
    endless = await converse(room.url, GOOD * 3000, hang_up=False)

    assert statuses(some) == [200, 401] * 4
    assert [json.loads(answer.body) for answer in some[::2]] == [{"status": "stored"}] * 4
    assert 1 <= len(endless) < 40
    assert set(statuses(endless)) == {200}
    assert endless[-1].headers["connection"] == "close"


@pytest.mark.parametrize(
    "sent", [GOOD[:-10], GOOD[:40], in_chunks()[:-8], request(BODY, length=str(len(BODY) + 1))]
)
async def test_what_is_abandoned_in_the_middle_is_no_delivery(room: Running, sent: bytes) -> None:
    answers = await converse(room.url, sent)

    assert answers == []
    assert await room.rows() == []
    assert (await room.post(BODY)).status_code == 200


async def test_a_length_that_is_too_short_is_another_body(room: Running) -> None:
    answers = await converse(room.url, request(BODY, length=str(len(BODY) - 5)))

    assert statuses(answers) == [401]
    assert await room.rows() == []


async def test_whoever_asks_first_whether_to_go_on_is_told(room: Running) -> None:
    head = request(BODY, ("Expect", "100-continue"))[: -len(BODY)]
    async with connection(room.url) as (reader, writer):
        writer.write(head)
        go_on = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        writer.write(BODY)
        writer.write_eof()
        answer = answers_in(await received(reader))

    old = await converse(room.url, request(BODY, ("Expect", "100-continue"), version="1.0"))
    large = request(b"", ("Expect", "100-continue"), length=str(2 << 20))
    refused = await converse(room.url, large, hang_up=False)

    assert go_on == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (statuses(answer), statuses(old), statuses(refused)) == ([200], [200], [413])


async def test_compressed_bodies_are_verified_and_kept_as_bytes(room: Running) -> None:
    """Three hundred megabytes of zeros in three hundred kilobytes: nobody looks inside."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(b"\0" * (10 << 20)) for _ in range(30)) + packer.flush()
    bodies = {"gzip": [bomb, gzip.compress(BODY)], "deflate": [zlib.compress(BODY)], "br": [b"\x1b\x00\x00"]}

    for encoding, each in bodies.items():
        for body in each:
            [answer] = await converse(room.url, request(body, ("Content-Encoding", encoding)))
            [forged] = await converse(
                room.url,
                request(
                    body, ("Content-Encoding", encoding), ("X-Razorpay-Signature", "0" * 64), signed=False
                ),
            )
            assert (answer.status, forged.status) == (200, 401)

    assert {row["body_sha256"] for row in await room.rows()} == {
        hashlib.sha256(body).hexdigest() for each in bodies.values() for body in each
    }


async def test_a_path_that_names_no_endpoint_looks_like_one_that_does(start: Start) -> None:
    endpoints = {"shop": {"account_id": "acc_x", "mode": "live", "secrets": ["second-secret"]}}
    room = await start(deliver=False, webhooks_endpoints=endpoints)
    signed_for_none = ("X-Razorpay-Signature", signature(BODY, "guessed"))

    answers: list[Answer] = []
    for name in ("", "/shop", "/no-such-shop"):
        for headers in ([], [signed_for_none]):
            answers += await converse(room.url, request(BODY, *headers, target=PATH + name, signed=False))

    assert {answer.status for answer in answers} == {401}
    assert len({(answer.body, *sorted({*answer.headers} - {"date"})) for answer in answers}) == 1


async def test_a_fault_of_ours_is_503_and_no_other_5xx(
    room: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(razorpay, "event_id", broken)
    for headers in ([], [("X-Razorpay-Signature", "0" * 64)]):
        [answer] = await converse(room.url, request(BODY, *headers, signed=not headers))
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "NOT_STORED", "1")
