"""Turns JSON values of every sort that providers send into one clean type each, or calls them poison."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from services.webhooks.errors import Poison

INT64_MAX = 2**63 - 1
LONGEST_ID = 255
LONGEST_NOTE = 2048
# Beyond any mandate; sums with it stay within the calendar.
_LAST_MOMENT = 7_258_118_399  # 2199-12-31T23:59:59Z
_UNPRINTABLE = re.compile("[\x00-\x20\x7f\ud800-\udfff]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def identifier(value: object, place: str) -> str:
    """An id, or "" when the body has none; anything but clean text is poison, since ids decide."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Poison("id_not_text", place)
    if len(value) > LONGEST_ID or _UNPRINTABLE.search(value):
        raise Poison("id_malformed", place)
    return value


def required_identifier(value: object, place: str) -> str:
    """An id that must be there."""
    found = identifier(value, place)
    if not found:
        raise Poison("id_missing", place)
    return found


def word(value: object) -> str:
    """A word of the provider's vocabulary, or "" when it is absent or no text: words only inform."""
    return clean(value, LONGEST_ID) if isinstance(value, str) else ""


def clean(value: str, longest: int) -> str:
    """Text that PostgreSQL and protobuf accept: no NUL, no lone surrogates."""
    return _UNSTORABLE.sub("�", value[:longest])


def money(value: object, place: str) -> int:
    """Minor units. Floats, booleans, text and negatives are poison: an amount is never guessed."""
    if value is None:
        raise Poison("money_missing", place)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Poison("money_not_integer", place)
    if value < 0:
        raise Poison("money_negative", place)
    if value > INT64_MAX:
        raise Poison("money_absurd", place)
    return value


def money_or_zero(value: object, place: str) -> int:
    """Minor units, or 0 when the body has none."""
    return 0 if value is None else money(value, place)


def count(value: object, place: str) -> int:
    """A whole number from zero, or 0 when the body has none."""
    if value is None or value == "":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT64_MAX:
        raise Poison("count_malformed", place)
    return value


def moment(value: object, place: str) -> datetime | None:
    """Unix seconds as aware UTC; absent, empty and 0 mean that there is none."""
    if value is None or value == "" or (value == 0 and not isinstance(value, bool)):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LAST_MOMENT:
        raise Poison("time_malformed", place)
    return datetime.fromtimestamp(value, UTC)


def flag(value: object) -> bool:
    """True for the four ways in which providers write it."""
    return value is True or (not isinstance(value, bool) and value in (1, "1", "true"))


def notes(value: object) -> Mapping[str, str]:
    """Notes as a dictionary of text; a list, null or anything else is none, nested values are left out."""
    if not isinstance(value, dict):
        return {}
    return {
        clean(str(name), LONGEST_ID): clean(_note(content), LONGEST_NOTE)
        for name, content in value.items()
        if isinstance(content, str | int | float)
    }


def _note(content: Any) -> str:
    if isinstance(content, bool):
        return "true" if content else "false"
    return str(content)
