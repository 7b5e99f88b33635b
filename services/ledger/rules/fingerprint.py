"""What an operation asked for, small enough to keep and precise enough to name the field that differs."""

import hashlib
from datetime import datetime

from services.ledger.rules.model import Debit, Grant

VERSION = 1
_WIDTH = 8

_FIELDS: dict[type, tuple[str, ...]] = {
    Debit: (
        "kind",
        "credits",
        "min_credits",
        "reason",
        "reference_id",
        "description",
        "metadata",
        "if_seq",
    ),
    Grant: ("kind", "bucket", "credits", "expires_at", "reference_id", "reason", "description"),
}


def of(operation: Debit | Grant) -> bytes:
    """Eight bytes for each field, in a fixed order; the first says which kind of operation it was."""
    return b"".join(_digest(value) for value in _values(operation))


def differing_field(operation: Debit | Grant, stored: bytes) -> str | None:
    """The first field in which the operation differs from the one stored; None when it is the same."""
    asked = of(operation)
    if asked == stored:
        return None
    for position, name in enumerate(_FIELDS[type(operation)]):
        start = position * _WIDTH
        if asked[start : start + _WIDTH] != stored[start : start + _WIDTH]:
            return name
    return "kind"


def _values(operation: Debit | Grant) -> list[object]:
    names = _FIELDS[type(operation)][1:]
    return [type(operation).__name__, *(getattr(operation, name) for name in names)]


def _digest(value: object) -> bytes:
    if isinstance(value, dict):
        value = sorted(value.items())
    elif isinstance(value, datetime):
        value = value.timestamp()
    return hashlib.blake2b(repr(value).encode(), digest_size=_WIDTH).digest()
