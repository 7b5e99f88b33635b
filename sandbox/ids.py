"""Identifiers as Razorpay writes them: a prefix and fourteen letters or digits."""

import hashlib
import secrets

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_UPPER = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def new_id(prefix: str) -> str:
    """`sub` becomes `sub_` and fourteen random base62 characters."""
    return f"{prefix}_{token(14)}"


def token(length: int) -> str:
    """Random base62 characters; fourteen of them are an event id."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def upi_transaction() -> str:
    """The network's reference of a UPI payment."""
    return "".join(secrets.choice(_UPPER) for _ in range(32))


def digits(length: int) -> str:
    """A bank's reference number; never starts with zero."""
    return secrets.choice(_ALPHABET[1:10]) + "".join(
        secrets.choice(_ALPHABET[:10]) for _ in range(length - 1)
    )


def account_id(key_id: str) -> str:
    """The merchant account of a key: the same after every restart."""
    number = int.from_bytes(hashlib.sha256(key_id.encode()).digest(), "big")
    letters = []
    for _ in range(14):
        number, digit = divmod(number, 62)
        letters.append(_ALPHABET[digit])
    return "acc_" + "".join(letters)
