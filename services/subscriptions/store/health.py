"""How charging goes, from indexes that hold no more than what is asked for."""

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta

from sqlalchemy import case, exists, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.health import PAST_DUE_STAGES, Gauges, OpenDispute, Overdue
from services.subscriptions.rules.notices import ATTEMPTS_EAGER
from services.subscriptions.rules.policy import Step
from services.subscriptions.store.audit import ROOM
from shared.ops.tables import billing_integrity_reports

payments = tables.payments
events = tables.processed_payment_events
disputes = tables.billing_disputes
queue = tables.billing_reconciliation_queue
notices = tables.billing_notifications
rows = tables.subscriptions
reports = billing_integrity_reports

# As their partial indexes say it: a parameter would match none of them.
_FAILED = text("event_type = 'payment.failed'")
_NOT_CLOSED = text("status IN ('open', 'under_review')")
_OWED = (notices.c.sent_at.is_(None), notices.c.skipped_at.is_(None))
_OPEN = (queue.c.completed_at.is_(None), queue.c.abandoned_at.is_(None))
_ABANDONED = (queue.c.abandoned_at.is_not(None), queue.c.completed_at.is_(None))
_FOUND = (reports.c.room == ROOM, reports.c.resolved_at.is_(None))
# Others than these are not ours to charge.
_STRANGE = ("other_mode", "unknown_provider")
COUNTED_MAX = 1_000


async def count_charges(db: AsyncConnection, since: datetime) -> tuple[int, int]:
    """(charges that succeeded, attempts that failed) since a moment."""
    succeeded = select(func.count()).select_from(payments).where(payments.c.received_at > since)
    attempt = func.coalesce(func.nullif(events.c.payment_id, ""), events.c.id)
    failed = select(func.count(attempt.distinct())).where(
        _FAILED, events.c.received_at > since, events.c.reason.not_in(_STRANGE)
    )
    return await db.scalar(succeeded) or 0, await db.scalar(failed) or 0


async def list_open_disputes(db: AsyncConnection, *, limit: int) -> list[OpenDispute]:
    """Disputes that are not closed, the oldest first: a newer one never takes the place of one that was named."""
    found = await db.execute(
        select(*(disputes.c[field.name] for field in fields(OpenDispute)))
        .where(_NOT_CLOSED)
        .order_by(disputes.c.created_at, disputes.c.id)
        .limit(limit)
    )
    return [OpenDispute(**row._mapping) for row in found]


async def count_open_disputes(db: AsyncConnection) -> int:
    """Disputes that are not closed."""
    return await db.scalar(select(func.count()).select_from(disputes).where(_NOT_CLOSED)) or 0


async def count_abandoned(db: AsyncConnection) -> int:
    """Tasks that were given up and not settled."""
    return await db.scalar(select(func.count()).select_from(queue).where(*_ABANDONED)) or 0


async def find_overdue(db: AsyncConnection, due_before: datetime, *, limit: int = COUNTED_MAX) -> Overdue:
    """Tasks that were due before a moment and that none before them in line holds up; counted up to a limit."""
    earlier = queue.alias("earlier")
    held_up = exists().where(
        earlier.c.tenant_id == queue.c.tenant_id,
        earlier.c.counterpart == queue.c.counterpart,
        earlier.c.position < queue.c.position,
        earlier.c.completed_at.is_(None),
        earlier.c.abandoned_at.is_(None),
    )
    first = (
        select(queue.c.next_attempt_at)
        .where(*_OPEN, queue.c.next_attempt_at <= due_before, ~held_up)
        .order_by(queue.c.next_attempt_at, queue.c.position)
        .limit(limit)
        .subquery()
    )
    found = (await db.execute(select(func.count(), func.min(first.c.next_attempt_at)))).one()
    return Overdue(found[0], found[1])


async def count_owed_long(db: AsyncConnection, since: datetime) -> int:
    """Notices that did not arrive in all their first attempts, or are owed since before a moment."""
    late = or_(notices.c.attempts >= ATTEMPTS_EAGER, notices.c.created_at < since)
    return await db.scalar(select(func.count()).select_from(notices).where(*_OWED, late)) or 0


async def count_critical(db: AsyncConnection) -> int:
    """Critical findings of this room that are open."""
    query = select(func.count()).select_from(reports).where(*_FOUND, reports.c.severity == "critical")
    return await db.scalar(query) or 0


async def read_gauges(
    db: AsyncConnection, now: datetime, ladder: Sequence[Step], *, subscriptions: bool
) -> Gauges:
    """The numbers that dashboards show; plans only where asked for, since they are counted row by row."""
    due = func.count().filter(queue.c.next_attempt_at <= now)
    tasks = (await db.execute(select(func.count(), due).select_from(queue).where(*_OPEN))).one()
    found = await db.execute(
        select(reports.c.check_type, reports.c.severity, func.count())
        .where(*_FOUND)
        .group_by(reports.c.check_type, reports.c.severity)
    )
    return Gauges(
        pending=tasks[0],
        due=tasks[1],
        abandoned=await count_abandoned(db),
        oldest_due_at=(await find_overdue(db, now, limit=1)).oldest_due_at,
        past_due=await _past_due(db, now, ladder),
        notices_owed=await db.scalar(select(func.count()).select_from(notices).where(*_OWED)) or 0,
        disputes=await count_open_disputes(db),
        findings={(row[0], row[1]): row[2] for row in found},
        subscriptions=await _by_plan(db) if subscriptions else None,
    )


async def _past_due(db: AsyncConnection, now: datetime, ladder: Sequence[Step]) -> dict[str, int]:
    steps = zip(ladder, PAST_DUE_STAGES[1:], strict=True)
    since = rows.c.past_due_since
    stage = case(
        *((since <= now - timedelta(days=step.day), name) for step, name in reversed(list(steps))),
        else_=PAST_DUE_STAGES[0],
    )
    each = select(stage.label("stage")).where(since.is_not(None), rows.c.status == "past_due").subquery()
    counted = await db.execute(select(each.c.stage, func.count()).group_by(each.c.stage))
    return dict.fromkeys(PAST_DUE_STAGES, 0) | {row[0]: row[1] for row in counted}


async def _by_plan(db: AsyncConnection) -> dict[tuple[str, str], int]:
    counted = await db.execute(
        select(rows.c.plan_id, rows.c.status, func.count()).group_by(rows.c.plan_id, rows.c.status)
    )
    return {(row[0], row[1]): row[2] for row in counted}
