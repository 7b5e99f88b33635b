"""What operators list, replay, requeue and discard."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, Text, delete, func, literal, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.webhooks.rules.operators import (
    Chosen,
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
_CHOSEN = [events.c[name] for name in Chosen.__dataclass_fields__]
_LETTER = [letters.c[name] for name in DeadLetter.__dataclass_fields__]
# In their order and a little apart, so that what arrives meanwhile is not kept waiting behind ten thousand of them.
# A new attempt: a worker whose lease ran out must not end the new delivery with the answer to the old one.
_AGAIN = text("""
    UPDATE webhook_events AS event
    SET processed = false, processed_at = NULL, outcome = NULL, outcome_reason = NULL, retry_count = 0,
        attempt = attempt + 1, locked_until = NULL, last_error = NULL,
        next_retry_at = clock_timestamp() + (chosen.place - 1) * interval '5 milliseconds'
    FROM (
        SELECT id, row_number() OVER (ORDER BY received_at, id) AS place
        FROM webhook_events WHERE id = ANY(CAST(:ids AS text[]))
    ) AS chosen
    WHERE event.id = chosen.id
""")


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


async def lock_events(db: AsyncConnection, chosen: EventSelection, limit: int) -> list[Chosen]:
    """The chosen events that can be replayed, locked: not those in the middle of an attempt, not those whose body is
    gone."""
    query = select(*_CHOSEN).where(
        *_event_conditions(chosen),
        events.c.body_removed_at.is_(None),
        events.c.locked_until.is_(None) | (events.c.locked_until < func.clock_timestamp()),
    )
    rows = await db.execute(query.order_by(events.c.id).limit(limit).with_for_update(skip_locked=True))
    return [Chosen(**row._mapping) for row in rows]


async def count_events(db: AsyncConnection, chosen: EventSelection) -> tuple[int, int]:
    """How many of the chosen events have a body, and how many have none any more."""
    bodiless = events.c.body_removed_at.is_not(None)
    query = select(func.count().filter(~bodiless), func.count().filter(bodiless)).select_from(events)
    with_body, without = (await db.execute(query.where(*_event_conditions(chosen)))).one()
    return with_body, without


async def deliver_again(db: AsyncConnection, ids: Sequence[str]) -> None:
    """Makes events due, one after the other in the order of their receipt, with all their attempts before them."""
    await db.execute(_AGAIN, {"ids": list(ids)})


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
    """Takes the chosen dead letters off the queue and returns them, but for those that somebody else took first."""
    query = select(letters.c.id, letters.c.webhook_event_id)
    if chosen.ids:
        query = query.where(letters.c.id == _any(chosen.ids))
    if chosen.set_aside_for:
        query = query.where(letters.c.reason == chosen.set_aside_for)
    if chosen.tenant_id:
        query = query.where(letters.c.tenant_id == chosen.tenant_id)
    found = (await db.execute(query.order_by(letters.c.id).limit(limit))).all()
    # The event first, then its letter, as whoever sets aside or replays: two that meet wait, and neither for ever.
    wanted = _any([row.webhook_event_id for row in found])
    await db.execute(select(events.c.id).where(events.c.id == wanted).order_by(events.c.id).with_for_update())
    taken = delete(letters).where(letters.c.id == _any([row.id for row in found])).returning(*_LETTER)
    rows = [DeadLetter(**row._mapping) for row in await db.execute(taken)]
    return sorted(rows, key=lambda letter: letter.id)


async def remove_letters_of(db: AsyncConnection, event_ids: Sequence[str]) -> None:
    """Takes events that are delivered again off the queue."""
    await db.execute(delete(letters).where(letters.c.webhook_event_id == _any(event_ids)))


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


def _any(ids: Sequence[str]) -> ColumnElement[str]:
    """One parameter, however many there are."""
    return cast(ColumnElement[str], func.any(literal(list(ids), ARRAY(Text))))


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
