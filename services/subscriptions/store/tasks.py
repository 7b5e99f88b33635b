"""What is owed to the ledger and the provider."""

from dataclasses import fields
from datetime import datetime

from sqlalchemy import delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.tasks import LEASE, Counterpart, NewTask, Task
from shared.ids import new_id

queue = tables.billing_reconciliation_queue
_TASK = [queue.c[field.name] for field in fields(Task)]
_OPEN = (queue.c.completed_at.is_(None), queue.c.abandoned_at.is_(None))


async def insert_task(db: AsyncConnection, task: NewTask, now: datetime) -> str | None:
    """Owe something, in the transaction of its cause; None if it is owed or done already."""
    task_id: str | None = await db.scalar(
        insert(queue)
        .values(
            id=new_id("tsk"),
            tenant_id=task.tenant_id,
            task_type=task.task_type,
            counterpart=task.counterpart,
            idempotency_key=task.idempotency_key,
            payload=dict(task.payload),
            next_attempt_at=now,
        )
        .on_conflict_do_nothing(constraint="billing_reconciliation_queue_once")
        .returning(queue.c.id)
    )
    return task_id


async def has_task(db: AsyncConnection, tenant_id: str, idempotency_key: str) -> bool:
    """Whether something was owed under this key, done or not."""
    found = await db.scalar(
        select(queue.c.id).where(queue.c.tenant_id == tenant_id, queue.c.idempotency_key == idempotency_key)
    )
    return found is not None


async def has_fetched(db: AsyncConnection, tenant_id: str, subscription_id: str, *, since: datetime) -> bool:
    """Whether the provider's word on a subscription was taken since then."""
    found = await db.scalar(
        select(queue.c.id)
        .where(
            queue.c.tenant_id == tenant_id,
            queue.c.task_type == "fetch_and_apply",
            queue.c.payload["razorpaySubscriptionId"].astext == subscription_id,
            queue.c.completed_at > since,
        )
        .limit(1)
    )
    return found is not None


