"""The pure part: signatures, normalising, masking, redaction, alerts."""

import contextlib
import gzip
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.webhooks.errors import PageTokenInvalid, Poison
from services.webhooks.rules import bodies, values
from services.webhooks.rules.delivery import (
    Patience,
    SetAside,
    TryAgain,
    after_failure,
    describe,
    wait,
)
from services.webhooks.rules.paging import Position, page_token, position_of
from services.webhooks.rules.providers import razorpay
from services.webhooks.rules.redaction import redacted
from shared.errors import InvalidArgument, Unavailable
from shared.sensitive import looks_like_card
from tests.webhooks.harness import PAYLOADS, SAMPLES, SECRET, sample, signature

WELL_FORMED = [each["file"] for each in SAMPLES if each["well_formed"]]
MONDAY_NOON = datetime(2026, 11, 23, 6, 30, tzinfo=UTC)  # 12:00 in India


def changed(name: str, place: str, value: Any) -> bytes:
    """A sample with one value replaced; the place is a dotted path."""
    document = json.loads(sample(name))
    *above, last = place.split("/")
    target = document
    for step in above:
        target = target[step]
    target[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize("file", WELL_FORMED)
def test_every_sample_is_understood(file: str) -> None:
    body = (PAYLOADS / file).read_bytes()
    document = json.loads(body)

    facts = razorpay.normalise(body)

    assert facts.event_type == document["event"]
    assert facts.account_id == document["account_id"]
    assert facts.occurred_at == datetime.fromtimestamp(document["created_at"], UTC)
    for name in ("subscription", "payment", "order", "invoice", "refund", "dispute"):
        entity, found = document["payload"].get(name), getattr(facts, name)
        assert (found is None) == (entity is None), name
        if found is not None:
            assert found.id == entity["entity"]["id"]
            assert getattr(found, "amount", None) == entity["entity"].get("amount")
            if hasattr(found, "notes"):
                said = entity["entity"]["notes"]
                assert dict(found.notes) == (said if isinstance(said, dict) else {})


@pytest.mark.parametrize("file", WELL_FORMED)
def test_no_sample_holds_card_data(file: str) -> None:
    body = (PAYLOADS / file).read_bytes()

    assert bodies.prepare(body) == bodies.Stored(body, False, json.loads(body))


@pytest.mark.parametrize(
    ("status", "flag", "captured"),
    [
        ("captured", "1", True),
        ("captured", 1, True),
        ("captured", False, True),
        ("refunded", True, True),
        ("authorized", True, False),
        ("failed", False, False),
        (None, "1", False),
    ],
)
def test_captured_follows_the_status(status: Any, flag: Any, captured: bool) -> None:
    document = json.loads(sample("payment.captured.json"))
    document["payload"]["payment"]["entity"] |= {"status": status, "captured": flag}

    payment = razorpay.normalise(json.dumps(document).encode()).payment

    assert payment is not None
    assert payment.captured is captured


@pytest.mark.parametrize("value", [[], {}, None, "", "text", 5, [1, 2]])
def test_notes_that_are_none(value: Any) -> None:
    facts = razorpay.normalise(
        changed("subscription.charged.json", "payload/subscription/entity/notes", value)
    )

    assert facts.subscription is not None
    assert facts.subscription.notes == {}


def test_notes_keep_plain_values_and_drop_nested_ones() -> None:
    given_notes = {"a": 1, "b": True, "c": None, "d": {"x": 1}, "e": "नमस्ते", "f": "nul\x00", "g": "\ud800"}

    assert values.notes(given_notes) == {"a": "1", "b": "true", "e": "नमस्ते", "f": "nul�", "g": "�"}


@pytest.mark.parametrize("value", ["", None, 0])
def test_empty_means_absent(value: Any) -> None:
    facts = razorpay.normalise(
        changed("subscription.charged.json", "payload/subscription/entity/current_start", value)
    )

    assert facts.subscription is not None
    assert facts.subscription.current_start is None


@pytest.mark.parametrize(
    ("name", "place", "value", "reason"),
    [
        ("payment.captured.json", "payload/payment/entity/amount", 1.5, "money_not_integer"),
        ("payment.captured.json", "payload/payment/entity/amount", True, "money_not_integer"),
        ("payment.captured.json", "payload/payment/entity/amount", "166000", "money_not_integer"),
        ("payment.captured.json", "payload/payment/entity/amount", -1, "money_negative"),
        ("payment.captured.json", "payload/payment/entity/amount", None, "money_missing"),
        ("payment.captured.json", "payload/payment/entity/amount", 2**63, "money_absurd"),
        ("payment.captured.json", "payload/payment/entity/amount_refunded", -5, "money_negative"),
        ("payment.dispute.lost.json", "payload/dispute/entity/amount_deducted", 0.1, "money_not_integer"),
        ("payment.captured.json", "payload/payment/entity/id", None, "id_missing"),
        ("payment.captured.json", "payload/payment/entity/id", 7, "id_not_text"),
        ("payment.captured.json", "payload/payment/entity/id", "pay_\x00", "id_malformed"),
        ("payment.captured.json", "payload/payment/entity/id", "\ud800", "id_malformed"),
        ("payment.captured.json", "payload/payment/entity/id", "x" * 300, "id_malformed"),
        ("payment.captured.json", "payload/payment", {}, "entity_missing"),
        ("payment.captured.json", "payload", [], "entity_missing"),
        ("payment.captured.json", "created_at", "yesterday", "time_malformed"),
        ("payment.captured.json", "created_at", 10**18, "time_malformed"),
        ("payment.captured.json", "created_at", True, "time_malformed"),
        ("subscription.charged.json", "payload/subscription/entity/paid_count", 1.0, "count_malformed"),
        ("subscription.charged.json", "event", None, "event_type_missing"),
        ("subscription.charged.json", "event", 5, "event_type_missing"),
        ("refund.created.json", "payload/refund", {"entity": None}, "entity_missing"),
    ],
)
def test_poison_says_what_and_where(name: str, place: str, value: Any, reason: str) -> None:
    with pytest.raises(Poison) as poison:
        razorpay.normalise(changed(name, place, value))

    assert poison.value.reason == reason
    assert str(value) not in str(poison.value) or value in (None, "", True, 5, 7)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "body_empty"),
        (b"  ", "body_empty"),
        (b"\xff\xfe", "body_not_utf8"),
        (b"{", "body_not_json"),
        (b'{"a":NaN}', "body_not_json"),
        (b'{"a":' + b"9" * 5000 + b"}", "body_not_json"),
        (b"[]", "body_not_object"),
        (b"null", "body_not_object"),
        (b"[" * 200_000, "body_too_deep"),
    ],
)
def test_unreadable_bodies_are_poison(body: bytes, reason: str) -> None:
    with pytest.raises(Poison) as poison:
        razorpay.normalise(body)

    assert poison.value.reason == reason


