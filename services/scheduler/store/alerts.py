"""Alerts: one open row per condition and one row per event, and what of them the sink has been told."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Text, and_, any_, bindparam, case, delete, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from services.scheduler.rules import FLAPS_WITHIN, Alert, Kept, News
from services.scheduler.store.runs import lease_end
from services.scheduler.tables import NOT_RECOVERED, TOLD_OF_LATER, alerts, sink_posts
from shared.ids import new_id

# Nobody is told of what is older: a sink that is set up today must not be flooded with last month.
TOLD_WITHIN = timedelta(days=1)
# An event has no end; for so long it is listed among what holds.
EVENTS_SHOWN = timedelta(days=1)
MINUTE = timedelta(minutes=1)


async def report(db: AsyncConnection, source: str, alert: Alert, *, now: datetime) -> bool:
    """Note that a condition holds, or that an event happened; True if that is news."""
    if alert.is_event:
        return await _happened(db, source, alert, now=now)
    if await _reopen(db, source, alert, now=now):
        return True
    statement = insert(alerts).values(_values(source, alert, now))
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


async def _happened(db: AsyncConnection, source: str, alert: Alert, *, now: datetime) -> bool:
    # No conflict target: a room that reported the key as a condition before must not stop its job.
    fresh = insert(alerts).values(_values(source, alert, now)).on_conflict_do_nothing()
    if await db.scalar(fresh.returning(alerts.c.id)) is not None:
        return True
    await db.execute(
        update(alerts)
        .where(
            alerts.c.source == source,
            alerts.c.key == alert.key,
            or_(alerts.c.is_event, alerts.c.recovered_at.is_(None)),
        )
        .values(reports=alerts.c.reports + 1, last_reported_at=now)
    )
    return False


async def _reopen(db: AsyncConnection, source: str, alert: Alert, *, now: datetime) -> bool:
    """Go on with the row of a condition that ended a moment ago: it flaps."""
    same = (alerts.c.source == source) & (alerts.c.key == alert.key)
    ended = (
        select(alerts.c.id)
        .where(same, ~alerts.c.is_event, alerts.c.recovered_at > now - FLAPS_WITHIN)
        .order_by(alerts.c.recovered_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    other = alerts.alias()
    is_open = exists().where(
        other.c.source == source, other.c.key == alert.key, other.c.recovered_at.is_(None)
    )
    statement = (
        update(alerts)
        .where(alerts.c.id == ended, ~is_open)
        .values(
            severity=alert.severity.value,
            title=alert.title,
            tenant_id=alert.tenant_id,
            evidence=dict(alert.evidence),
            reports=alerts.c.reports + 1,
            last_reported_at=now,
            recovered_at=None,
            flaps=alerts.c.flaps + 1,
        )
    )
    return (await db.execute(statement)).rowcount == 1


def _values(source: str, alert: Alert, now: datetime) -> dict[str, Any]:
    return {
        "id": new_id("alr"),
        "source": source,
        "key": alert.key,
        "severity": alert.severity.value,
        "title": alert.title,
        "tenant_id": alert.tenant_id,
        "evidence": dict(alert.evidence),
        "reports": 1,
        "created_at": now,
        "last_reported_at": now,
        "is_event": alert.is_event,
    }


async def recover(
    db: AsyncConnection, source: str, *, still: Sequence[str], now: datetime
) -> list[tuple[str, str]]:
    """Close the source's conditions whose key is not among `still`; answers (key, title) of each."""
    rows = await db.execute(
        update(alerts)
        .where(
            alerts.c.source == source,
            alerts.c.recovered_at.is_(None),
            ~alerts.c.is_event,
            alerts.c.key.not_in(still),
        )
        .values(recovered_at=now)
        .returning(alerts.c.key, alerts.c.title)
    )
    return [(row.key, row.title) for row in rows]


async def close_events(db: AsyncConnection, *, now: datetime) -> int:
    """List events no longer among what holds, once they have been there for a day."""
    old = (
        alerts.c.is_event & alerts.c.recovered_at.is_(None) & (alerts.c.last_reported_at < now - EVENTS_SHOWN)
    )
    return (await db.execute(update(alerts).where(old).values(recovered_at=now))).rowcount


async def count_untold(db: AsyncConnection, *, now: datetime) -> int:
    """How many alerts the sink must be told of now."""
    return (await db.execute(select(func.count()).select_from(alerts).where(_untold(now)))).scalar_one()