async def claim_tasks(
    db: AsyncConnection,
    now: datetime,
    *,
    limit: int,
    tenant_id: str | None = None,
    counterpart: Counterpart | None = None,
) -> list[Task]:
    """Lease due tasks, at most one per tenant and counterpart, the oldest: a later one never overtakes it."""
    earlier = queue.alias("earlier")
    first_of_its_line = ~exists().where(
        earlier.c.tenant_id == queue.c.tenant_id,
        earlier.c.counterpart == queue.c.counterpart,
        earlier.c.position < queue.c.position,
        earlier.c.completed_at.is_(None),
        earlier.c.abandoned_at.is_(None),
    )
    due = (
        select(queue.c.id)
        .where(
            *_OPEN,
            queue.c.next_attempt_at <= now,
            or_(queue.c.locked_until.is_(None), queue.c.locked_until < func.clock_timestamp()),
            first_of_its_line,
        )
        .order_by(queue.c.next_attempt_at, queue.c.position)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    if tenant_id is not None:
        due = due.where(queue.c.tenant_id == tenant_id)
    if counterpart is not None:
        due = due.where(queue.c.counterpart == counterpart)
    claimed = due.cte("claimed")  # evaluated once, so that no more are locked than the limit says
    rows = await db.execute(
        update(queue)
        .where(queue.c.id == claimed.c.id)
        .values(locked_until=func.clock_timestamp() + LEASE, attempts=queue.c.attempts + 1)
        .returning(*_TASK)
    )
    return sorted((Task(**row._mapping) for row in rows), key=lambda task: task.position)


async def complete_task(db: AsyncConnection, task: Task, now: datetime, note: str | None) -> None:
    """Close a task that is done; one that an operator closed meanwhile keeps the operator's word."""
    await db.execute(
        update(queue)
        .where(queue.c.id == task.id, queue.c.completed_at.is_(None))
        .values(completed_at=now, last_error=note, locked_until=None, abandoned_at=None)
    )


async def postpone_task(
    db: AsyncConnection, task: Task, *, error: str, next_attempt_at: datetime, abandoned_at: datetime | None
) -> None:
    """Record a failed attempt; a stale worker, whose lease another took over, changes nothing."""
    await db.execute(
        update(queue)
        .where(queue.c.id == task.id, queue.c.attempts == task.attempts, queue.c.completed_at.is_(None))
        .values(
            last_error=error, next_attempt_at=next_attempt_at, abandoned_at=abandoned_at, locked_until=None
        )
    )


async def find_due_sides(db: AsyncConnection, tenant_id: str, now: datetime) -> set[Counterpart]:
    """To whom a tenant owes something whose time has come and that nobody holds."""
    rows = await db.execute(
        select(queue.c.counterpart)
        .where(
            *_OPEN,
            queue.c.tenant_id == tenant_id,
            queue.c.next_attempt_at <= now,
            or_(queue.c.locked_until.is_(None), queue.c.locked_until < func.clock_timestamp()),
        )
        .distinct()
    )
    return set(rows.scalars())


async def count_due(db: AsyncConnection, now: datetime) -> int:
    """Open tasks whose time has come."""
    return await db.scalar(select(func.count()).where(*_OPEN, queue.c.next_attempt_at <= now)) or 0


async def list_abandoned(db: AsyncConnection, *, limit: int) -> list[Task]:
    """Tasks that were given up and wait for a person, oldest first."""
    rows = await db.execute(
        select(*_TASK)
        .where(queue.c.abandoned_at.is_not(None), queue.c.completed_at.is_(None))
        .order_by(queue.c.position)
        .limit(limit)
    )
    return [Task(**row._mapping) for row in rows]


async def list_tasks(
    db: AsyncConnection, *, tenant_id: str | None, state: str | None, after: int, limit: int
) -> list[Task]:
    """A page of tasks, oldest first."""
    query = select(*_TASK).where(queue.c.position > after).order_by(queue.c.position).limit(limit)
    if tenant_id is not None:
        query = query.where(queue.c.tenant_id == tenant_id)
    if state == "pending":
        query = query.where(*_OPEN)
    elif state == "abandoned":
        query = query.where(queue.c.abandoned_at.is_not(None), queue.c.completed_at.is_(None))
    elif state == "completed":
        query = query.where(queue.c.completed_at.is_not(None))
    return [Task(**row._mapping) for row in await db.execute(query)]


async def newest_position(db: AsyncConnection) -> int:
    """Tasks that arise from now on have a greater position."""
    return await db.scalar(select(func.max(queue.c.position))) or 0


async def list_since(db: AsyncConnection, tenant_id: str, position: int, *, limit: int) -> list[Task]:
    """A tenant's tasks that arose after a position, in the order in which they did."""
    rows = await db.execute(
        select(*_TASK)
        .where(queue.c.tenant_id == tenant_id, queue.c.position > position)
        .order_by(queue.c.position)
        .limit(limit)
    )
    return [Task(**row._mapping) for row in rows]


async def find_task(db: AsyncConnection, task_id: str, *, lock: bool = False) -> Task | None:
    """A task by its id."""
    query = select(*_TASK).where(queue.c.id == task_id)
    row = (await db.execute(query.with_for_update() if lock else query)).one_or_none()
    return Task(**row._mapping) if row else None


async def list_cancellations(
    db: AsyncConnection, tenant_id: str, subscription_id: str, *, lock: bool = False
) -> list[Task]:
    """What is still owed of ending a subscription at once, given up or not, oldest first."""
    key = f"cancel:{subscription_id}"
    query = (
        select(*_TASK)
        .where(
            queue.c.tenant_id == tenant_id,
            queue.c.completed_at.is_(None),
            or_(
                queue.c.idempotency_key == key, queue.c.idempotency_key.startswith(f"{key}:", autoescape=True)
            ),
        )
        .order_by(queue.c.position)
    )
    return [Task(**row._mapping) for row in await db.execute(query.with_for_update() if lock else query)]


async def reset_task(db: AsyncConnection, task_id: str, now: datetime) -> None:
    """Give a task ten new attempts, the first at once."""
    await db.execute(
        update(queue)
        .where(queue.c.id == task_id)
        .values(attempts=0, abandoned_at=None, locked_until=None, next_attempt_at=now)
    )


async def close_task(db: AsyncConnection, task_id: str, now: datetime, note: str) -> None:
    """Close a task by a person's word; whoever is at work on it changes nothing any more."""
    await db.execute(
        update(queue)
        .where(queue.c.id == task_id)
        .values(completed_at=now, last_error=note, locked_until=None)
    )


async def delete_completed(db: AsyncConnection, before: datetime, *, dry_run: bool, limit: int) -> int:
    """Delete tasks that were done long ago."""
    old = select(queue.c.id).where(queue.c.completed_at < before).limit(limit)
    if dry_run:
        return await db.scalar(select(func.count()).select_from(old.subquery())) or 0
    result = await db.execute(delete(queue).where(queue.c.id.in_(old.scalar_subquery())))
    return result.rowcount
