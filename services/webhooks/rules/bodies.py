"""Raw bodies: read as JSON or called poison, and freed of card data and secrets before they are stored."""

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from services.webhooks.errors import Poison

MASK = "[masked]"

# PCI DSS 3.3.1 and what opens doors: never stored, whoever sends them. Compared without case, `_`, `-` and blanks.
_FORBIDDEN_FIELDS = frozenset({
    "cardnumber", "accountnumber", "primaryaccountnumber", "pan", "cvv", "cvv2", "cvc", "cvc2", "csc",
    "securitycode", "pinblock", "cardpin", "track1", "track2", "trackdata", "track1data", "track2data",
    "magstripe",
    "password", "passwd", "otp", "secret", "clientsecret", "keysecret", "webhooksecret", "apisecret", "apikey",
    "accesstoken", "refreshtoken", "privatekey", "authorization",
})  # fmt: skip
# These names also occur without card data: masked when they hold at least so many digits.
_AMBIGUOUS_FIELDS = {"number": 12, "track": 12, "pin": 4}
_SEPARATORS = str.maketrans("", "", " -")
_DIGITS = re.compile(r"[0-9]{13,19}")
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
        kept = _RAW_NUMBER.sub(lambda found: MASK.encode() if _luhn(found[0].decode()) else found[0], kept)
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
    if isinstance(value, str) and looks_like_card(value):
        return MASK, True
    return value, False


def _forbidden(name: str, content: object) -> bool:
    if content in (None, "", MASK) or isinstance(content, bool | dict | list):
        return False
    plain = re.sub(r"[_\s-]", "", name).lower()
    if plain in _AMBIGUOUS_FIELDS:
        return sum(letter.isdigit() for letter in str(content)[:64]) >= _AMBIGUOUS_FIELDS[plain]
    return plain in _FORBIDDEN_FIELDS


def looks_like_card(text: str) -> bool:
    """Whether a string is a card number and nothing else: 13 to 19 digits that satisfy Luhn."""
    if not 13 <= len(text) <= 37:
        return False
    digits = text.translate(_SEPARATORS)
    return _DIGITS.fullmatch(digits) is not None and _luhn(digits)


def _luhn(text: str) -> bool:
    digits = [int(digit) for digit in text if digit not in " -"]
    doubled = (sum(divmod(digit * 2, 10)) for digit in digits[-2::-2])
    return sum(digits[-1::-2], sum(doubled)) % 10 == 0
