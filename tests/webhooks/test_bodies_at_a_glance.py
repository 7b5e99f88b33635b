"""A body that is taken for harmless at a glance is one that the close look would leave as it is."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from services.webhooks.errors import Poison
from services.webhooks.rules import bodies

NAMES = st.sampled_from(["id", "cvv", "number", "PIN", "note", "Card-Number", "4111111111111111"])
TEXTS = st.sampled_from(["4111111111111111", "4111-1111 1111 1111", "card 4111 1111 1111 1111!", "a:b", '":'])
SPACED_OUT = st.lists(st.text(" -\u00a0\u2009\u2013", max_size=2), min_size=15, max_size=15).map(
    lambda gaps: "4" + "".join(f"{gap}1" for gap in gaps)
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
    | st.from_regex(r"[0-9 .-]{0,24}", fullmatch=True)
    | TEXTS
    | SPACED_OUT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(NAMES | st.text(max_size=12), VALUES, max_size=4)


def closely(body: bytes) -> tuple[bool, bool]:
    """What the close look changes, and whether a name is there twice."""
    document, repeated = bodies._parse(body)
    return bodies._masked(document)[1], repeated


def is_harmless(read: dict[str, Any], body: bytes) -> bool:
    return bodies._is_harmless(read, body, bodies._may_hold_card(body))


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]))
@example({"note": "4111111111111111"}, True, None)
@example({"note": "4111  1111  1111  1111"}, False, None)
def test_what_is_harmless_at_a_glance_is_harmless(
    document: dict[str, Any], escaped: bool, indent: int | None
) -> None:
    body = json.dumps(document, ensure_ascii=escaped, indent=indent).encode("utf-8", "surrogatepass")
    try:
        read = bodies.parse(body)
    except Poison:
        return

    if is_harmless(read, body):
        assert closely(body) == (False, False)


@given(st.sampled_from(['"', ' "']), st.sampled_from([":", " :", "\n:"]), st.sampled_from(["", "://", ":"]))
def test_a_name_given_twice_is_never_harmless(quote: str, colon: str, more: str) -> None:
    body = f'{{"note":"{more}",{quote}a"{colon}"4111111111111111",{quote}a"{colon}1}}'.encode()

    assert not is_harmless(bodies.parse(body), body)
    assert b"4111" not in bodies.prepare(body).body


@given(st.sampled_from(["\\u0034111111111111111", "411111111111111\\u0031", "4111\\u00201111 1111 1111"]))
def test_digits_written_as_escapes_are_found(number: str) -> None:
    assert b"111111" not in bodies.prepare(f'{{"note":"{number}"}}'.encode()).body.replace(b" ", b"")


def test_a_plain_body_is_kept_without_the_close_look() -> None:
    body = (
        b'{"id":"pay_jWoKp0BC8gbNPg","url":"https://example.com/x","amount":235882,"created_at":1791957283}'
    )

    assert is_harmless(bodies.parse(body), body)
    assert bodies.prepare(body) == bodies.Stored(body, False, json.loads(body))


BROKEN = st.tuples(DOCUMENTS, st.booleans(), st.integers(0, 200), st.binary(max_size=2)).map(
    lambda made: _spoilt(
        json.dumps(made[0], ensure_ascii=made[1]).encode("utf-8", "surrogatepass"), *made[2:]
    )
)


def _spoilt(body: bytes, place: int, by: bytes) -> bytes:
    return body[:place] + by + body[place:] if by else body


def _or_poison(read: Callable[[bytes], object], body: bytes) -> str:
    try:
        return repr(read(body))
    except Poison as poison:
        return f"{poison.reason} {poison}"


@given(BROKEN | st.binary(max_size=12) | st.from_regex(rb'\{"a":-?[0-9.eE+-]{1,12}\}', fullmatch=True))
@example(b'{"a":NaN}')
@example(b'{"a":1e400}')
@example(b'{"a":-0}')
@example(b'{"a":"\\ud800"}')
@example(b'{"a":1,"a":2}')
@example(b"\xef\xbb\xbf{}")
@example(b'{"a":"\xed\xa0\x80"}')
@example(b"[1]")
@example(b"")
def test_what_is_read_quickly_is_what_is_read_strictly(body: bytes) -> None:
    if not bodies._may_hold_card(body):
        assert _or_poison(bodies._quickly_parsed, body) == _or_poison(bodies.parse, body)
