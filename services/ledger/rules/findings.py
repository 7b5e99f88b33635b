"""What an audit may find, how bad it is, and whether credits may move on."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Severity = Literal["warning", "critical"]

WARNINGS = frozenset({"overdue_expiry"})

# A lot, a hold or a line is not what the history says: nothing is decided on it until somebody has looked. The others
# concern what people read, or what is over; no decision reads those.
FREEZING = frozenset(
    {
        "lot_mismatch",
        "hold_mismatch",
        "claim_mismatch",
        "sequence_gap",
        "entry_mismatch",
        "chain_mismatch",
        "refund_exceeds_debit",
        "expired_spent",
        "time_went_back",
    }
)


@dataclass(frozen=True, slots=True)
class Found:
    """A disagreement, with what was seen."""

    tenant_id: str
    check_type: str
    observed: dict[str, Any]

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return "warning" if self.check_type in WARNINGS else "critical"

    @property
    def freezes(self) -> bool:
        """Whether the tenant's credits must stand still until somebody has looked."""
        return self.check_type in FREEZING


@dataclass(frozen=True, slots=True)
class FindingRow:
    """A stored finding."""

    id: str
    tenant_id: str | None
    check_type: str
    severity: str
    observed: dict[str, Any]
    created_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None


@dataclass(frozen=True, slots=True)
class OpenCritical:
    """How many tenants a check concerns, and some of them."""

    check_type: str
    count: int
    tenants: tuple[str, ...]


def one_each(found: Iterable[Found]) -> list[Found]:
    """One for each tenant and check, the first that was seen; `count` tells how many there were."""
    first: dict[tuple[str, str], Found] = {}
    counts: dict[tuple[str, str], int] = {}
    for each in found:
        key = each.tenant_id, each.check_type
        first.setdefault(key, each)
        counts[key] = counts.get(key, 0) + 1
    return [
        each if counts[key] == 1 else Found(*key, {**each.observed, "count": counts[key]})
        for key, each in first.items()
    ]
