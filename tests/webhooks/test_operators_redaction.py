"""What an operator is shown of a body: nothing of anybody, wherever it stands; and what happened, as it happened."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.webhooks.errors import Poison
from services.webhooks.rules.redaction import _FIGURES, _OUR_NOTES, _WORDS, SHOWN_MAX, redacted
from tests.webhooks.harness import PAYLOADS, SAMPLES

WELL_FORMED = [each["file"] for each in SAMPLES if each["well_formed"]]
DOCUMENTS = {file: json.loads((PAYLOADS / file).read_bytes()) for file in WELL_FORMED}
KNOWN = _WORDS | _FIGURES | _OUR_NOTES
CARD = "4111111111111111"
# What people are called and reached by, never in the shape of a provider's word.
PERSONAL = (
    *("Canary Iyer", "canary@example.com", "+919000000777", "9000000777", "90000-00777", "भूमि"),
    *("4111 1111 1111 1111", CARD, "canary@okhdfcbank", "<b>canary", "12 Canary Road\nPune", "411 111 777"),
)
NAMES = st.one_of(
    st.text(max_size=12), st.from_regex(r"[a-z][a-z_]{0,14}", fullmatch=True), st.sampled_from(["notes", "x"])
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document that holds something."""
    yield path
    if isinstance(value, dict | list):
        for name, content in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(content, (*path, name))


def put(document: Any, path: tuple[Any, ...], content: Any) -> Any:
    """The document with another content in that place."""
    if not path:
        return content
    changed = copy.deepcopy(document)
    target = changed
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = content
    return changed


def shown(document: Any) -> str:
    return redacted(json.dumps(document).encode())


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for content in value.values() if isinstance(value, dict) else value:
            yield from leaves(content)
    else:
        yield value


@pytest.mark.parametrize("file", WELL_FORMED)
@pytest.mark.parametrize("canary", PERSONAL)
def test_nothing_personal_is_shown_in_the_place_of_any_value(file: str, canary: str) -> None:
    document = DOCUMENTS[file]
    for path in places(document):
        if path:
            found = shown(put(document, path, canary))
            assert canary not in found
            assert json.dumps(canary, ensure_ascii=False)[1:-1] not in found


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(WELL_FORMED), st.data())
def test_no_text_under_an_unknown_name_is_shown(file: str, data: st.DataObject) -> None:
    document = DOCUMENTS[file]
    inside = [path for path in places(document) if isinstance(_at(document, path), dict)]
    path = data.draw(st.sampled_from(inside))
    name = data.draw(NAMES.filter(lambda name: name not in KNOWN))
    canary = data.draw(st.sampled_from(["Canary777", "canary777", "can.ary:777/x_y-z", "2026-canary777"]))
    content = data.draw(
        st.sampled_from([canary, [canary], {"y": canary}, [[canary], {"z": [canary]}], {canary + " ": 1}])
    )

    found = shown(put(document, (*path, name), content))

    assert canary not in found


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


@pytest.mark.parametrize(
    "name", ["contact", "phone", "customer_contact", "mobileNumber", "upi", "bank_account"]
)
@pytest.mark.parametrize("content", [919000000777, [919000000777], {"n": {"m": 77}}, 7.5, "x"])
def test_a_personal_name_hides_whatever_it_holds(name: str, content: Any) -> None:
    assert json.loads(shown({"payload": {name: content}})) == {"payload": {name: "[redacted]"}}


@pytest.mark.parametrize("number", [9000000777, 919000000777, int(CARD), 9000000777.0, 10**400])
def test_a_long_number_of_an_unknown_name_is_hidden(number: float) -> None:
    assert json.loads(shown({"x": number, "y": 77})) == {"x": "[redacted]", "y": 77}


@pytest.mark.parametrize(
    "notes", ["Canary", ["Canary"], 777777, {"who": "Canary", "x": {"tenant_id": "Canary"}}]
)
def test_notes_of_people_are_theirs(notes: Any) -> None:
    found = shown({"notes": notes})

    assert "Canary" not in found
    assert "777777" not in found


@pytest.mark.parametrize("file", WELL_FORMED)
def test_what_happened_is_shown_as_it_happened(file: str) -> None:
    """Ids, states, amounts, times and our notes: without them nobody can tell what to mend."""
    found = json.loads(shown(DOCUMENTS[file]))

    assert found["event"] == DOCUMENTS[file]["event"]
    for kind, part in DOCUMENTS[file]["payload"].items():
        entity, seen = part["entity"], found["payload"][kind]["entity"]
        for name in (
            "id",
            "status",
            "amount",
            "currency",
            "method",
            "created_at",
            "paid_count",
            "current_end",
        ):
            assert seen.get(name) == entity.get(name)
        for name in ("payment_id", "order_id", "invoice_id", "error_code", "error_reason", "reason_code"):
            assert seen.get(name) == entity.get(name)
        if isinstance(entity.get("notes"), dict):
            ours = {name: value for name, value in entity["notes"].items() if name in _OUR_NOTES}
            assert {name: seen["notes"][name] for name in ours} == ours


def test_names_that_are_somebodys_are_hidden_one_by_one() -> None:
    found = json.loads(shown({"canary@example.com": 1, "Canary Iyer": 2, "count": 3}))

    assert found == {"[redacted] 0": 1, "[redacted] 1": 2, "count": 3}


def test_a_body_that_grows_beyond_the_door_is_not_shown() -> None:
    with pytest.raises(Poison) as refusal:
        redacted(json.dumps({"x": ["a"] * (SHOWN_MAX // 8)}).encode())

    assert refusal.value.reason == "body_too_large_to_show"


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=20,
        ),
    )
)
def test_any_json_is_shown_or_hidden_and_never_breaks(document: dict[str, Any]) -> None:
    found = json.loads(shown(document))

    texts = {value for value in leaves(document) if isinstance(value, str)}
    assert {v for v in leaves(found) if isinstance(v, str)} <= {"", "[redacted]", "[masked]"} | {
        text for text in texts if text.isascii() and " " not in text and "@" not in text
    }
