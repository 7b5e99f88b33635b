"""The values that the ledger decides about.

Tuples with names: each debit makes a dozen of them, and a frozen dataclass takes ten times as long to make.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from services.ledger.rules.limits import LimitDecision, LimitState

SUBSCRIPTION = "subscription"
PERMANENT = "permanent"

# Spent first comes first; a lot keeps the priority that it was granted with.
PRIORITY = {SUBSCRIPTION: 10, PERMANENT: 20}

ACTIVE = "active"
FROZEN = "frozen"

GENESIS = bytes(32)

# A hold lives no longer than this from its placing, whatever extends it: it bounds how far a hold stretches a lot.
HOLD_MAX = timedelta(days=7)
REGRANT = timedelta(days=30)

NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Lot(NamedTuple):
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
    claimed: int = 0  # what revocations still take when it returns
    pinned_until: datetime | None = None  # the latest end of any hold on it

    @property
    def usable_until(self) -> datetime | None:
        """Until when some of it can be spent or captured."""
        if self.held and self.expires_at is not None and self.pinned_until is not None:
            return max(self.expires_at, self.pinned_until)
        return self.expires_at

    @property
    def free(self) -> int:
        """What no hold has set aside."""
        return self.remaining - self.held

    def live(self, now: datetime) -> bool:
        """Whether it can be spent: valid while now < expires_at, to the microsecond, without any job."""
        return self.expires_at is None or now < self.expires_at


class Leg(NamedTuple):
    """What a hold has set aside in one lot."""

    leg: int
    lot: int
    reserved: int
    captured: int = 0
    released: int = 0

    @property
    def open(self) -> int:
        """What is still set aside."""
        return self.reserved - self.captured - self.released


class Hold(NamedTuple):
    """Credits set aside until they are captured, voided or lapse."""

    id: str
    transaction_id: str
    status: str  # held, captured, voided, expired
    reserved: int
    captured: int
    released: int
    expires_at: datetime
    max_expires_at: datetime
    created_at: datetime
    reason: str
    reference_id: str
    legs: tuple[Leg, ...] = ()

    @property
    def open(self) -> int:
        """What is still set aside."""
        return self.reserved - self.captured - self.released


class Revocation(NamedTuple):
    """A grant that was taken back: what was taken so far, and what still is when it returns to the lot."""

    reference_id: str
    transaction_id: str
    grant_reference_id: str
    lot: int
    asked: int
    taken: int
    claimed: int
    restored_transaction_id: str
    created_at: datetime


class Account(NamedTuple):
    """A tenant's credits: the locked row and its open lots, in the order in which they are spent.

    Of everything else it carries what the operations at hand are about.
    """

    tenant_id: str
    seq: int
    last_at: datetime
    chain_head: bytes
    state: str
    frozen_reason: str
    next_lot: int
    lots: tuple[Lot, ...]
    emptied: Mapping[int, Lot] = NOTHING  # lots with nothing in them, by number
    holds: Mapping[str, Hold] = NOTHING
    revocations: Mapping[str, Revocation] = NOTHING  # by reference
    frozen_at: datetime | None = None

    @property
    def posted(self) -> int:
        """Everything in open lots, held credits included."""
        return sum([lot.remaining for lot in self.lots])

    @property
    def held(self) -> int:
        """What open holds have set aside."""
        return sum([lot.held for lot in self.lots])

    def available(self, now: datetime) -> int:
        """What can be spent at `now`."""
        return sum(
            [lot.remaining - lot.held for lot in self.lots if lot.expires_at is None or now < lot.expires_at]
        )


class Entry(NamedTuple):
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
    refunded_seq: int | None = None  # the line that this one gives back


class Transaction(NamedTuple):
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
    metadata: Mapping[str, str]
    first_seq: int
    last_seq: int
    created_at: datetime
    actor: str = ""


class BucketTotals(NamedTuple):
    """What one bucket holds."""

    bucket: str
    credits: int
    held: int
    next_expires_at: datetime | None


class Totals(NamedTuple):
    """What a tenant has at one moment."""

    available: int
    held: int
    posted: int
    buckets: tuple[BucketTotals, ...]
    next_expires_at: datetime | None
    as_of_seq: int
    as_of: datetime


class Revoked(NamedTuple):
    """What taking back a grant came to."""

    taken: int
    claimed: int
    already_spent: int


class Audit(NamedTuple):
    """What a person did to an account, for the audit log."""

    action: str
    actor: str
    before: dict[str, Any]
    after: dict[str, Any]
    reason: str
    request_id: str


class Outcome(NamedTuple):
    """What an operation did to credits: its transaction, its lines, everything they touched, the balance after it."""

    transaction: Transaction
    entries: tuple[Entry, ...]
    totals: Totals
    touched: tuple[Lot, ...] = ()
    hold: Hold | None = None
    revocations: tuple[Revocation, ...] = ()
    refundable: int = 0
    revoked: Revoked | None = None
    limits: tuple[LimitDecision, ...] = ()
    counted: tuple[LimitState, ...] = ()
    audit: Audit | None = None
    replayed: bool = False


class Mirrors(NamedTuple):
    """The columns of an account that people read."""

    balance: int
    subscription_balance: int
    subscription_expires_at: datetime | None
    permanent_balance: int
    held: int


class Noted(NamedTuple):
    """What an operation did that moves no credits: usage counted, an account frozen, its mirrors written anew."""

    totals: Totals
    limits: tuple[LimitDecision, ...] = ()
    counted: tuple[LimitState, ...] = ()
    frozen_at: datetime | None = None
    mirrors: tuple[Mirrors, Mirrors] | None = None  # as they stood, and as they are
    audit: Audit | None = None
    replayed: bool = False


class Record(NamedTuple):
    """A stored operation: what was asked for, what a repeat is told, and the transaction where credits were asked."""

    tenant_id: str
    idempotency_key: str
    kind: str
    rejected: bool
    decided_at: datetime
    fingerprint: bytes
    fingerprint_version: int
    answer: dict[str, Any]
    transaction: Transaction | None = None


class SpentLine(NamedTuple):
    """A line of a debit or capture, and how much of it was given back."""

    seq: int
    lot: int
    credits: int
    refunded: int

    @property
    def refundable(self) -> int:
        """What can still be given back."""
        return self.credits - self.refunded


class Spent(NamedTuple):
    """A transaction that a refund is asked for."""

    transaction_id: str
    kind: str
    status: str
    lines: tuple[SpentLine, ...]

    @property
    def refundable(self) -> int:
        """What can still be given back."""
        return sum(line.refundable for line in self.lines)
