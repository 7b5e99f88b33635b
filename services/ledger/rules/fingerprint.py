"""What an operation asked for, small enough to keep and precise enough to name the field that differs."""

import hashlib
from dataclasses import fields
from datetime import datetime, timedelta
from functools import cache, lru_cache

from services.ledger.rules.requests import Keyed

VERSION = 1
_WIDTH = 8

# Who asks under which key, and how: not what is asked for.
_NOT_COMPARED = frozenset({"tenant_id", "idempotency_key", "dry_run", "request_id"})


def of(operation: Keyed) -> bytes:
    """Eight bytes for each field, in the order of the class; the first say which kind of operation it was."""
    kind: type = type(operation)
    parts = [_digest(kind.__name__)]
    parts += [_digest(getattr(operation, name)) for name in _compared(kind)]
    return b"".join(parts)


def differing_field(operation: Keyed, stored: bytes) -> str | None:
    """The first field in which the operation differs from the one stored; None when it is the same."""
    asked = of(operation)
    if asked == stored:
        return None
    kind: type = type(operation)
    for position, name in enumerate(("kind", *_compared(kind))):
        start = position * _WIDTH
        if asked[start : start + _WIDTH] != stored[start : start + _WIDTH]:
            return name
    return "kind"


@cache
def _compared(kind: type) -> tuple[str, ...]:
    return tuple(
        field.name
        for field in fields(kind)
        if field.name not in _NOT_COMPARED and field.metadata.get("compared", True)
    )


def _digest(value: object) -> bytes:
    if isinstance(value, dict):
        value = sorted(value.items())
    elif isinstance(value, datetime):
        value = value.timestamp()
    elif isinstance(value, timedelta):
        value = value.total_seconds()
    return _hash(repr(value))


# Most fields are empty, small numbers or one of few words.
@lru_cache(maxsize=8192)
def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_WIDTH).digest()
