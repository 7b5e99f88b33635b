"""One function for each thing that the ledger can do, by what it is about; `credits` first.

What changes credits or counts usage goes through the lanes.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from services.ledger import errors
from services.ledger.lanes import Lanes
from services.ledger.limit_reads import LimitReads
from shared.ops.upkeep import BUCKETS_KEPT


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the actions work with: the lanes write, the limits have a reader, the engine serves everything else."""

    engine: AsyncEngine
    lanes: Lanes
    limit_reads: LimitReads
    grace_retention: timedelta = timedelta(days=30)
    rate_limit_retention: timedelta = BUCKETS_KEPT


def unknown_tenant(tenant_id: str) -> errors.UnknownTenant:
    """The refusal for a tenant without an account."""
    return errors.UnknownTenant(f"tenant {tenant_id} has no account; provision it first", tenant_id=tenant_id)
