"""What strangers say of themselves, fit to be kept: printable, bounded, without what looks like a card or a key."""

import ipaddress
import re

from shared import sensitive
from shared.sensitive import MASK

AGENT_MAX = 200
ID_MAX = 128

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
# However they are grouped; a card's number may stand in the middle of a longer one.
_LONG_NUMBER = re.compile(r"[0-9](?:[ ._-]?[0-9]){12,}")
_PAIR = re.compile(
    r"([A-Za-z][A-Za-z0-9_-]{1,31})([\"']?\s*[=:]\s*)(?:(?:Bearer|Basic)\s+)?[^\s;,&)]+", re.IGNORECASE
)
_CREDENTIALS = re.compile(r"\b(Bearer|Basic)\s+[^\s;,)]+", re.IGNORECASE)
_READ_MAX = 4096


def address(text: str | None) -> str | None:
    """An IP address, or None; a zone is left out, since anything can stand there."""
    try:
        return str(ipaddress.ip_address((text or "")[:64].partition("%")[0]))
    except ValueError:
        return None


def agent(text: str | None) -> str | None:
    """What a client calls itself."""
    return words(_UNPRINTABLE.sub("?", (text or "")[:_READ_MAX]))[:AGENT_MAX].strip() or None


def words(text: str) -> str:
    """What a stranger says in whole sentences, such as a provider's reason to refuse."""
    plain = _CREDENTIALS.sub(rf"\1 {MASK}", text[:_READ_MAX])
    plain = _PAIR.sub(lambda found: f"{found[1]}{found[2]}{MASK}" if _is_secret(found) else found[0], plain)
    return _LONG_NUMBER.sub(MASK, plain)


def identifier(text: str | None) -> str | None:
    """What a request calls itself; only a number with a card's check digit is taken out of it, since ids have digits."""
    plain = _UNPRINTABLE.sub("?", (text or "")[:_READ_MAX])
    return _LONG_NUMBER.sub(_masked_card, plain)[:ID_MAX].strip() or None


def _is_secret(found: re.Match[str]) -> bool:
    return sensitive.is_forbidden(found[1], found[0].partition(found[2])[2]) or found[1].lower() in (
        "key",
        "token",
    )


def _masked_card(found: re.Match[str]) -> str:
    digits = re.sub("[^0-9]", "", found[0])
    windows = (
        digits[start : start + size] for size in range(13, 20) for start in range(len(digits) - size + 1)
    )
    return MASK if any(sensitive.looks_like_card(window) for window in windows) else found[0]
