"""What operators list, replay, requeue and discard."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.webhooks.rules.operators import (
    DeadLetter,
    EventFilter,
    EventRow,
    EventSelection,
    LetterSelection,
)
from services.webhooks.rules.paging import Position
from services.webhooks.tables import webhook_admin_requests as requests
from services.webhooks.tables import webhook_dead_letter_queue as letters
from services.webhooks.tables import webhook_events as events

_EVENT = [events.c[name] for name in EventRow.__dataclass_fields__]
_LETTER = [letters.c[name] for name in DeadLetter.__dataclass_fields__]
_AGAIN: Mapping[str, Any] = {
    "processed": False,
    "processed_at": None,
    "outcome": None,
    "outcome_reason": None,
    "retry_count": 0,
    "next_retry_at": func.clock_timestamp(),
    "locked_until": None,
    "last_error": None,
}


async def list_events(
    db: AsyncConnection, wanted: EventFilter, *, before: Position | None, limit: int
) -> list[EventRow]:
    """Newest first."""
    query: Select[Any] = select(*_EVENT)
    if wanted.tenant_id:
        query = query.where(events.c.tenant_id == wanted.tenant_id)
    if wanted.event_type:
        query = query.where(events.c.event_type == wanted.event_type)
    if wanted.event_id:
        query = query.where(events.c.event_id == wanted.event_id)
    if wanted.status == "pending":
        query = query.where(~events.c.processed)
    elif wanted.status:
        is_dead = events.c.outcome == "dead"
        query = query.where(events.c.processed, is_dead if wanted.status == "dead" else ~is_dead)
    if wanted.received_from:
        query = query.where(events.c.received_at >= wanted.received_from)
    if wanted.received_until:
        query = query.where(events.c.received_at < wanted.received_until)
    if before:
        query = query.where(tuple_(events.c.received_at, events.c.id) < (before.moment, before.id))
    rows = await db.execute(query.order_by(events.c.received_at.desc(), events.c.id.desc()).limit(limit))
    return [EventRow(**row._mapping) for row in rows]


async def find_event(db: AsyncConnection, id: str) -> tuple[EventRow, bytes] | None:
    """One event with its body."""
    row = (await db.execute(select(*_EVENT, events.c.body).where(events.c.id == id))).one_or_none()
    if row is None:
        return None
    values = dict(row._mapping)
    body = values.pop("body")
    return EventRow(**values), body


async def events_by_id(db: AsyncConnection, ids: Sequence[str]) -> dict[str, EventRow]:
    """Several events."""
    rows = await db.execute(select(*_EVENT).where(events.c.id.in_(ids)))
    return {row.id: EventRow(**row._mapping) for row in rows}


async def lock_events(db: AsyncConnection, chosen: EventSelection, limit: int) -> list[str]:
    """The ids of the chosen events that can be replayed, locked: not those in the middle of an attempt, not those whose
    body is gone."""
    query = select(events.c.id).where(
        events.c.body_removed_at.is_(None),
        events.c.locked_until.is_(None) | (events.c.locked_until < func.clock_timestamp()),
    )
    for condition in _event_conditions(chosen):
        query = query.where(condition)
    query = query.order_by(events.c.id).limit(limit).with_for_update(skip_locked=True)
    return list((await db.execute(query)).scalars())


async def deliver_again(db: AsyncConnection, ids: Sequence[str]) -> None:
    """Makes events due now, with all their attempts before them."""
    await db.execute(update(events).where(events.c.id.in_(ids)).values(_AGAIN))


async def list_letters(
    db: AsyncConnection,
    *,
    tenant_id: str | None,
    reason: str | None,
    before: Position | None,
    limit: int,
) -> list[DeadLetter]:
    """Newest first."""
    query: Select[Any] = select(*_LETTER)
    if tenant_id:
        query = query.where(letters.c.tenant_id == tenant_id)
    if reason:
        query = query.where(letters.c.reason == reason)
    if before:
        query = query.where(tuple_(letters.c.created_at, letters.c.id) < (before.moment, before.id))
    rows = await db.execute(query.order_by(letters.c.created_at.desc(), letters.c.id.desc()).limit(limit))
    return [DeadLetter(**row._mapping) for row in rows]


async def take_letters(db: AsyncConnection, chosen: LetterSelection, limit: int) -> list[DeadLetter]:
    """Takes the chosen dead letters off the queue and returns them."""
    query = select(letters.c.id)
    if chosen.ids:
        query = query.where(letters.c.id.in_(chosen.ids))
    if chosen.set_aside_for:
        query = query.where(letters.c.reason == chosen.set_aside_for)
    if chosen.tenant_id:
        query = query.where(letters.c.tenant_id == chosen.tenant_id)
    taken = delete(letters).where(letters.c.id.in_(query.limit(limit))).returning(*_LETTER)
    return [DeadLetter(**row._mapping) for row in await db.execute(taken)]


async def remove_letters_of(db: AsyncConnection, event_ids: Sequence[str]) -> None:
    """Takes events that are delivered again off the queue."""
    await db.execute(delete(letters).where(letters.c.webhook_event_id.in_(event_ids)))


async def count_letters(db: AsyncConnection) -> int:
    """How many wait for a person."""
    return (await db.execute(select(func.count()).select_from(letters))).scalar_one()


async def begin_request(
    db: AsyncConnection, key: str, request: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """None: the key is new and now ours. Else the request that it stands for and its answer.

    Waits for a request of the same key that is being answered in another transaction.
    """
    statement = insert(requests).values(idempotency_key=key, request=request).on_conflict_do_nothing()
    if (await db.execute(statement.returning(requests.c.idempotency_key))).one_or_none():
        return None
    known = await db.execute(
        select(requests.c.request, requests.c.answer).where(requests.c.idempotency_key == key)
    )
    first, answer = known.one()
    return first, answer


async def remember_answer(db: AsyncConnection, key: str, answer: Mapping[str, Any]) -> None:
    """What a repetition of the key will be told."""
    await db.execute(update(requests).where(requests.c.idempotency_key == key).values(answer=answer))


def _event_conditions(chosen: EventSelection) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if chosen.id:
        conditions.append(events.c.id == chosen.id)
    if chosen.tenant_id:
        conditions.append(events.c.tenant_id == chosen.tenant_id)
    if chosen.received_from:
        conditions.append(events.c.received_at >= chosen.received_from)
    if chosen.received_until:
        conditions.append(events.c.received_at < chosen.received_until)
    if chosen.event_type:
        conditions.append(events.c.event_type == chosen.event_type)
    assert conditions, "an empty selection would choose everything"  # noqa: S101 - a bug, not an input
    return conditions
