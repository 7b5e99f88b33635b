"""Raw bodies: read as JSON or called poison, and freed of card data and secrets before they are stored."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from services.webhooks.errors import Poison
from shared import sensitive

MASK = sensitive.MASK
# What is kept of bytes that are no text, such as compressed ones: nobody can tell what is in them. Not UTF-8, as they.
UNREADABLE = b"\xff"

_MANY_DIGITS = "0" * 19
_CARDLIKE = re.compile("[0-9](?:[^0-9A-Za-z]*[0-9]){12}")
_SMALLER_THAN_CARDS = 10**12
# What holds no card unless there are digits enough in the body; a float may be written with an exponent instead.
_CARDLESS = frozenset({str, int, bool, type(None)})
_THIRTEEN = b"0" * 13
_ESCAPE = re.compile(rb"\\u[0-9A-Fa-f]{4}")
_ROWS = bytes(0x30 if chr(byte).isdigit() and byte < 128 else 0x78 for byte in range(256))
_NEITHER = bytes(byte for byte in range(256) if not (byte < 128 and chr(byte).isalnum()))
_NAME_ENDS = re.compile(rb'"[ \t\r\n]*:')
# Names that may hold anything, as met so far: looking at each of them anew took most of the time.
_harmless_names: set[str] = set()

_BINARY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
# A body that is no JSON is set aside and never understood, so all that has the length of a card's number is taken out
# of it, with whatever stands between digits and in the middle of whatever.
_RAW_NUMBER = re.compile(rb"[0-9](?:[^0-9A-Za-z]{0,3}[0-9]){12,}")
_RAW_FIELD = re.compile(
    rb"""(?<!\w)([A-Za-z][\w .\[\]-]{1,40}+)(\\*["']?\s*(?:[:=]|=>|%3[AaDd])\s*(?:(?:Bearer|Basic)\s+)?)"""
    rb"""(\[[^\]{}]*|"(?:[^"\\]|\\.)*"?|\\+"[^"]*"?|'[^']*'?|[^\s,;&}\]"']+)"""
)


@dataclass(frozen=True)
class Stored:
    """A body as it may be kept. `document` is what it says; None when it is no JSON object."""

    body: bytes
    masked: bool
    document: dict[str, Any] | None


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is, or poison that says why it is none."""
    return _object(body, None)


def prepare(body: bytes) -> Stored:
    """The body as it may be stored: the same bytes, unless they held card data. Never raises."""
    try:
        has_digits = _may_hold_card(body)
        document = parse(body) if has_digits else _quickly_parsed(body)
        if _is_harmless(document, body, has_digits):
            return Stored(body, False, document)
        document, repeated = _parse(body)
        masked, changed = _masked(document)
        # A key given twice hides its first value from the walk, so such a body is written anew as well.
        if changed or repeated:
            return Stored(json.dumps(masked, separators=(",", ":")).encode(), True, masked)
        return Stored(body, False, document)
    except (Poison, RecursionError):
        # No JSON to walk: look at the bytes themselves. Such a body is set aside anyway.
        if _BINARY.search(body):
            return Stored(UNREADABLE, True, None)
        kept = _RAW_NUMBER.sub(MASK.encode(), _RAW_FIELD.sub(_masked_field, body))
        return Stored(kept, kept != body, None)


def _quickly_parsed(body: bytes) -> dict[str, Any]:
    # It reads numbers beyond 64 bits as floats, which cannot be in here. Whatever it refuses, `parse` judges.
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return parse(body)
    return document if isinstance(document, dict) else parse(body)


def _parse(body: bytes) -> tuple[dict[str, Any], bool]:
    repeated = False

    def from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        found = dict(pairs)
        repeated = repeated or len(found) != len(pairs)
        return found

    return _object(body, from_pairs), repeated


def _object(body: bytes, from_pairs: Callable[[list[tuple[str, Any]]], Any] | None) -> dict[str, Any]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Poison("body_not_utf8") from None
    if not text.strip():
        raise Poison("body_empty")
    try:
        document = json.loads(text, object_pairs_hook=from_pairs, parse_constant=_no_constant)
    except RecursionError:
        raise Poison("body_too_deep") from None
    except ValueError:  # also for a number of more digits than Python reads
        raise Poison("body_not_json") from None
    if not isinstance(document, dict):
        raise Poison("body_not_object")
    return document


def _is_harmless(document: dict[str, Any], body: bytes, has_digits: bool) -> bool:
    """Whether surely nothing is to be masked, at a quarter of the price of a close look; False: it needs that look."""
    names = 0
    waiting: list[dict[str, Any] | list[Any]] = [document]
    while waiting:
        value = waiting.pop()
        contents: Iterable[Any] = value
        if type(value) is dict:
            if not value.keys() <= _harmless_names and not all(map(_is_harmless_name, value)):
                return False
            names += len(value)
            contents = value.values()
        if not has_digits:
            contents = [content for content in contents if type(content) not in _CARDLESS]
        for content in contents:
            kind = type(content)
            if kind is str:
                if len(content) >= 13 and _CARDLIKE.search(content):
                    return False
            elif kind is dict or kind is list:
                waiting.append(content)
            elif (kind is int or kind is float) and content >= _SMALLER_THAN_CARDS:
                return False
    # Each name stands before a colon, so with more colons than names one may have been given twice.
    return names == body.count(b":") - body.count(b"://") or names == len(_NAME_ENDS.findall(body))


def _may_hold_card(body: bytes) -> bool:
    # Digits in a row, whatever stands between them; letters end a row. What is written as an escape may be one of both.
    if b"\\u" in body:
        body = _ESCAPE.sub(b"0000", body)
    return _THIRTEEN in body.translate(_ROWS, _NEITHER)


def _is_harmless_name(name: str) -> bool:
    if sensitive.is_forbidden(name, _MANY_DIGITS) or _CARDLIKE.search(name):
        return False
    if len(name) <= 64 and len(_harmless_names) < 4096:  # names of signed bodies, but no end to them is known
        _harmless_names.add(name)
    return True


def _masked_field(found: re.Match[bytes]) -> bytes:
    # The name may be the last word of a sentence, or the last part of a path.
    name, value = found[1].decode(), found[3].decode(errors="replace")
    words = re.findall(r"[^ .\[\]]+", name)
    ends = ["".join(words[-count:]) for count in (1, 2, 3)]
    if not any(sensitive.is_forbidden(end, value) for end in ends):
        return found[0]
    return found[1] + found[2] + b'"' + MASK.encode() + b'"'


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _masked(value: Any) -> tuple[Any, bool]:
    if isinstance(value, dict):
        changed = False
        fresh: dict[str, Any] = {}
        for name, content in value.items():
            kept, altered = _masked_under(name, content)
            if is_number := sensitive.holds_card(name):
                name = f"{MASK} {len(fresh)}"  # numbered, so that one does not cover another
            fresh[name] = kept
            changed = changed or altered or is_number
        return fresh, changed
    if isinstance(value, list):
        walked = [_masked(content) for content in value]
        return [content for content, _ in walked], any(altered for _, altered in walked)
    if isinstance(value, str):
        held = sensitive.holds_card(value)
    else:
        held = isinstance(value, int | float) and sensitive.number_is_card(value)
    return (MASK, True) if held else (value, False)


def _masked_under(name: str, content: Any) -> tuple[Any, bool]:
    if isinstance(content, list):
        walked = [_masked_under(name, each) for each in content]
        return [each for each, _ in walked], any(altered for _, altered in walked)
    return (MASK, True) if _forbidden(name, content) else _masked(content)


def _forbidden(name: str, content: object) -> bool:
    if content in (None, "", MASK) or isinstance(content, bool | dict | list):
        return False
    return sensitive.is_forbidden(name, content)
