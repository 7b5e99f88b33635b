"""What the ingress answers, over real sockets."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.webhooks.conftest import Start
from tests.webhooks.harness import (
    OLD_SECRET,
    PAYLOADS,
    SAMPLES,
    Running,
    charged,
    eventually,
    sample,
    signature,
)

FAILURES = "SELECT * FROM billing_signature_failures"


async def test_every_sample_is_stored_with_its_own_headers(start: Start) -> None:
    room = await start(deliver=False)

    answers = [
        await room.http.post(
            f"{room.url}/webhooks/razorpay",
            content=(PAYLOADS / each["file"]).read_bytes(),
            headers=each["headers"],
        )
        for each in SAMPLES
    ]

    assert [answer.status_code for answer in answers] == [200] * len(SAMPLES)
    rows = {row["body_sha256"]: row for row in await room.rows()}
    assert rows.keys() == {each["sha256"] for each in SAMPLES}
    for each in SAMPLES:
        row = rows[each["sha256"]]
        assert bytes(row["body"]) == (PAYLOADS / each["file"]).read_bytes()
        assert (row["event_type"], row["event_id"]) == (each["event"], each["headers"]["x-razorpay-event-id"])
        assert (row["provider"], row["account_id"], row["mode"]) == ("razorpay", "default", "test")


async def test_the_same_bytes_are_one_event_whatever_their_event_id(room: Running) -> None:
    body = sample("payment.captured.json")

    answers = [await room.post(body, x_razorpay_event_id=f"forged{number}") for number in range(3)]

    assert [answer.json()["status"] for answer in answers] == ["stored", "duplicate", "duplicate"]
    assert len(await room.rows()) == 1


async def test_a_forged_event_id_never_suppresses_a_real_event(room: Running, tenant: str) -> None:
    first, second = charged(tenant), charged(tenant, payment="pay_other")

    answers = [await room.post(body, x_razorpay_event_id="sameid") for body in (first, second)]

    assert [answer.json()["status"] for answer in answers] == ["stored", "stored"]


async def test_fifty_at_once_over_two_processes_are_one_row(start: Start) -> None:
    one = await start()
    other = await start(subscriptions=one.subscriptions, address=one.settings.subscriptions_address)
    body = sample("subscription.charged.json")

    answers = await asyncio.gather(*((one, other)[number % 2].post(body) for number in range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["status"] for answer in answers) == ["duplicate"] * 49 + ["stored"]
    await one.settled(1)
    assert len(one.subscriptions.effects) == 1


async def test_overlapping_groups_from_two_processes_never_deadlock(start: Start, tenant: str) -> None:
    one = await start(deliver=False)
    other = await start(deliver=False, address=one.settings.subscriptions_address)
    bodies = [charged(f"{tenant}_{number}") for number in range(40)]

    answers = await asyncio.gather(
        *(one.post(body) for body in bodies), *(other.post(body) for body in reversed(bodies))
    )

    assert {answer.status_code for answer in answers} == {200}
    assert sum(answer.json()["status"] == "stored" for answer in answers) == 40


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"X-Razorpay-Signature", b"")],
        [(b"X-Razorpay-Signature", b"0" * 64)],
        [(b"X-Razorpay-Signature", b"0" * 63)],
        [(b"X-Razorpay-Signature", "é".encode() * 32)],
        [(b"X-Razorpay-Signature", b"\xff" * 64)],
        [(b"X-Razorpay-Signature", b"good"), (b"X-Razorpay-Signature", b"good")],
        [(b"X-Razorpay-Signature", b"GOOD")],
        [(b"X-Razorpay-Signature", b"sha256=good")],
    ],
)
async def test_an_odd_signature_is_401_and_recorded(start: Start, headers: list[tuple[bytes, bytes]]) -> None:
    room = await start(deliver=False)
    body = sample("payment.captured.json")
    good = signature(body).encode()
    given = [
        (name, value.replace(b"good", good).replace(b"GOOD", good.upper()).strip()) for name, value in headers
    ]

    answer = await room.http.post(
        f"{room.url}/webhooks/razorpay",
        content=body,
        headers=[*given, (b"User-Agent", b"tester"), (b"X-Razorpay-Event-Id", b"evt123")],
    )

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "INVALID_SIGNATURE"
    [failure] = await eventually(lambda: room.rows(FAILURES))
    assert (failure["endpoint"], failure["tenant_id"], failure["remote_ip"]) == ("webhook", None, "127.0.0.1")
    assert (failure["user_agent"], failure["payload_id"]) == ("tester", "evt123")
    assert await room.rows() == []


async def test_a_flood_of_forgeries_fills_no_disk(start: Start) -> None:
    room = await start(deliver=False)

    answers = await asyncio.gather(*(room.post(b"{}", secret="wrong-secret") for _ in range(100)))

    assert {answer.status_code for answer in answers} == {401}

    async def written() -> bool:
        return len(await room.rows(FAILURES)) >= 30

    await eventually(written)
    await asyncio.sleep(0.1)  # no more than these come
    assert len(await room.rows(FAILURES)) == 30
    metrics = (await room.http.get(f"{room.url}/metrics")).text
    assert 'billing_webhook_signature_failures_total{endpoint="",provider="razorpay"} 100.0' in metrics


async def test_a_flood_at_one_address_does_not_hide_that_another_has_the_wrong_secret(start: Start) -> None:
    endpoints = {"live": {"account_id": "acc_x", "mode": "live", "secrets": ["second-secret"]}}
    room = await start(deliver=False, webhooks_endpoints=endpoints)

    await asyncio.gather(*(room.post(b"{}", secret="wrong-secret") for _ in range(60)))
    await asyncio.gather(
        *(room.post(b"{}", secret="mistyped-secret", path="/webhooks/razorpay/live") for _ in range(10))
    )

    async def written() -> bool:
        return len(await room.rows(f"{FAILURES} WHERE path = 'live'")) == 10

    await eventually(written)


async def test_both_secrets_are_good_during_a_rotation(start: Start, tenant: str) -> None:
    room = await start(deliver=False, razorpay_webhook_secret_previous=OLD_SECRET)
    after = await start(deliver=False)

    old = await room.post(charged(tenant), secret=OLD_SECRET)
    new = await room.post(charged(tenant, payment="pay_2"))
    too_late = await after.post(charged(tenant, payment="pay_3"), secret=OLD_SECRET)

    assert [old.status_code, new.status_code, too_late.status_code] == [200, 200, 401]
    signed = await room.rows("SELECT signed_with FROM webhook_events ORDER BY received_at")
    assert [row["signed_with"] for row in signed] == ["previous", "current"]


async def test_an_endpoint_has_its_own_account_mode_and_secrets(start: Start, tenant: str) -> None:
    endpoints = {
        "shop-live": {"account_id": "acc_x", "mode": "live", "secrets": ["second-secret"]},
        "shop-test": {"account_id": "acc_x", "mode": "test", "secrets": ["third-secret", "older-secret"]},
    }
    room = await start(deliver=False, webhooks_endpoints=endpoints)
    body, live, test = charged(tenant), "/webhooks/razorpay/shop-live", "/webhooks/razorpay/shop-test"

    wrong = await room.post(body, path=live)
    right = await room.post(body, path=live, secret="second-secret")
    other_mode = await room.post(body, path=test, secret="second-secret")
    same_account = await room.post(body, path=test, secret="older-secret")
    default = await room.post(body)
    unknown = await room.post(body, path="/webhooks/razorpay/acc_unknown")
    slashed = await room.post(body, path=f"{live}/", secret="second-secret")

    answers = [wrong, right, other_mode, same_account, default]
    assert [each.status_code for each in answers] == [401, 200, 401, 200, 200]
    assert unknown.json() == slashed.json() == {"status": "duplicate"}
    identities = {(row["account_id"], row["mode"]) for row in await room.rows()}
    assert identities == {("acc_x", "live"), ("acc_x", "test"), ("default", "test")}

    async def recorded() -> object:
        rows = await room.rows("SELECT path FROM billing_signature_failures ORDER BY created_at")
        return len(rows) == 2 and rows

    assert [row["path"] for row in await eventually(recorded)] == ["shop-live", "shop-test"]


@pytest.mark.parametrize("body", [b"", b"null", b"\x00", b'{"event":"\x00"}', b"[" * 100_000, b"9" * 5000])
async def test_whatever_is_signed_is_stored(start: Start, body: bytes) -> None:
    room = await start(deliver=False)

    answer = await room.post(body, content_encoding="gzip", content_type="text/nonsense")

    assert answer.status_code == 200
    [row] = await room.rows()
    assert row["body_sha256"] == hashlib.sha256(body).hexdigest()


async def test_an_unknown_event_is_stored_and_200(room: Running) -> None:
    answer = await room.post(b'{"entity":"event","event":"virtual_account.credited","payload":{}}')

    assert answer.status_code == 200
    [row] = await room.settled(1)
    assert (row["event_type"], row["outcome"]) == ("virtual_account.credited", "applied")


@pytest.mark.parametrize("as_stream", [True, False], ids=["chunked", "with length"])
async def test_two_mebibytes_are_413(start: Start, as_stream: bool) -> None:
    room = await start(deliver=False)
    body = b"x" * (2 << 20)

    async def chunks() -> AsyncIterator[bytes]:
        for offset in range(0, len(body), 65536):
            yield body[offset : offset + 65536]

    answer = await room.http.post(
        f"{room.url}/webhooks/razorpay",
        content=chunks() if as_stream else body,
        headers={"X-Razorpay-Signature": signature(body)},
    )

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "BODY_TOO_LARGE"
    assert await room.rows() == []


async def test_the_limit_itself_is_accepted_chunked(start: Start) -> None:
    room = await start(deliver=False)
    body = json.dumps({"event": "x.y", "pad": ""}).encode()
    body = body[:-2] + b"z" * ((1 << 20) - len(body)) + body[-2:]

    async def chunks() -> AsyncIterator[bytes]:
        for offset in range(0, len(body), 10_000):
            yield body[offset : offset + 10_000]

    answer = await room.http.post(
        f"{room.url}/webhooks/razorpay", content=chunks(), headers={"X-Razorpay-Signature": signature(body)}
    )

    assert (len(body), answer.status_code) == (1 << 20, 200)


async def test_a_lying_content_length_is_answered_at_once(start: Start) -> None:
    room = await start(deliver=False)
    host, port = room.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    writer.write(b"POST /webhooks/razorpay HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999\r\n\r\n")
    head = await asyncio.wait_for(reader.read(1000), 10)

    assert head.startswith(b"HTTP/1.1 413")
    writer.close()


async def test_slow_senders_are_closed_while_others_are_served(start: Start, tenant: str) -> None:
    room = await start(deliver=False, webhooks_receive_seconds=1.5)
    host, port = room.url.removeprefix("http://").split(":")
    slow = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
    for number, (_, writer) in enumerate(slow):
        head = b"POST /webhooks/razorpay HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{"
        writer.write(head if number % 2 else head[:20])

    async with asyncio.timeout(1.4):
        good = await room.post(charged(tenant))
    async with asyncio.timeout(20):
        answers = [await reader.read() for reader, _ in slow]

    assert good.status_code == 200
    assert {answer[:12] for answer in answers[1::2]} == {b"HTTP/1.1 408"}
    assert set(answers[::2]) == {b""}
    for _, writer in slow:
        writer.close()


async def test_endless_headers_are_cut_off(start: Start) -> None:
    room = await start(deliver=False)
    host, port = room.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def flood() -> bytes:
        writer.write(b"POST /webhooks/razorpay HTTP/1.1\r\nHost: h\r\n")
        for _ in range(2000):
            writer.write(b"X-Filler: " + b"x" * 1000 + b"\r\n")
            await writer.drain()
        return await reader.read()

    with contextlib.suppress(ConnectionError):  # if the refusal overtook what was still on its way
        answer = await asyncio.wait_for(flood(), 3)
        assert answer.startswith(b"HTTP/1.1 431")
    assert reader.at_eof() or reader.exception()
    writer.close()


async def test_health_metrics_and_wrong_turns(room: Running) -> None:
    healthy = await room.http.get(f"{room.url}/healthz")
    metrics = await room.http.get(f"{room.url}/metrics")
    wrong_method = await room.http.get(f"{room.url}/webhooks/razorpay")
    wrong_provider = await room.http.post(f"{room.url}/webhooks/nobody", content=b"{}")
    nowhere = await room.http.get(f"{room.url}/nowhere")

    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok"})
    assert "billing_webhook_inbox_lag_seconds" in metrics.text
    assert [wrong_method.status_code, wrong_provider.status_code, nowhere.status_code] == [405, 404, 404]
    assert {answer.json()["error"]["code"] for answer in (wrong_method, wrong_provider, nowhere)} == {
        "METHOD_NOT_ALLOWED",
        "UNKNOWN_PROVIDER",
        "NOT_FOUND",
    }


async def test_503_when_it_cannot_be_stored(start: Start, tenant: str) -> None:
    room = await start(deliver=False, webhooks_database_url="postgresql://webhooks_rw:x@127.0.0.1:1/none")

    answer = await room.post(charged(tenant))
    health = await room.http.get(f"{room.url}/healthz")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "NOT_STORED")
    assert int(answer.headers["retry-after"]) >= 1
    assert health.status_code == 503


async def test_card_data_is_masked_and_its_hash_kept(room: Running, tenant: str) -> None:
    document = json.loads(charged(tenant))
    card = document["payload"]["payment"]["entity"]["card"]
    card.update(number="4111 1111 1111 1111", cvv="737", note="5555-5555-5555-4444")
    body = json.dumps(document).encode()

    answers = [await room.post(body), await room.post(body)]

    assert [answer.json()["status"] for answer in answers] == ["stored", "duplicate"]
    [row] = await room.settled(1)
    assert row["masked"]
    assert row["body_sha256"] == hashlib.sha256(body).hexdigest()
    for secret in (b"4111", b"737", b"5555"):
        assert secret not in bytes(row["body"])
    assert row["outcome"] == "applied"


HEADER = st.binary(max_size=80).filter(lambda value: not set(value) & set(b"\r\n\0")).map(bytes.strip)


async def test_no_signature_header_makes_it_fail(start: Start) -> None:
    room = await start(deliver=False)
    body = sample("payment.captured.json")
    seen: set[int] = set()
    loop = asyncio.get_running_loop()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(HEADER, max_size=3), HEADER, st.integers(0, 255))
    def knock(signatures: list[bytes], event_id: bytes, flipped: int) -> None:
        forged = bytearray(signature(body).encode())
        forged[flipped % 64] = forged[flipped % 64] ^ (1 << flipped % 7) or 1
        for values in (signatures, [bytes(forged)]):
            if any(byte < 32 or byte == 127 for value in (*values, event_id) for byte in value):
                continue
            headers = [(b"X-Razorpay-Signature", value) for value in values]
            future = asyncio.run_coroutine_threadsafe(
                room.http.post(
                    f"{room.url}/webhooks/razorpay",
                    content=body,
                    headers=[*headers, (b"x-razorpay-event-id", event_id)],
                ),
                loop,
            )
            answer: httpx.Response = future.result(30)
            seen.add(answer.status_code)

    await asyncio.to_thread(knock)

    assert seen == {401}


async def test_many_large_bodies_that_never_end_take_bounded_memory(start: Start, tenant: str) -> None:
    room = await start(deliver=False, webhooks_receive_seconds=2)
    host, port = room.url.removeprefix("http://").split(":")
    senders = [await asyncio.open_connection(host, int(port)) for _ in range(90)]
    try:
        for _, writer in senders:
            writer.write(b"POST /webhooks/razorpay HTTP/1.1\r\nHost: h\r\nContent-Length: 1048000\r\n\r\n")
            writer.write(b"x" * 1_040_000)
        answers = await asyncio.gather(*(first_bytes(reader) for reader, _ in senders))
        good = await room.post(charged(tenant))
    finally:
        for _, writer in senders:
            writer.close()

    assert set(answers) <= {b"HTTP/1.1 503", b"HTTP/1.1 408", b""}
    assert b"HTTP/1.1 503" in answers
    assert answers.count(b"HTTP/1.1 408") <= 69
    assert good.status_code == 200


async def first_bytes(reader: asyncio.StreamReader) -> bytes:
    """Nothing if the connection was reset: on a busy machine the answer overtakes bytes still on their way."""
    try:
        return await reader.read(12)
    except ConnectionResetError:
        return b""
