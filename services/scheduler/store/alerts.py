"""Alerts: one open row per condition, told once when it begins and once when it ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.rules import Alert
from services.scheduler.store.runs import lease_end
from services.scheduler.tables import NOT_RECOVERED, alerts
from shared.ids import new_id

# Nobody is told of what is older: a sink that is set up today must not be flooded with last month.
TOLD_WITHIN = timedelta(days=1)


@dataclass(frozen=True)
class Unsent:
    """Something the sink has not been told. `news` is a severity, or `recovery`."""

    id: str
    news: str
    title: str
    tenant_id: str | None
    evidence: dict[str, str]


async def report(db: AsyncConnection, source: str, alert: Alert, *, now: datetime) -> bool:
    """Note that a condition holds; True if it did not before."""
    statement = insert(alerts).values(
        id=new_id("alr"),
        source=source,
        key=alert.key,
        severity=alert.severity.value,
        title=alert.title,
        tenant_id=alert.tenant_id,
        evidence=dict(alert.evidence),
        reports=1,
        created_at=now,
        last_reported_at=now,
    )
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["source", "key"],
        index_where=NOT_RECOVERED,
        set_={
            "severity": new.severity,
            "title": new.title,
            "tenant_id": new.tenant_id,
            "evidence": new.evidence,
            "reports": alerts.c.reports + 1,
            "last_reported_at": new.last_reported_at,
        },
    )
    reports: int = (await db.execute(statement.returning(alerts.c.reports))).scalar_one()
    return reports == 1


async def recover(
    db: AsyncConnection, source: str, *, still: Sequence[str], now: datetime
) -> list[tuple[str, str]]:
    """Close the source's alerts whose key is not among `still`; answers (key, title) of each."""
    rows = await db.execute(
        update(alerts)
        .where(alerts.c.source == source, alerts.c.recovered_at.is_(None), alerts.c.key.not_in(still))
        .values(recovered_at=now)
        .returning(alerts.c.key, alerts.c.title)
    )
    return [(row.key, row.title) for row in rows]


async def claim_unsent(
    db: AsyncConnection, *, now: datetime, limit: int, retry_after: timedelta
) -> list[Unsent]:
    """Take what the sink must be told; what is not marked as sent comes again after `retry_after`."""
    worsened = alerts.c.recovered_at.is_(None) & or_(
        alerts.c.sent == "nothing", (alerts.c.sent == "warning") & (alerts.c.severity == "critical")
    )
    ended = alerts.c.recovered_at.is_not(None) & (alerts.c.sent != "recovery")
    due = (
        select(alerts.c.id)
        .where(
            worsened | ended,
            alerts.c.next_attempt_at <= func.clock_timestamp(),
            func.coalesce(alerts.c.recovered_at, alerts.c.last_reported_at) > now - TOLD_WITHIN,
        )
        .order_by(alerts.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = await db.execute(
        update(alerts)
        .where(alerts.c.id.in_(due))
        .values(attempts=alerts.c.attempts + 1, next_attempt_at=lease_end(retry_after))
        .returning(alerts)
    )
    return [
        Unsent(
            id=row.id,
            news=row.severity if row.recovered_at is None else "recovery",
            title=row.title,
            tenant_id=row.tenant_id,
            evidence=row.evidence,
        )
        for row in rows
    ]


async def mark_sent(db: AsyncConnection, alert_id: str, *, news: str) -> None:
    """The sink was told."""
    await db.execute(
        update(alerts)
        .where(alerts.c.id == alert_id)
        .values(sent=news, attempts=0, next_attempt_at=func.clock_timestamp())
    )


async def prune(db: AsyncConnection, *, older_than: datetime) -> int:
    """Delete alerts that recovered long ago."""
    return (await db.execute(delete(alerts).where(alerts.c.recovered_at < older_than))).rowcount
