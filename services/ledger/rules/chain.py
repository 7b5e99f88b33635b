"""The hash chain: each line's hash covers the line before it, so that no past line can be changed unnoticed.

The layout is fixed and binary, over stored integers and raw bytes: a rendered date, float or JSON text would break
the chain with the next driver. `VERSION` is the first byte of every hashed line.
"""

import hashlib
import struct
from datetime import UTC, datetime, timedelta

VERSION = 1

_NUMBERS = struct.Struct(">B10q")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def words(*texts: str) -> bytes:
    """A transaction's id, kind, idempotency key, reason and reference, each behind its length."""
    raws = [text.encode() for text in texts]
    return b"".join([part for raw in raws for part in (len(raw).to_bytes(4, "big"), raw)])


def line_hash(
    previous: bytes,
    seq: int,
    lot: int,
    d_posted: int,
    d_held: int,
    lot_posted_after: int,
    lot_held_after: int,
    account_posted_after: int,
    account_held_after: int,
    *,
    at: datetime,
    amount: int,
    words: bytes,
) -> bytes:
    """SHA-256 over the previous hash, the line's numbers, its transaction's amount and `words`."""
    numbers = _NUMBERS.pack(
        VERSION,
        seq,
        lot,
        d_posted,
        d_held,
        lot_posted_after,
        lot_held_after,
        account_posted_after,
        account_held_after,
        (at - _EPOCH) // _MICROSECOND,
        amount,
    )
    return hashlib.sha256(previous + numbers + words).digest()