async def posted_lately(db: AsyncConnection) -> int:
    """How many messages went to the sink within the last minute. Until the transaction ends nobody adds one."""
    await db.execute(text("LOCK TABLE sink_posts IN SHARE ROW EXCLUSIVE MODE"))
    lately = sink_posts.c.posted_at > func.clock_timestamp() - MINUTE
    return (await db.execute(select(func.count()).select_from(sink_posts).where(lately))).scalar_one()


async def claim_untold(
    db: AsyncConnection, *, now: datetime, limit: int, retry_after: timedelta
) -> list[News]:
    """Take what the next message tells, the most urgent first, and note that one is posted.

    What is not marked as told comes again after `retry_after`.
    """
    due = (
        select(alerts.c.id)
        .where(_untold(now))
        .order_by(case((_ended(), 2), (alerts.c.severity == "critical", 0), else_=1), alerts.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = await db.execute(
        update(alerts)
        .where(alerts.c.id.in_(due))
        .values(attempts=alerts.c.attempts + 1, next_attempt_at=lease_end(retry_after))
        .returning(alerts)
    )
    news = [
        News(
            id=row.id,
            what=row.severity if row.is_event or row.recovered_at is None else "recovery",
            title=row.title,
            tenant_id=row.tenant_id,
            evidence=row.evidence,
            flaps=row.flaps > 0,
        )
        for row in rows
    ]
    if news:
        await db.execute(insert(sink_posts).values(id=new_id("pst"), alerts=len(news)))
    return news


async def mark_told(db: AsyncConnection, news: Sequence[News]) -> None:
    """The sink was told."""
    for what in {each.what for each in news}:
        told = bindparam("told", [each.id for each in news if each.what == what], ARRAY(Text))
        await db.execute(
            update(alerts)
            .where(alerts.c.id == any_(told))
            .values(sent=what, attempts=0, next_attempt_at=func.clock_timestamp())
        )


def _ended() -> ColumnElement[bool]:
    return alerts.c.recovered_at.is_not(None) & ~alerts.c.is_event


def _untold(now: datetime) -> ColumnElement[bool]:
    worsened = alerts.c.recovered_at.is_(None) & or_(
        alerts.c.sent.in_(["nothing", "recovery"]),
        (alerts.c.sent == "warning") & (alerts.c.severity == "critical"),
    )
    happened = alerts.c.is_event & (alerts.c.sent == "nothing")
    # Of what flaps nobody hears that it ended until it has stayed away.
    settled = or_(alerts.c.flaps == 0, alerts.c.recovered_at <= now - FLAPS_WITHIN)
    ended = _ended() & (alerts.c.sent != "recovery") & settled
    return and_(
        TOLD_OF_LATER,
        or_(worsened & ~alerts.c.is_event, happened, ended),
        alerts.c.next_attempt_at <= func.clock_timestamp(),
        func.coalesce(alerts.c.recovered_at, alerts.c.last_reported_at) > now - TOLD_WITHIN,
    )


async def page(
    db: AsyncConnection, *, tenant_id: str | None, with_recovered: bool, before: str | None, limit: int
) -> list[Kept]:
    """Alerts, newest first, older than the alert `before`."""
    columns = [alerts.c[name] for name in Kept.__dataclass_fields__]
    statement = select(*columns).order_by(alerts.c.id.desc()).limit(limit)
    if tenant_id is not None:
        statement = statement.where(alerts.c.tenant_id == tenant_id)
    if not with_recovered:
        statement = statement.where(alerts.c.recovered_at.is_(None))
    if before is not None:
        statement = statement.where(alerts.c.id < before)
    return [Kept(**row._mapping) for row in await db.execute(statement)]


async def prune(db: AsyncConnection, *, older_than: datetime, limit: int) -> int:
    """Delete the alerts that were over longest ago."""
    over = (alerts.c.recovered_at < older_than) & (alerts.c.last_reported_at < older_than)
    oldest = (
        select(alerts.c.id)
        .where(over)
        .order_by(alerts.c.recovered_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return (await db.execute(delete(alerts).where(alerts.c.id.in_(oldest)))).rowcount


async def prune_posts(db: AsyncConnection) -> int:
    """Forget when the sink was told, as far as it limits nothing any more."""
    old = sink_posts.c.posted_at < func.clock_timestamp() - 60 * MINUTE
    return (await db.execute(delete(sink_posts).where(old))).rowcount
