"""Notices owed and sent, and who is to be told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Text, cast, exists, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.alerts import TRIAL_ENDING
from services.subscriptions.rules.ladder import DOWNGRADE
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.notices import LEASE, TRIAL_ENDING_KIND, Notice
from shared.ids import new_id

notices = tables.billing_notifications
_NOTICE = [notices.c[field.name] for field in fields(Notice)]
_OWED = (notices.c.sent_at.is_(None), notices.c.skipped_at.is_(None))
# As the partial index says it: a parameter would not match it.
_DOWNGRADES = text(f"kind = '{DOWNGRADE}'")
_rows = tables.subscriptions
_known = tables.provider_subscriptions


@dataclass(frozen=True)
class PastDue:
    """A tenant whose charge failed."""

    tenant_id: str
    past_due_since: datetime
    cycle_ref: str
    taken: frozenset[str]


async def insert_notice(
    db: AsyncConnection,
    *,
    tenant_id: str,
    kind: str,
    cycle_ref: str,
    payload: Mapping[str, Any],
    now: datetime,
    skipped: bool = False,
) -> bool:
    """Owe a tenant a notice, in the transaction of its cause; False if it was told or owed before."""
    inserted = await db.scalar(
        insert(notices)
        .values(
            id=new_id("ntf"),
            tenant_id=tenant_id,
            kind=kind,
            cycle_ref=cycle_ref,
            payload=dict(payload),
            next_attempt_at=now,
            skipped_at=now if skipped else None,
            created_at=now,
        )
        .on_conflict_do_nothing(constraint="billing_notifications_once")
        .returning(notices.c.id)
    )
    return inserted is not None


async def list_kinds(db: AsyncConnection, tenant_id: str, cycle_ref: str) -> frozenset[str]:
    """What a tenant was told or is owed about a cycle."""
    rows = await db.scalars(
        select(notices.c.kind).where(notices.c.tenant_id == tenant_id, notices.c.cycle_ref == cycle_ref)
    )
    return frozenset(rows)


async def count_past_due(db: AsyncConnection) -> int:
    """Tenants whose charge failed."""
    return await db.scalar(select(func.count()).where(_rows.c.past_due_since.is_not(None))) or 0


async def list_past_due(
    db: AsyncConnection, *, since_before: datetime, after: str, limit: int
) -> list[PastDue]:
    """A page of the tenants who are past due for so long, by id, and the steps they have taken."""
    # The text that `ladder.cycle_ref` makes.
    cycle_ref = _known.c.id + ":" + cast(_known.c.failing_paid_count, Text)
    taken = (
        select(func.array_agg(notices.c.kind))
        .where(notices.c.tenant_id == _rows.c.tenant_id, notices.c.cycle_ref == cycle_ref)
        .scalar_subquery()
    )
    rows = await db.execute(
        select(_rows.c.tenant_id, _rows.c.past_due_since, cycle_ref.label("cycle_ref"), taken.label("taken"))
        .join(_known, _known.c.id == _rows.c.razorpay_subscription_id)
        .where(_rows.c.past_due_since <= since_before, _rows.c.tenant_id > after)
        .order_by(_rows.c.tenant_id)
        .limit(limit)
    )
    return [
        PastDue(row.tenant_id, row.past_due_since, row.cycle_ref, frozenset(row.taken or ())) for row in rows
    ]


async def list_ending_trials(
    db: AsyncConnection, now: datetime, *, after: str, limit: int
) -> list[Subscription]:
    """A page of the tenants whose trial ends soon and who were not told, by id."""
    told = exists().where(
        notices.c.tenant_id == _rows.c.tenant_id,
        notices.c.kind == TRIAL_ENDING_KIND,
        notices.c.cycle_ref == _rows.c.razorpay_subscription_id,
    )
    rows = await db.execute(
        select(*(_rows.c[field.name] for field in fields(Subscription)))
        .where(
            _rows.c.status == "trialing",
            _rows.c.razorpay_subscription_id.is_not(None),
            _rows.c.trial_end > now,
            _rows.c.trial_end <= now + TRIAL_ENDING,
            ~told,
            _rows.c.tenant_id > after,
        )
        .order_by(_rows.c.tenant_id)
        .limit(limit)
    )
    return [Subscription(**row._mapping) for row in rows]


async def claim_owed(db: AsyncConnection, now: datetime, *, limit: int) -> list[Notice]:
    """Lease owed notices whose time has come, the longest waiting first; nobody else sends them meanwhile."""
    due = (
        select(notices.c.id)
        .where(*_OWED, notices.c.next_attempt_at <= now)
        .order_by(notices.c.next_attempt_at, notices.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("claimed")
    )
    rows = await db.execute(
        update(notices)
        .where(notices.c.id == due.c.id)
        .values(attempts=notices.c.attempts + 1, next_attempt_at=now + LEASE)
        .returning(*_NOTICE)
    )
    return sorted((Notice(**row._mapping) for row in rows), key=lambda notice: notice.id)


async def set_sent(db: AsyncConnection, notice: Notice, now: datetime) -> None:
    """The receiver took it."""
    await db.execute(
        update(notices).where(notices.c.id == notice.id, notices.c.sent_at.is_(None)).values(sent_at=now)
    )


async def postpone(db: AsyncConnection, notice: Notice, next_attempt_at: datetime) -> None:
    """It did not arrive; somebody who took it over since decides for himself."""
    await db.execute(
        update(notices)
        .where(notices.c.id == notice.id, notices.c.attempts == notice.attempts, *_OWED)
        .values(next_attempt_at=next_attempt_at)
    )


async def list_downgrades(db: AsyncConnection, since: datetime, *, limit: int) -> Sequence[Notice]:
    """Tenants who were put on free since a moment, the newest first."""
    rows = await db.execute(
        select(*_NOTICE)
        .where(_DOWNGRADES, notices.c.created_at > since)
        .order_by(notices.c.created_at.desc(), notices.c.id.desc())
        .limit(limit)
    )
    return [Notice(**row._mapping) for row in rows]


async def count_downgrades(db: AsyncConnection, since: datetime) -> int:
    """How many tenants were put on free since a moment."""
    query = select(func.count()).select_from(notices).where(_DOWNGRADES, notices.c.created_at > since)
    return await db.scalar(query) or 0


async def list_notices(
    db: AsyncConnection,
    *,
    tenant_id: str | None,
    kind: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[Notice]:
    """A page of notices, newest first."""
    query = select(*_NOTICE).order_by(notices.c.created_at.desc(), notices.c.id.desc()).limit(limit)
    if tenant_id is not None:
        query = query.where(notices.c.tenant_id == tenant_id)
    if kind is not None:
        query = query.where(notices.c.kind == kind)
    if before is not None:
        created_at, notice_id = before
        query = query.where(tuple_(notices.c.created_at, notices.c.id) < tuple_(created_at, notice_id))
    return [Notice(**row._mapping) for row in await db.execute(query)]
