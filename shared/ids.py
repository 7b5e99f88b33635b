"""Identifiers that sort by the time they were made."""

import os
import random
import time
from datetime import UTC, datetime, timedelta

# Crockford's base 32: no letter that reads like another.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Two digits at a time: ids are made for every line of a batch.
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_SHIFTS = range(120, -1, -10)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def new_id(prefix: str) -> str:
    """`prefix_` and a UUIDv7 (RFC 9562) in 26 characters; ids made later sort later, to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10), "big")
    return _render(prefix, milliseconds, noise >> 68 & 0xFFF, noise)


def ordered_id(prefix: str, at: datetime, position: int) -> str:
    """A UUIDv7 that sorts by `at`, to the microsecond, and then by `position` (below 4096)."""
    microseconds = (at - _EPOCH) // _MICROSECOND
    milliseconds, fraction = divmod(microseconds, 1000)
    return _render(prefix, milliseconds, fraction, position << 50 | random.getrandbits(50))


def _render(prefix: str, milliseconds: int, twelve_bits: int, low: int) -> str:
    value = milliseconds << 80 | 0x7 << 76 | twelve_bits << 64 | 0b10 << 62 | low & (1 << 62) - 1
    return f"{prefix}_{''.join([_PAIRS[value >> shift & 1023] for shift in _SHIFTS])}"
