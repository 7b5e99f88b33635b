"""What an audit may find, how bad it is, and whether credits may move on."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

Severity = Literal["warning", "critical"]

WARNINGS = frozenset({"overdue_expiry"})

# Ends are written down every minute; one that still is not after this long is nobody's delay any more.
OVERDUE_AFTER = timedelta(hours=1)

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

# What the auditor looks at anew in every run and closes in its own name once it holds again. What froze an account
# waits for a person, and so does what is about rows that nobody can take back.
MENDABLE = frozenset({"balance_mismatch", "mirror_mismatch", "ledger_sum_mismatch", "overdue_expiry"})
OF_MIRRORS = ("balance_mismatch", "mirror_mismatch")


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
    """A critical finding that nobody has closed."""

    id: str  # empty: a dry run found it, and opened nothing
    tenant_id: str
    check_type: str
    observed: dict[str, Any]


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


def mended(
    doubted: Mapping[str, AbstractSet[str]], compared: Sequence[Found], tenants: Iterable[str]
) -> list[tuple[str, str]]:
    """(tenant, check) of open findings about mirrors that a comparison of these tenants no longer makes."""
    found = {(each.tenant_id, each.check_type) for each in compared}
    asked = set(tenants)
    # Where lots disagree with their lines, mirrors are not compared with them.
    return [
        (tenant_id, check_type)
        for check_type in OF_MIRRORS
        for tenant_id in sorted(doubted.get(check_type, frozenset()) & asked)
        if (tenant_id, check_type) not in found and (tenant_id, "lot_mismatch") not in found
    ]
