"""Numbers that Prometheus asks for, each from an index that holds no more than what is counted."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.rules.findings import OVERDUE_AFTER

GRACE_PERIODS = """
SELECT limit_key, count(*) FROM grace_periods
WHERE NOT ended AND expires_at > (SELECT clock_timestamp() + make_interval(secs => :offset))
GROUP BY limit_key"""

HOLDS_OPEN = "SELECT count(*) FROM credit_holds WHERE open"

HOLDS_OVERDUE = """
SELECT count(*) FROM credit_holds h
WHERE open AND expires_at <= (SELECT clock_timestamp() + make_interval(secs => :offset) - :grace)
  AND NOT EXISTS (SELECT FROM tenant_credits a WHERE a.tenant_id = h.tenant_id AND a.state = 'frozen')"""

ACCOUNTS_FROZEN = "SELECT count(*) FROM tenant_credits WHERE state = 'frozen'"

FINDINGS = """
SELECT check_type, severity::text, count(*) FROM billing_integrity_reports
WHERE room = 'ledger' AND resolved_at IS NULL GROUP BY check_type, severity"""


@dataclass(frozen=True, slots=True)
class Gauges:
    """How many there are now."""

    grace_periods: list[tuple[str, int]]  # by limit
    holds_open: int
    holds_overdue: int
    accounts_frozen: int
    findings: list[tuple[str, str, int]]  # by check and severity


async def read(db: AsyncConnection, offset: timedelta) -> Gauges:
    """Everything that is counted, each number of its own moment."""
    at = {"offset": offset.total_seconds()}
    grace_periods = await db.execute(text(GRACE_PERIODS), at)
    overdue = await db.execute(text(HOLDS_OVERDUE), {**at, "grace": OVERDUE_AFTER})
    findings = await db.execute(text(FINDINGS))
    return Gauges(
        grace_periods=[(row[0], row[1]) for row in grace_periods],
        holds_open=int((await db.execute(text(HOLDS_OPEN))).scalar_one()),
        holds_overdue=int(overdue.scalar_one()),
        accounts_frozen=int((await db.execute(text(ACCOUNTS_FROZEN))).scalar_one()),
        findings=[(row[0], row[1], row[2]) for row in findings],
    )
