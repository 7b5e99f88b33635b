"""Identifiers that sort by the time they were made."""

import base64
import os
import time
from datetime import UTC, datetime, timedelta

# Crockford's base 32: no letter that reads like another.
_TO_CROCKFORD = bytes.maketrans(b"0123456789ABCDEFGHIJKLMNOPQRSTUV", b"0123456789abcdefghjkmnpqrstvwxyz")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def new_id(prefix: str) -> str:
    """`prefix_` and a UUIDv7 (RFC 9562) in 26 characters; ids made later sort later, to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    return _render(prefix, milliseconds, random >> 68 & 0xFFF, random)


def ordered_id(prefix: str, at: datetime, position: int) -> str:
    """A UUIDv7 that sorts by `at`, to the microsecond, and then by `position` (below 4096)."""
    microseconds = (at - _EPOCH) // _MICROSECOND
    milliseconds, fraction = divmod(microseconds, 1000)
    random = int.from_bytes(os.urandom(7), "big") & (1 << 50) - 1
    return _render(prefix, milliseconds, fraction, position << 50 | random)


def _render(prefix: str, milliseconds: int, twelve_bits: int, low: int) -> str:
    value = milliseconds << 80 | 0x7 << 76 | twelve_bits << 64 | 0b10 << 62 | low & (1 << 62) - 1
    # 160 bits are 32 digits without padding; the last 26 hold the 128 that count.
    digits = base64.b32hexencode(value.to_bytes(20, "big"))[6:].translate(_TO_CROCKFORD)
    return f"{prefix}_{digits.decode()}"
