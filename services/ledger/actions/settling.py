"""Writing down what time has taken."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from services.ledger import metrics
from services.ledger.actions import Ledger
from services.ledger.rules.batch import Settled
from services.ledger.rules.findings import OVERDUE_AFTER, Found
from services.ledger.rules.requests import Settle
from services.ledger.store import grace, reads
from services.ledger.store.audit import mirrors
from shared import clock
from shared.database import transaction

SETTLE_PAGE = 500
OVERDUE_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Settlement:
    """What was settled, and whose ends are long past and still not written down."""

    lots: int
    credits: int
    holds: int
    grace_periods: int
    overdue: Sequence[Found] = ()


async def settle_expired(ledger: Ledger, *, dry_run: bool, time_left_seconds: float) -> Settlement:
    """Write down what time took, tenant by tenant, as long as there is time.

    A tenant that cannot be settled keeps nobody else waiting; its failure is raised when nothing else is left, until
    it is overdue: then it is told by its name.
    """
    offset = clock.offset()
    async with ledger.engine.connect() as db:
        if dry_run:
            due = await reads.count_due(db, offset)
            return Settlement(*due, await grace.count_due(db, offset))
    async with transaction(ledger.engine) as db:
        grace_periods = await grace.end_due(db, offset)
    metrics.grace_periods_expired.inc(grace_periods)
    ends_at = asyncio.get_running_loop().time() + time_left_seconds / 2
    settled_lots = settled_credits = settled_holds = 0
    failures: list[BaseException] = []
    # Asking these again would find the same: they failed, somebody else was faster, or the test clock went back.
    passed: set[str] = set()
    while asyncio.get_running_loop().time() < ends_at:
        tenants = await _list_due(ledger, offset, passed)
        if not tenants:
            break
        results = await asyncio.gather(
            *(ledger.lanes.submit(Settle(tenant_id)) for tenant_id in tenants), return_exceptions=True
        )
        failures += [each for each in results if isinstance(each, BaseException)]
        passed |= {
            tenant_id
            for tenant_id, each in zip(tenants, results, strict=True)
            if not (isinstance(each, Settled) and each.booked)
        }
        booked = [
            outcome.transaction for each in results if isinstance(each, Settled) for outcome in each.booked
        ]
        settled_lots += sum(each.kind == "expiry" for each in booked)
        settled_credits -= sum(each.amount for each in booked if each.kind == "expiry")
        settled_holds += sum(each.kind == "lapse" for each in booked)
    async with ledger.engine.connect() as db:
        overdue = await mirrors.list_overdue(db, offset=offset, grace=OVERDUE_AFTER, page=OVERDUE_PAGE)
    if failures and not overdue:
        raise failures[0]
    return Settlement(settled_lots, settled_credits, settled_holds, grace_periods, overdue)


async def _list_due(ledger: Ledger, offset: timedelta, passed: set[str]) -> list[str]:
    async with ledger.engine.connect() as db:
        return await reads.list_tenants_due(db, offset, SETTLE_PAGE, without=sorted(passed))
