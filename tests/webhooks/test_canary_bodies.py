"""Card data and secrets in the less usual places of a signed body, and what nobody needs to take for any."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.webhooks.rules import bodies
from tests.journeys.canaries import NAMES, SCHEMES, SPACINGS, Canaries, hits, spaced

CANARIES = Canaries()
CARD = CANARIES.card()
NEEDLES = CANARIES.needles()
FULL = [CANARIES.card(start, length) for _, start, length in SCHEMES]
# The workers of one run have to collect the same names, and each has canaries of its own.
OF_SCHEME = [pytest.param(number, id=scheme) for number, (scheme, *_) in zip(FULL, SCHEMES, strict=True)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def masked(value: Any) -> Any:
    """What is kept of this, in the place of an unknown field."""
    kept = bodies.prepare(json.dumps({"event": "x", "payload": value}).encode())
    assert kept.masked
    assert hits({"body": kept.body}, NEEDLES) == []
    return json.loads(kept.body)["payload"]


@pytest.mark.parametrize("number", OF_SCHEME)
def test_a_number_is_masked_as_a_number_too(number: str) -> None:
    assert masked([int(number), {"x": int(number)}]) == ["[masked]", {"x": "[masked]"}]
    if len(number) <= 16:  # beyond that a float no longer tells one number from the next
        assert masked(float(number)) == "[masked]"


@pytest.mark.parametrize("spacing", [*SPACINGS, "\u2011", "\u202f"])
@pytest.mark.parametrize("number", OF_SCHEME)
def test_a_number_is_masked_in_every_spacing_and_as_a_name(number: str, spacing: str) -> None:
    written = spaced(number, spacing)
    assert masked({"a": written, written: "b", "c": {written: {written: 1}}}) == {
        "a": "[masked]",
        "[masked] 1": "b",
        "c": {"[masked] 0": {"[masked] 0": 1}},
    }


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_under_such_a_name(name: str) -> None:
    secret = CANARIES.secret
    assert masked({name: secret()}) == {name: "[masked]"}
    assert masked({name: [secret(), [secret(), 7, None]]}) == {
        name: ["[masked]", ["[masked]", "[masked]", None]]
    }


@settings(max_examples=200, deadline=None)
@given(JSON, st.sampled_from(FULL), st.sampled_from(NAMES), st.data())
def test_wherever_it_stands(document: Any, number: str, name: str, data: st.DataObject) -> None:
    """At any depth, beside anything."""
    planted = {"beside": document, "card": number, name: CANARIES.secret()}
    for _ in range(data.draw(st.integers(0, 6))):
        planted = data.draw(
            st.sampled_from([{"in": planted}, {"in": [document, planted]}, {"in": [[planted]]}])
        )
    masked(planted)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 400), st.sampled_from(FULL), st.sampled_from(NAMES), st.sampled_from(["", "\\n", "x", "é"])
)
def test_wherever_a_body_ends(end: int, number: str, name: str, before: str) -> None:
    """A body that is cut off has no names to go by; what is left of a number below thirteen digits is none."""
    whole = json.dumps(
        {"event": "x", name: CANARIES.secret(), "a": f"{before}{number}", "cvv": ["7", CANARIES.secret()]}
    )
    kept = bodies.prepare(whole[:-1][:end].encode())
    found = [hit for hit in hits({"body": kept.body}, NEEDLES) if hit.what == "a secret"]
    assert found == []
    assert number.encode() not in kept.body


NO_JSON = (
    f"{CARD} 123",
    f"{CARD}{CARD}",
    f"x{CARD}y",
    f"card[number]={CARD}&card[cvv]={CANARIES.secret()}",
    f"password: {CANARIES.secret()}",
    f"the password is, password = '{CANARIES.secret()}'",
    f"Authorization: Basic {CANARIES.secret()}",
    f'{{"cvv" : ["{CANARIES.secret()}", "{CANARIES.secret()}"',
    f'"{{\\"cvv\\":\\"{CANARIES.secret()}\\"}}"',
    f"{{'otp': '{CANARIES.secret()}'}}",
)


@pytest.mark.parametrize("body", NO_JSON, ids=[str(number) for number in range(len(NO_JSON))])
def test_text_that_is_no_json_is_searched_as_text(body: str) -> None:
    kept = bodies.prepare(body.encode())
    assert kept.masked
    assert hits({"body": kept.body}, NEEDLES) == []


@pytest.mark.parametrize(
    "payload",
    [
        {"created_at": 1791957289000, "big": 10**18, "amount": 999_999_999_999, "ratio": 4.111111111111111},
        {"number": "0042", "pin": None, "secret": {"entity": {"id": "x_1"}}, "password": False, "otp": ""},
        {"note": "order 4111111111111112", "reference": "2026-11-21 04:20:00 000", "x": 1e300},
    ],
)
def test_what_is_no_card_stays_as_it_is(payload: dict[str, Any]) -> None:
    body = json.dumps({"event": "x", "payload": payload}).encode()
    assert bodies.prepare(body) == bodies.Stored(body, False, json.loads(body))
