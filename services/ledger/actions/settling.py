"""Writing down what time has taken."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from services.ledger.actions import Ledger
from services.ledger.rules.batch import Settled
from services.ledger.rules.requests import Settle
from services.ledger.store import grace, reads
from shared import clock
from shared.database import transaction

SETTLE_PAGE = 500


@dataclass(frozen=True, slots=True)
class Settlement:
    """What was settled."""

    lots: int
    credits: int
    holds: int
    grace_periods: int


async def settle_expired(ledger: Ledger, *, dry_run: bool, time_left_seconds: float) -> Settlement:
    """Write down what time took, tenant by tenant, as long as there is time.

    A tenant that cannot be settled keeps nobody else waiting; its failure is raised when nothing else is left.
    """
    offset = clock.offset()
    async with ledger.engine.connect() as db:
        if dry_run:
            due = await reads.count_due(db, offset)
            return Settlement(*due, await grace.count_due(db, offset))
    async with transaction(ledger.engine) as db:
        grace_periods = await grace.end_due(db, offset)
    ends_at = asyncio.get_running_loop().time() + time_left_seconds / 2
    settled_lots = settled_credits = settled_holds = 0
    while asyncio.get_running_loop().time() < ends_at:
        tenants = await _list_due(ledger, offset)
        if not tenants:
            break
        results = await asyncio.gather(
            *(ledger.lanes.submit(Settle(tenant_id)) for tenant_id in tenants), return_exceptions=True
        )
        booked = [
            outcome.transaction for each in results if isinstance(each, Settled) for outcome in each.booked
        ]
        settled_lots += sum(each.kind == "expiry" for each in booked)
        settled_credits -= sum(each.amount for each in booked if each.kind == "expiry")
        settled_holds += sum(each.kind == "lapse" for each in booked)
        if not booked:
            # Asking again would find the same: all failed, somebody else was faster, or the test clock went back.
            for failure in results:
                if isinstance(failure, BaseException):
                    raise failure
            break
    return Settlement(settled_lots, settled_credits, settled_holds, grace_periods)


async def _list_due(ledger: Ledger, offset: timedelta) -> list[str]:
    async with ledger.engine.connect() as db:
        return await reads.list_tenants_due(db, offset, SETTLE_PAGE)
