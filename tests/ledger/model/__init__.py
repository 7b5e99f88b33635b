"""A second opinion: one tenant's ledger as the contract tells it, with lists and loops, sharing no code with the room."""

from tests.ledger.model.credits import (
    EXPIRE_AGAIN,
    PERMANENT,
    REGRANT_30_DAYS,
    SUBSCRIPTION,
    TO_PERMANENT,
    BalanceSeen,
    Booked,
    Credits,
    Hold,
    Lot,
    Moved,
    Refused,
)
from tests.ledger.model.limits import Ceiling, Decision, Limits

__all__ = [
    "EXPIRE_AGAIN",
    "PERMANENT",
    "REGRANT_30_DAYS",
    "SUBSCRIPTION",
    "TO_PERMANENT",
    "BalanceSeen",
    "Booked",
    "Ceiling",
    "Credits",
    "Decision",
    "Hold",
    "Limits",
    "Lot",
    "Moved",
    "Refused",
]