def test_an_unknown_event_passes_with_the_entities_that_can_be_read() -> None:
    document = json.loads(sample("payment.captured.json"))
    document["event"] = "payment_link.paid"
    document["payload"]["order"] = {"entity": {"id": 5, "amount": 1.5}}
    document["payload"]["payment_link"] = {"entity": {"anything": "goes"}}

    facts = razorpay.normalise(json.dumps(document).encode())

    assert facts.event_type == "payment_link.paid"
    assert (facts.order, facts.payment is None) == (None, False)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WELL_FORMED), st.randoms(use_true_random=False), JSON)
def test_whatever_is_put_into_a_sample_it_is_understood_or_poison(
    file: str, dice: random.Random, value: Any
) -> None:
    document = json.loads((PAYLOADS / file).read_bytes())
    target = document
    while True:
        name = dice.choice(list(target))
        if isinstance(target[name], dict) and target[name] and dice.random() < 0.9:
            target = target[name]
        else:
            target[name] = value
            break
    body = json.dumps(document).encode()

    kept = bodies.prepare(body)
    assert kept.document is not None
    razorpay.glance(kept.document)
    with contextlib.suppress(Poison):
        assert razorpay.normalise(kept.body).event_type


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises_anything_but_poison(body: bytes) -> None:
    kept = bodies.prepare(body)
    for candidate in (body, kept.body):
        with contextlib.suppress(Poison):
            assert razorpay.normalise(candidate).event_type
        with contextlib.suppress(Poison):
            assert redacted(candidate)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=90)), max_size=4), st.binary(max_size=50)
)
def test_no_headers_verify_by_chance(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    named = [(b"x-razorpay-signature", value) for _, value in headers]

    assert razorpay.verify(named, body, [SECRET.encode()], MONDAY_NOON) is None
    assert razorpay.event_id(headers) is None


def test_a_signature_is_good_for_one_body_and_any_active_secret() -> None:
    body = sample("invoice.paid.subscription.raw.json")
    headers = [(b"x-razorpay-signature", signature(body).encode())]
    again = json.dumps(json.loads(body)).encode()

    assert razorpay.verify(headers, body, [b"another", SECRET.encode()], MONDAY_NOON) == 1
    assert razorpay.verify(headers, body, [SECRET.encode(), b"another"], MONDAY_NOON) == 0
    assert razorpay.verify(headers, again, [SECRET.encode()], MONDAY_NOON) is None
    assert razorpay.verify(headers, body, [b"another"], MONDAY_NOON) is None
    assert razorpay.verify(headers * 2, body, [SECRET.encode()], MONDAY_NOON) is None


def luhn_number(start: str, length: int) -> str:
    digits = start.ljust(length - 1, "7")
    return next(digits + last for last in "0123456789" if looks_like_card(digits + last))


@pytest.mark.parametrize("length", range(13, 20))
def test_card_numbers_are_masked_wherever_they_stand_alone(length: int) -> None:
    number = luhn_number("6", length)
    spaced = " ".join(number[i : i + 4] for i in range(0, length, 4))
    body = json.dumps(
        {"event": "x", "a": [number, {"b": spaced}], "c": f"order {number}", "d": "pay_1"}
    ).encode()

    kept = bodies.prepare(body)

    assert kept.masked
    assert json.loads(kept.body) == {
        "event": "x",
        "a": ["[masked]", {"b": "[masked]"}],
        "c": f"order {number}",
        "d": "pay_1",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cvv", "123"),
        ("CVC", 123),
        ("card_number", "1234"),
        ("cardNumber", "1234"),
        ("number", 4111111111111112),
        ("pin", "1234"),
        ("track_data", "%B4111^A"),
        ("account_number", "50100123456789"),
    ],
)
def test_forbidden_fields_are_masked_by_name(name: str, value: Any) -> None:
    kept = bodies.prepare(json.dumps({"payload": {"x": {name: value}}}).encode())

    assert json.loads(kept.body) == {"payload": {"x": {name: "[masked]"}}}


