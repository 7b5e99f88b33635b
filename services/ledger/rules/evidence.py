"""What is read of a tenant to recompute its ledger: lines, and what the other tables say at the same moment."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class Header(NamedTuple):
    """What a line's transaction says."""

    id: str
    kind: str
    idempotency_key: str
    reason: str
    reference_id: str
    amount: int
    status: str
    hold_id: str
    refunded_transaction_id: str
    first_seq: int
    last_seq: int
    created_at: datetime


class Refunded(NamedTuple):
    """The line that a line gives back."""

    kind: str
    d_posted: int
    lot: int
    transaction_id: str


class Line(NamedTuple):
    """A stored line. `header` None: its transaction is not there."""

    seq: int
    transaction_id: str
    lot: int
    bucket: str
    kind: str
    d_posted: int
    d_held: int
    lot_posted_after: int
    lot_held_after: int
    account_posted_after: int
    account_held_after: int
    refunded_seq: int | None
    at: datetime
    hash: bytes
    header: Header | None
    refunded: Refunded | None = None


class LotRow(NamedTuple):
    """A stored lot."""

    lot: int
    bucket: str
    granted: int
    remaining: int
    held: int
    claimed: int
    closed: bool
    expires_at: datetime | None
    pinned_until: datetime | None  # the latest end of any hold on it
    grant_transaction_id: str
    # What revocations say of it.
    open_claims: int
    revoked: int


class HoldRow(NamedTuple):
    """A stored hold, and what its legs come to."""

    id: str
    transaction_id: str
    status: str
    open: bool
    reserved: int
    captured: int
    released: int
    legs_reserved: int
    legs_captured: int
    legs_released: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the tenant's other tables stand, of the same moment as the lines."""

    seq: int
    chain_head: bytes
    balance: int
    subscription_balance: int
    permanent_balance: int
    held: int
    subscription_expires_at: datetime | None
    next_lot: int
    lots: Sequence[LotRow]
    holds: Sequence[HoldRow]
    open_legs: dict[int, int]  # by lot
    ledger_sum: int
    strays: Sequence[str]  # transactions whose lines are not there
    duplicates: Sequence[tuple[str, str, int]]  # kind, reference, how often: more than once
