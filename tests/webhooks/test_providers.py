"""The seam: what every provider's module promises, and a second one that takes a module and nothing else."""

import hmac
import inspect
import json
import re
from collections.abc import MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx
import pytest
from billing.webhooks.v1 import webhooks_admin_pb2 as admin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.webhooks.rules.events import Glance
from services.webhooks.rules.providers import PROVIDERS, Provider, razorpay
from tests.webhooks import stripish
from tests.webhooks.conftest import Start
from tests.webhooks.harness import OLD_SECRET, SECRET, Running, eventually, sample, signature

# mypy compares them with the protocol, as it compares those of PROVIDERS.
SECOND: Provider = stripish
EVERYWHERE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW = datetime(2026, 11, 20, 6, 30, tzinfo=UTC)
OURS, OLDER = "stripish-secret", "stripish-older-secret"
PATH = "/webhooks/stripish/shop"
ENDPOINTS = {
    "shop": {"provider": "stripish", "account_id": "acct_1", "mode": "live", "secrets": [OURS, OLDER]}
}


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that a new provider adds to the register."""
    monkeypatch.setitem(cast(MutableMapping[str, Provider], PROVIDERS), stripish.NAME, SECOND)


def told(event_type: str = "charge.succeeded", **changes: Any) -> bytes:
    thing = {
        "id": "ch_1",
        "object": "charge",
        "amount": 235882,
        "currency": "inr",
        "captured": True,
        "subscription": "sub_stripish",
        "metadata": {"tenant_id": "acme"},
        **changes,
    }
    event = {"id": "evt_signed_1", "type": event_type, "created": 1791957289, "account": "acct_1"}
    return json.dumps({**event, "data": {"object": thing}}).encode()


def stamped(body: bytes, *secrets: str, at: datetime | None = None) -> dict[str, str]:
    """The header: one moment, and a digest for each secret."""
    moment = str(int((at or datetime.now(UTC)).timestamp()))
    digests = [hmac.digest(each.encode(), f"{moment}.".encode() + body, "sha256").hex() for each in secrets]
    return {"Stripish-Signature": ",".join([f"t={moment}", *(f"v1={digest}" for digest in digests)])}


async def post(room: Running, body: bytes, headers: dict[str, str], path: str = PATH) -> httpx.Response:
    return await room.http.post(room.url + path, content=body, headers=headers)


@pytest.mark.parametrize("provider", [*PROVIDERS.values(), SECOND], ids=lambda provider: provider.NAME)
def test_a_module_has_what_the_seam_asks_for(provider: Provider) -> None:
    asked = {
        name: what for name, what in vars(Provider).items() if inspect.isfunction(what) and name[0] != "_"
    }

    assert set(asked) == {"verify", "event_id", "glance", "normalise"}
    assert re.fullmatch("[a-z][a-z0-9_]*", provider.NAME)
    for name, what in asked.items():
        wanted = list(inspect.signature(what).parameters)[1:]
        assert list(inspect.signature(getattr(provider, name)).parameters) == wanted


def test_each_is_registered_under_its_own_name() -> None:
    assert {name: provider.NAME for name, provider in PROVIDERS.items()} == {name: name for name in PROVIDERS}


@pytest.mark.usefixtures("second")
async def test_a_second_provider_goes_from_the_wire_to_subscriptions(start: Start) -> None:
    room = await start(webhooks_endpoints=ENDPOINTS)
    body = told()

    first = await post(room, body, stamped(body, OURS))
    again = await post(room, body, stamped(body, OURS, at=datetime.now(UTC) - timedelta(seconds=20)))

    assert [answer.json() for answer in (first, again)] == [{"status": "stored"}, {"status": "duplicate"}]
    [row] = await room.settled(1)
    identity = (row["provider"], row["account_id"], row["mode"], row["signed_with"])
    assert identity == ("stripish", "acct_1", "live", "current")
    assert (row["event_id"], row["event_type"]) == ("evt_signed_1", "charge.succeeded")
    assert (row["aggregate_id"], row["tenant_id"], row["outcome"]) == ("sub_stripish", "acme", "applied")
    [request] = room.subscriptions.requests
    event = request.event
    assert request.idempotency_key == f"event:stripish:acct_1:live:{row['body_sha256']}"
    assert (event.provider, event.mode, event.event_id) == ("stripish", "live", "evt_signed_1")
    assert (event.payment.id, event.payment.amount, event.payment.currency) == ("ch_1", 235882, "INR")
    assert event.payment.captured
    assert not event.HasField("subscription")
    view = await room.admin.GetEvent(admin.GetEventRequest(id=row["id"]))
    assert json.loads(view.redacted_body)["data"]["object"]["amount"] == 235882
    metrics = (await room.http.get(f"{room.url}/metrics")).text
    assert 'provider="stripish",result="stored"} 1.0' in metrics


@pytest.mark.usefixtures("second")
async def test_its_secrets_rotate_as_everybodys(start: Start) -> None:
    room = await start(deliver=False, webhooks_endpoints=ENDPOINTS)
    bodies = [told(id=f"ch_{number}") for number in range(4)]

    answers = [
        await post(room, bodies[0], stamped(bodies[0], OLDER)),
        await post(room, bodies[1], stamped(bodies[1], OLDER, OURS)),
        await post(room, bodies[2], stamped(bodies[2], OURS)),
        await post(room, bodies[3], stamped(bodies[3], SECRET)),
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 401]
    signed = await room.rows("SELECT signed_with FROM webhook_events ORDER BY received_at, id")
    assert [row["signed_with"] for row in signed] == ["previous", "current", "current"]


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(("seconds", "status"), [(-310, 401), (-290, 200), (290, 200), (310, 401)])
async def test_a_signed_moment_holds_for_a_while_in_both_directions(
    start: Start, seconds: int, status: int
) -> None:
    room = await start(deliver=False, webhooks_endpoints=ENDPOINTS)
    body = told()

    answer = await post(room, body, stamped(body, OURS, at=datetime.now(UTC) + timedelta(seconds=seconds)))

    assert answer.status_code == status


@pytest.mark.usefixtures("second")
async def test_its_large_and_its_poisonous_bodies_are_treated_as_everybodys(start: Start) -> None:
    room = await start(webhooks_endpoints=ENDPOINTS)
    large, poison = told(description="x" * 200_000), told(id="ch_2", amount=1.5)
    card = told(id="ch_3", number="4111 1111 1111 1111")

    answers = [await post(room, body, stamped(body, OURS)) for body in (large, poison, card)]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    rows = await room.settled(3)
    assert {row["outcome_reason"] for row in rows if row["outcome"] == "dead"} == {"money_not_integer"}
    assert [row["masked"] for row in rows] == [False, False, True]


@pytest.mark.usefixtures("second")
async def test_a_provider_without_a_default_address_is_reached_by_its_paths_alone(start: Start) -> None:
    room = await start(deliver=False, webhooks_endpoints=ENDPOINTS)
    body = told()

    answers = [
        await post(room, body, stamped(body, OURS), path)
        for path in ("/webhooks/stripish", "/webhooks/stripish/other", "/webhooks/razorpay/shop")
    ]

    assert [answer.status_code for answer in answers] == [404, 404, 401]


async def test_a_module_that_breaks_its_promises_loses_no_delivery_and_believes_nobody(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("quotes the body")

    room = await start()
    body = sample("payment.captured.json")

    with monkeypatch.context() as patch:
        patch.setattr(razorpay, "glance", broken)
        stored = await room.post(body)
    with monkeypatch.context() as patch:
        patch.setattr(razorpay, "verify", broken)
        refused = [await room.post(each) for each in (body, b"x" * 100_000)]

    assert stored.json() == {"status": "stored"}
    assert [answer.status_code for answer in refused] == [401, 401]
    [row] = await room.settled(1)
    assert (row["event_type"], row["outcome"]) == (None, "applied")


def signed(value: bytes, name: bytes = b"x-razorpay-signature") -> list[tuple[bytes, bytes]]:
    return [(name, value)]


BODY = sample("invoice.paid.subscription.raw.json")
GOOD = signature(BODY).encode()
SECRETS = [SECRET.encode(), OLD_SECRET.encode()]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        signed(b""),
        signed(GOOD.upper()),
        signed(GOOD.title()),
        signed(b"sha256=" + GOOD),
        signed(b"v1=" + GOOD),
        signed(b'"' + GOOD + b'"'),
        signed(GOOD + b"\n"),
        signed(b" " + GOOD),
        signed(GOOD + b" "),
        signed(GOOD + b"\x00"),
        signed(GOOD[:-1]),
        signed(GOOD + b"0"),
        signed(GOOD + b"," + GOOD),
        signed(bytes.fromhex(GOOD.decode())),
        signed(GOOD, b"X-Razorpay-Signature"),  # a server hands names on in lower case
        signed(GOOD, b"x-razorpay-signature "),
        signed(GOOD, b"x-signature"),
        signed(GOOD) * 2,
        [*signed(GOOD), *signed(b"0" * 64)],
        signed("０".encode() * 64),
        signed("é".encode() * 32),
        signed(b"\xff" * 64),
        signed(b"0" * 10_000_000),
        signed(signature(BODY, "").encode()),
        signed(signature(BODY, f"{SECRET} ").encode()),
        signed(signature(BODY, SECRET.upper()).encode()),
        signed(signature(b"", SECRET).encode()),
        signed(signature(json.dumps(json.loads(BODY)).encode()).encode()),
        signed(signature(BODY, "the-secret-of-the-API").encode()),
    ],
)
def test_nothing_but_one_exact_signature_is_believed(headers: list[tuple[bytes, bytes]]) -> None:
    assert razorpay.verify(headers, BODY, SECRETS, NOW) is None


@EVERYWHERE
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"x-razorpay-signature", b"x-razorpay-event-id", b""]) | st.binary(max_size=30),
            st.binary(max_size=120) | st.just(GOOD).map(lambda good: good[::-1]),
        ),
        max_size=5,
    ),
    st.lists(st.binary(min_size=8, max_size=40), max_size=4),
)
def test_no_header_raises_and_none_verifies_by_chance(
    headers: list[tuple[bytes, bytes]], secrets: list[bytes]
) -> None:
    assert razorpay.verify(headers, BODY, secrets, NOW) is None
    claimed = razorpay.event_id(headers)
    assert claimed is None or re.fullmatch("[A-Za-z0-9_.:-]{1,64}", claimed)


@EVERYWHERE
@given(
    st.binary(max_size=300), st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4, unique=True)
)
def test_every_secret_is_known_by_its_place_over_any_bytes(body: bytes, secrets: list[bytes]) -> None:
    # HMAC fills short keys up with zeros, so two that differ in those alone are one.
    secrets = list({each.rstrip(b"\x00"): each for each in secrets if each.strip(b"\x00")}.values())
    for place, secret in enumerate(secrets):
        headers = signed(hmac.digest(secret, body, "sha256").hex().encode())

        assert razorpay.verify(headers, body, secrets, NOW) == place
        assert razorpay.verify(headers, body, secrets[:place], NOW) is None


def test_no_bit_may_be_another() -> None:
    def flipped(text: bytes, bit: int) -> bytes:
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def believed(signature: bytes, body: bytes) -> bool:
        return razorpay.verify(signed(signature), body, SECRETS, NOW) is not None

    assert believed(GOOD, BODY)
    assert not any(believed(flipped(GOOD, bit), BODY) for bit in range(len(GOOD) * 8))
    assert not any(believed(GOOD, flipped(BODY, bit)) for bit in range(len(BODY) * 8))


@pytest.mark.parametrize(
    "claimed", [b"", b"a" * 65, b"a b", "é".encode(), b"evt\x00", b"4111111111111111", b"a/b"]
)
def test_an_event_id_that_is_not_fit_to_be_shown_is_none(claimed: bytes) -> None:
    assert razorpay.event_id([(b"x-razorpay-event-id", claimed)]) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["payload", "subscription", "order", "payment", "invoice", "entity", "id", "notes", "event"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@EVERYWHERE
@given(st.dictionaries(st.sampled_from(["event", "payload", "entity"]), JSON))
def test_a_glance_never_raises(document: dict[str, Any]) -> None:
    seen = razorpay.glance(document)

    assert isinstance(seen, Glance)
    assert all(value is None or (isinstance(value, str) and value) for value in vars(seen).values())


async def test_the_secret_of_the_api_signs_no_delivery_and_is_seen_to(start: Start) -> None:
    room = await start(deliver=False)

    answer = await room.post(BODY, secret="the-secret-of-the-API", x_razorpay_event_id="evt1")

    assert answer.status_code == 401

    async def recorded() -> list[dict[str, Any]]:
        return await room.rows("SELECT payload_id FROM billing_signature_failures")

    assert await eventually(recorded) == [{"payload_id": "evt1"}]