@pytest.mark.parametrize("value", [None, "", False, "0042", 12])
def test_harmless_values_of_ambiguous_fields_stay(value: Any) -> None:
    body = json.dumps({"number": value, "created_at": 1791957289, "receipt": "4111111111111112"}).encode()

    assert bodies.prepare(body).body == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"card":{"number":"4111111111111111","cvv":"737"',
        b'[{"number": 4111111111111111, "cvv": 737}]',
        b"\xff 4111-1111-1111-1111 \xff",
        b'{"card":{"number":"4111111111111111"},"card":{}}',
        b'{"card":{"cvv":"737"},"card":{}, "x": "' + b"4" + b"1" * 15 + b'"}',
        b'{"a":' * 3000 + b'"4111111111111111"',
    ],
)
def test_card_data_hides_in_no_malformed_body(body: bytes) -> None:
    kept = bodies.prepare(body)

    assert kept.masked
    assert b"4111" not in kept.body
    assert b"737" not in kept.body


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(b'{"card":{"number":"4111111111111111"}}', mtime=0),
        '{"note":"4111111111111111"}'.encode("utf-16"),
        b'{"event":"\x00","note":"4\x001\x001111111111111"}',
    ],
)
def test_bytes_that_are_no_text_are_not_kept(body: bytes) -> None:
    kept = bodies.prepare(body)

    assert (kept.body, kept.masked, kept.document) == (bodies.UNREADABLE, True, None)
    with pytest.raises(Poison, match="body_not_utf8"):
        bodies.parse(kept.body)


def test_a_card_as_printed_is_masked_with_the_sentence_around_it() -> None:
    body = b'{"event":"x","payload":{"payment":{"entity":{"description":"paid by 4111 1111 1111 1111, thanks"}}}}'
    assert b"4111" not in bodies.prepare(body).body


def test_an_operator_sees_what_happened_and_not_to_whom() -> None:
    shown = redacted(sample("order.paid.json"))

    entity = json.loads(shown)["payload"]["payment"]["entity"]
    assert (entity["amount"], entity["order_id"]) == (166000, "order_lfvo2q0jPHvotD")
    assert entity["email"] == entity["contact"] == entity["vpa"] == "[redacted]"
    assert not any(word in shown for word in ("asha", "okhdfc", "+91"))


PATIENCE = Patience(attempts_max=10, base_seconds=2, max_seconds=6 * 3600)


def test_waits_grow_with_jitter_and_are_capped() -> None:
    for failures in range(1, 12):
        ceiling = min(6 * 3600, 2 * 3 ** (failures - 1))
        waits = {wait(failures, PATIENCE) for _ in range(20)}
        assert len(waits) > 1
        assert all(timedelta(seconds=ceiling / 2) <= each <= timedelta(seconds=ceiling) for each in waits)


def test_what_becomes_of_a_failure() -> None:
    def verdict(error: Exception, retries: int) -> SetAside | TryAgain:
        return after_failure(error, retry_count=retries, patience=PATIENCE)

    assert verdict(Poison("money_negative", "a.b"), 0) == SetAside("money_negative", "money_negative: a.b")
    assert verdict(InvalidArgument("no"), 0) == SetAside("refused", "INVALID_ARGUMENT")
    assert isinstance(verdict(Unavailable("no"), 8), TryAgain)
    assert verdict(Unavailable("no"), 9) == SetAside("attempts_exhausted", "UNAVAILABLE")
    assert describe(ValueError("4111111111111111")) == "unexpected ValueError"


def test_page_tokens_come_back() -> None:
    position = Position(MONDAY_NOON, "evt_1")

    assert position_of(page_token(position)) == position
    assert position_of("") is None
    for odd in ("x", "bm9uc2Vuc2U=", page_token(Position(datetime(2026, 1, 1), "naive"))):  # noqa: DTZ001
        with pytest.raises(PageTokenInvalid):
            position_of(odd)
