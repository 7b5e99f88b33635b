"""Raw bodies: read as JSON or called poison, and freed of card data and secrets before they are stored."""

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from services.webhooks.errors import Poison
from shared import sensitive

MASK = "[masked]"

_RAW_NUMBER = re.compile(rb"(?<![0-9A-Za-z])[0-9](?:[ -]?[0-9]){12,18}(?![0-9A-Za-z])")
_RAW_FIELD = re.compile(
    rb'("(?:card[_ -]?number|account[_ -]?number|number|pan|cvv2?|cvc2?|csc|pin|security[_ -]?code|track[_ -]?data'
    rb"|track[12]?|passw(?:or)?d|otp|(?:(?:client|key|webhook|api)[_ -]?)?secret|api[_ -]?key|(?:access|refresh)[_ -]?token"
    rb'|private[_ -]?key|authorization)"\s*:\s*)("(?:[^"\\]|\\.)*"?|[0-9]+)',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Stored:
    """A body as it may be kept. `document` is what it says; None when it is no JSON object."""

    body: bytes
    masked: bool
    document: dict[str, Any] | None


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is, or poison that says why it is none."""
    return _parse(body)[0]


def prepare(body: bytes) -> Stored:
    """The body as it may be stored: the same bytes, unless they held card data. Never raises."""
    try:
        document, repeated = _parse(body)
        masked, changed = _masked(document)
        # A key given twice hides its first value from the walk, so such a body is written anew as well.
        if changed or repeated:
            return Stored(json.dumps(masked, separators=(",", ":")).encode(), True, masked)
        return Stored(body, False, document)
    except (Poison, RecursionError):
        # No JSON to walk: look at the bytes themselves. Such a body is set aside anyway.
        kept = _RAW_FIELD.sub(rb'\1"' + MASK.encode() + b'"', body)
        kept = _RAW_NUMBER.sub(_masked_number, kept)
        return Stored(kept, kept != body, None)


def _parse(body: bytes) -> tuple[dict[str, Any], bool]:
    repeated = False

    def from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        found = dict(pairs)
        repeated = repeated or len(found) != len(pairs)
        return found

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
    return document, repeated


def _masked_number(found: re.Match[bytes]) -> bytes:
    return MASK.encode() if sensitive.has_check_digit(found[0].decode()) else found[0]


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _masked(value: Any) -> tuple[Any, bool]:
    if isinstance(value, dict):
        changed = False
        fresh = {}
        for name, content in value.items():
            if _forbidden(name, content):
                fresh[name], altered = MASK, content != MASK
            else:
                fresh[name], altered = _masked(content)
            changed = changed or altered
        return fresh, changed
    if isinstance(value, list):
        walked = [_masked(content) for content in value]
        return [content for content, _ in walked], any(altered for _, altered in walked)
    if isinstance(value, str) and sensitive.looks_like_card(value):
        return MASK, True
    return value, False


def _forbidden(name: str, content: object) -> bool:
    if content in (None, "", MASK) or isinstance(content, bool | dict | list):
        return False
    return sensitive.is_forbidden(name, content)
