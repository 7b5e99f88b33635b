"""What can be asked of the ledger, with the field names of the contract: a reused key is told which one differs.

Everything but the tenant, the key and how it is asked is part of the fingerprint.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar, TypeAlias

REJECT = "reject"
DEBIT_SHORTFALL = "debit_shortfall"

EXPIRE_AGAIN = "expire_again"
REGRANT_30_DAYS = "regrant_30_days"
TO_PERMANENT = "to_permanent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What every operation has."""

    # Under which a repeat finds it; a stored word, never renamed.
    kind: ClassVar[str]
    # Whether its refusals are an answer that is kept.
    remembers: ClassVar[bool] = True

    tenant_id: str
    idempotency_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Debit(Request):
    """Take credits now."""

    kind: ClassVar[str] = "debit"

    credits: int
    min_credits: int
    reason: str
    reference_id: str = ""
    description: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    if_seq: int | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceHold(Request):
    """Set credits aside."""

    kind: ClassVar[str] = "hold"

    credits: int
    ttl: timedelta
    reason: str
    reference_id: str = ""
    description: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    if_seq: int | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureHold(Request):
    """Spend held credits."""

    kind: ClassVar[str] = "capture"

    hold_id: str
    credits: int
    more_follows: bool = False
    over_capture_policy: str = REJECT
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VoidHold(Request):
    """Set everything still held free."""

    kind: ClassVar[str] = "void"

    hold_id: str
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendHold(Request):
    """Give a hold more time."""

    kind: ClassVar[str] = "extend"

    hold_id: str
    ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund(Request):
    """Give back what a debit or capture took. `credits` None: all that is left."""

    kind: ClassVar[str] = "refund"

    transaction_id: str
    credits: int | None
    expired_policy: str
    reason: str
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundOverdebit(Refund):
    """A person gives back what one debit took too much."""

    remembers: ClassVar[bool] = False

    # Whoever goes on with a colleague's ticket asks for the same.
    description: str = field(default="", metadata={"compared": False})
    actor: str = field(metadata={"compared": False})
    # What stays taken whoever gives back; the same credits under the same key are the same refund.
    should_cost: int = field(default=0, metadata={"compared": False})
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(Request):
    """Create a lot from a fact that funds it once."""

    kind: ClassVar[str] = "grant"
    remembers: ClassVar[bool] = False

    bucket: str
    credits: int
    expires_at: datetime | None
    reference_id: str
    reason: str
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke(Request):
    """Take back part or all of a grant."""

    kind: ClassVar[str] = "revoke"
    remembers: ClassVar[bool] = False

    grant_reference_id: str
    credits: int
    reference_id: str
    reason: str
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore(Request):
    """Give back what a revocation took."""

    kind: ClassVar[str] = "restore"
    remembers: ClassVar[bool] = False

    revoke_reference_id: str
    reference_id: str
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjust(Request):
    """A person adds or takes credits."""

    kind: ClassVar[str] = "adjustment"
    remembers: ClassVar[bool] = False

    credits: int
    bucket: str
    expires_at: datetime | None
    reason: str
    description: str
    actor: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze(Request):
    """Refuse every change of credits from now on."""

    kind: ClassVar[str] = "freeze"
    remembers: ClassVar[bool] = False

    actor: str
    reason: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfreeze(Request):
    """End a freeze."""

    kind: ClassVar[str] = "unfreeze"
    remembers: ClassVar[bool] = False

    actor: str
    reason: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildMirrors(Request):
    """Write the columns that people read anew."""

    kind: ClassVar[str] = "rebuild_mirrors"
    remembers: ClassVar[bool] = False

    actor: str
    reason: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consume(Request):
    """Count usage against limits, all or nothing."""

    kind: ClassVar[str] = "consume"

    limits: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Request):
    """Give usage back."""

    kind: ClassVar[str] = "release"

    limits: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUsage(Request):
    """Set usage to what the caller counted."""

    kind: ClassVar[str] = "set_usage"

    limit_key: str
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorize(Request):
    """Consume limits and debit or hold credits in one decision; at most one of the two is asked for."""

    kind: ClassVar[str] = "authorize"

    limits: tuple[tuple[str, int], ...]
    debit_credits: int
    hold_credits: int
    hold_ttl: timedelta
    reason: str
    reference_id: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Debits of one tenant that are applied together or not at all."""

    tenant_id: str
    group_id: str
    debits: tuple[Debit, ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """Write down what time has already taken from a tenant, and nothing else."""

    kind: ClassVar[str] = "settle"

    tenant_id: str


Keyed: TypeAlias = (
    Debit
    | PlaceHold
    | CaptureHold
    | VoidHold
    | ExtendHold
    | Refund
    | Grant
    | Revoke
    | Restore
    | Adjust
    | Freeze
    | Unfreeze
    | RebuildMirrors
    | Consume
    | Release
    | SetUsage
    | Authorize
)
Operation: TypeAlias = Keyed | Group | Settle
