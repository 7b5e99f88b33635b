"""The values that the ledger decides about."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

SUBSCRIPTION = "subscription"
PERMANENT = "permanent"

# Spent first comes first; a lot keeps the priority that it was granted with.
PRIORITY = {SUBSCRIPTION: 10, PERMANENT: 20}

ACTIVE = "active"
FROZEN = "frozen"

GENESIS = bytes(32)


@dataclass(frozen=True, slots=True)
class Lot:
    """What is left of one grant."""

    lot: int
    bucket: str
    priority: int
    granted: int
    remaining: int
    held: int
    expires_at: datetime | None
    reference_id: str
    grant_transaction_id: str
    created_at: datetime

    @property
    def free(self) -> int:
        """What no hold has set aside."""
        return self.remaining - self.held

    def live(self, now: datetime) -> bool:
        """Whether it can be spent: valid while now < expires_at, to the microsecond, without any job."""
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, slots=True)
class Account:
    """A tenant's credits: the locked row and its open lots, in the order in which they are spent."""

    tenant_id: str
    seq: int
    last_at: datetime
    chain_head: bytes
    state: str
    frozen_reason: str
    next_lot: int
    lots: tuple[Lot, ...]

    @property
    def posted(self) -> int:
        """Everything in open lots, held credits included."""
        return sum(lot.remaining for lot in self.lots)

    @property
    def held(self) -> int:
        """What open holds have set aside."""
        return sum(lot.held for lot in self.lots)

    def available(self, now: datetime) -> int:
        """What can be spent at `now`."""
        return sum(lot.free for lot in self.lots if lot.live(now))


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: what one lot gained or lost, and what it and the account hold afterwards."""

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
    at: datetime
    hash: bytes


@dataclass(frozen=True, slots=True)
class Transaction:
    """One operation and what became of it; also its idempotency record."""

    id: str
    tenant_id: str
    idempotency_key: str
    kind: str
    status: str
    amount: int
    reason: str
    description: str
    reference_id: str
    hold_id: str
    refunded_transaction_id: str
    metadata: dict[str, str]
    first_seq: int
    last_seq: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class BucketTotals:
    """What one bucket holds."""

    bucket: str
    credits: int
    held: int
    next_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Totals:
    """What a tenant has at one moment."""

    available: int
    held: int
    posted: int
    buckets: tuple[BucketTotals, ...]
    next_expires_at: datetime | None
    as_of_seq: int
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation did: its transaction, its lines, the lots they touched, and the balance after it."""

    transaction: Transaction
    entries: tuple[Entry, ...]
    totals: Totals
    touched: tuple[Lot, ...] = ()
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A stored operation: the transaction, what was asked for, and what a repeat is told."""

    transaction: Transaction
    fingerprint: bytes
    fingerprint_version: int
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Debit:
    """Take credits now."""

    tenant_id: str
    idempotency_key: str
    credits: int
    min_credits: int
    reason: str
    reference_id: str = ""
    description: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    if_seq: int | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """Create a lot from a fact that funds it once."""

    tenant_id: str
    idempotency_key: str
    bucket: str
    credits: int
    expires_at: datetime | None
    reference_id: str
    reason: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Settle:
    """Write down the expiries that are due, and nothing else."""

    tenant_id: str


Operation = Debit | Grant | Settle
