"""Whom the ingress limits: strangers by their address, and never what a provider signed."""

import asyncio
import time
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from services.webhooks.rules import addresses
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Running, charged, eventually, room_settings
from tests.webhooks.sockets import converse, request, statuses

BUCKETS = "SELECT key FROM rate_limit_buckets WHERE room = 'webhooks' ORDER BY key"
FAILURES = "SELECT remote_ip FROM billing_signature_failures"
PROXY = "127.0.0.1"


async def forge(room: Running, count: int = 1, **headers: str) -> list[int]:
    answers = await asyncio.gather(
        *(room.post(b"{}", secret="guessed-secret", **headers) for _ in range(count))
    )
    return sorted(answer.status_code for answer in answers)


async def recorded(room: Running, count: int) -> list[str | None]:
    """The addresses of refused deliveries, once so many are written."""

    async def written() -> list[dict[str, Any]] | None:
        rows = await room.rows(FAILURES)
        return rows if len(rows) >= count else None

    return [row["remote_ip"] for row in await eventually(written)]


async def requests(room: Running) -> dict[str, float]:
    """How often each result occurred, as the metrics tell."""
    start = 'billing_webhook_requests_total{provider="razorpay",result="'
    lines = (await room.http.get(f"{room.url}/metrics")).text.splitlines()
    found = (line.removeprefix(start).split('"} ') for line in lines if line.startswith(start))
    return {result: float(value) for result, value in found}


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a question may take longer than strangers are worth, and they are answered unasked."""
    monkeypatch.setattr("services.webhooks.http.strangers._WAIT_SECONDS", 20.0)


@pytest.mark.usefixtures("unhurried")
async def test_the_sixth_forgery_is_told_when_to_come_again(start: Start) -> None:
    room = await start(deliver=False, webhooks_unsigned_per_15_minutes=5)

    within = [(await forge(room))[0] for _ in range(5)]
    beyond = await room.post(b"{}", secret="guessed-secret")

    assert within == [401] * 5
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (429, "RATE_LIMITED")
    assert 1 <= int(beyond.headers["retry-after"]) <= 180
    assert await requests(room) == {"bad_signature": 5, "rate_limited": 1}


@pytest.mark.usefixtures("unhurried")
async def test_a_good_delivery_passes_among_fifty_forged_ones_from_its_own_address(
    start: Start, tenant: str
) -> None:
    room = await start(deliver=False, webhooks_unsigned_per_15_minutes=5)

    first, good, rest = await asyncio.gather(forge(room, 50), room.post(charged(tenant)), forge(room, 50))
    after = await room.post(charged(tenant, payment="pay_2"))

    assert sorted([*first, *rest]) == [401] * 5 + [429] * 95
    assert [good.json(), after.json()] == [{"status": "stored"}] * 2
    assert (
        await recorded(room, 30) == [PROXY] * 30
    )  # the log of failures is bounded, and more than the ten that alarm


@pytest.mark.usefixtures("unhurried")
async def test_behind_a_trusted_proxy_each_has_a_limit_of_its_own(start: Start, tenant: str) -> None:
    room = await start(
        deliver=False, webhooks_unsigned_per_15_minutes=5, webhooks_trusted_proxies="127.0.0.1, 10.0.0.0/8"
    )

    forger = await forge(room, 6, x_forwarded_for="8.8.8.8, 203.0.113.7, 10.1.2.3")
    another = await forge(room, 1, x_forwarded_for="203.0.113.8")
    neighbours = [
        (await forge(room, 1, x_forwarded_for=f"2001:db8:1:2::{number}"))[0] for number in range(1, 8)
    ]
    good = await room.post(charged(tenant), x_forwarded_for="203.0.113.7")

    assert (forger, another, good.status_code) == ([401] * 5 + [429], [401], 200)
    assert neighbours == [401] * 5 + [429] * 2
    assert [row["key"] for row in await room.rows(BUCKETS)] == [
        "unsigned:2001:db8:1:2::/64",
        "unsigned:203.0.113.7",
        "unsigned:203.0.113.8",
    ]
    assert set(await recorded(room, 14)) == {
        "203.0.113.7",
        "203.0.113.8",
        *(f"2001:db8:1:2::{number}" for number in range(1, 8)),
    }


@pytest.mark.usefixtures("unhurried")
async def test_an_address_that_an_untrusted_sender_names_is_not_believed(start: Start) -> None:
    room = await start(
        deliver=False, webhooks_unsigned_per_15_minutes=5, webhooks_trusted_proxies="192.0.2.0/24"
    )

    answers = [(await forge(room, 1, x_forwarded_for=f"198.51.100.{number}"))[0] for number in range(7)]

    assert answers == [401] * 5 + [429] * 2
    assert set(await recorded(room, 7)) == {PROXY}


async def test_ever_new_addresses_do_not_cause_a_statement_each(start: Start) -> None:
    room = await start(
        deliver=False, webhooks_unsigned_per_15_minutes=5, webhooks_trusted_proxies="127.0.0.1"
    )
    began_at = time.monotonic()
    answers: set[int] = set()
    for first in range(0, 1000, 50):
        sent = [
            request(b"{}", ("X-Forwarded-For", f"10.0.{first // 50}.{number}"), signed=False)
            for number in range(50)
        ]
        for each in await asyncio.gather(*(converse(room.url, one) for one in sent)):
            answers |= set(statuses(each))
    seconds = int(time.monotonic() - began_at) + 2

    assert answers == {401}
    assert len(await room.rows(BUCKETS)) <= 20 * seconds
    assert len(await room.rows(FAILURES)) <= 120


async def test_while_the_database_hangs_strangers_get_401_and_good_deliveries_pass(
    start: Start, db: psycopg.AsyncConnection, tenant: str
) -> None:
    room = await start(deliver=False, webhooks_unsigned_per_15_minutes=5)
    async with db.transaction():
        await db.execute("LOCK TABLE rate_limit_buckets IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(4):
            forged, good = await asyncio.gather(forge(room, 60), room.post(charged(tenant)))
            again = await forge(room, 60)

    assert (set(forged), set(again)) == ({401}, {401})
    assert good.status_code == 200


async def test_probes_are_not_limited(start: Start) -> None:
    room = await start(deliver=False, webhooks_unsigned_per_15_minutes=1)
    await forge(room, 5)

    answers = [
        (await room.http.get(f"{room.url}{path}")).status_code for path in ("/healthz", "/metrics") * 20
    ]

    assert answers == [200] * 40


TRUSTED = addresses.networks("10.0.0.0/8, 127.0.0.1, fd00::/8, 2001:db8::5")


@pytest.mark.parametrize(
    ("peer", "forwarded", "sender"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", [b"198.51.100.1"], "203.0.113.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"1.1.1.1, 198.51.100.1, 10.2.3.4,127.0.0.1"], "198.51.100.1"),
        ("10.0.0.1", [b"1.1.1.1", b"198.51.100.1", b"10.2.3.4"], "198.51.100.1"),
        ("10.0.0.1", [b"10.9.9.9, 10.2.3.4"], "10.9.9.9"),
        ("10.0.0.1", [b"198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", [b"[2001:db8::1]:443"], "2001:db8::1"),
        ("10.0.0.1", [b"2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.1", [b"::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("fd00::1%eth0", [b"fe80::1%eth0"], "fe80::1"),
        ("2001:db8::5", [b"198.51.100.1"], "198.51.100.1"),
        ("2001:db8::6", [b"198.51.100.1"], "2001:db8::6"),
        ("10.0.0.1", [b"1.1.1.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", [b"1.1.1.1, _hidden, 10.2.3.4"], "10.2.3.4"),
        ("10.0.0.1", [b"\xff\x00'; DROP TABLE x"], "10.0.0.1"),
        ("10.0.0.1", [b"[[[[", b"]:]:"], "10.0.0.1"),
        ("10.0.0.1", [b"1" * 30_000], "10.0.0.1"),
        ("10.0.0.1", [b"10.1.1.1," * 3000], "10.1.1.1"),
        ("10.0.0.1", [b"for=198.51.100.1"], "10.0.0.1"),
        (None, [b"198.51.100.1"], None),
        ("a socket's path", [b"198.51.100.1"], None),
    ],
)
def test_who_sent_it(peer: str | None, forwarded: list[bytes], sender: str | None) -> None:
    found = addresses.sender(peer, forwarded, TRUSTED)

    assert (str(found) if found else None) == sender


@pytest.mark.parametrize(
    "value", ["*", "0.0.0.0/0", "10.0.0.1, ::/0", "10.0.0.0/33", "proxy.internal", "10.0.0"]
)
def test_nobody_is_trusted_by_mistake(secrets: Any, value: str) -> None:
    with pytest.raises(ValidationError) as refused:
        room_settings("postgresql://h/d", secrets, "127.0.0.1:1", webhooks_trusted_proxies=value)

    assert [each["loc"] for each in refused.value.errors()] == [("webhooks_trusted_proxies",)]
