"""What operators do: look, replay, requeue, discard. Every change is audited in the transaction that makes it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.webhooks.errors import (
    DeadLetterNotFound,
    EventBodyRemoved,
    EventNotFound,
    IdempotencyKeyReused,
    Poison,
    SelectionTooLarge,
)
from services.webhooks.rules.inbox import LARGE_BYTES, SignatureFailure
from services.webhooks.rules.operators import (
    SELECTION_MAX,
    DeadLetter,
    EventFilter,
    EventRow,
    EventSelection,
    LetterSelection,
    Replayed,
    Wish,
    plain,
)
from services.webhooks.rules.paging import DEFAULT_SIZE, Position, page_token, position_of
from services.webhooks.rules.redaction import redacted
from services.webhooks.store import operators as store
from services.webhooks.store import signatures
from shared.database import transaction
from shared.ops.store import record_audit

_BODY_REMOVED = "body_removed"


@dataclass(frozen=True)
class Change:
    """What the audit log keeps of a change."""

    action: str
    resource_type: str
    resource_id: str
    tenant_id: str | None
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True)
class EventView:
    """One event as an operator may see it."""

    event: EventRow
    redacted_body: str
    body_note: str
    body_bytes: int


async def list_events(
    engine: AsyncEngine, wanted: EventFilter, *, page_size: int, token: str
) -> tuple[list[EventRow], str]:
    """One page, newest first, and the token of the next one."""
    limit = page_size or DEFAULT_SIZE
    before = position_of(token)
    async with transaction(engine) as db:
        rows = await store.list_events(db, wanted, before=before, limit=limit + 1)
    return rows[:limit], _next(rows, limit, lambda row: Position(row.received_at, row.id))


async def get_event(engine: AsyncEngine, id: str) -> EventView:
    """One event with its body, redacted."""
    async with transaction(engine) as db:
        found = await store.find_event(db, id)
    if found is None:
        raise EventNotFound("no event has this id", event=id)
    event, body = found
    if event.body_removed_at is not None:
        return EventView(event, "", _BODY_REMOVED, 0)
    try:
        # Walking a large one would hold up every delivery.
        shown = redacted(body) if len(body) <= LARGE_BYTES else await asyncio.to_thread(redacted, body)
        return EventView(event, shown, "", len(body))
    except (Poison, RecursionError) as unreadable:
        note = unreadable.reason if isinstance(unreadable, Poison) else "body_too_deep"
        return EventView(event, "", note, len(body))


async def list_dead_letters(
    engine: AsyncEngine, *, tenant_id: str, reason: str, page_size: int, token: str
) -> tuple[list[tuple[DeadLetter, EventRow | None]], str]:
    """One page, newest first, each with its event."""
    limit = page_size or DEFAULT_SIZE
    before = position_of(token)
    async with transaction(engine) as db:
        letters = await store.list_letters(
            db, tenant_id=tenant_id or None, reason=reason or None, before=before, limit=limit + 1
        )
        events = await store.events_by_id(db, [letter.webhook_event_id for letter in letters])
    page = [(letter, events.get(letter.webhook_event_id)) for letter in letters[:limit]]
    return page, _next(letters, limit, lambda letter: Position(letter.created_at, letter.id))


async def list_signature_failures(
    engine: AsyncEngine,
    *,
    tenant_id: str,
    endpoint: str,
    since_at: datetime | None,
    page_size: int,
    token: str,
) -> tuple[list[SignatureFailure], str]:
    """One page, newest first."""
    limit = page_size or DEFAULT_SIZE
    before = position_of(token)
    async with transaction(engine) as db:
        failures = await signatures.list_failures(
            db,
            tenant_id=tenant_id or None,
            endpoint=endpoint or None,
            since_at=since_at,
            before=before,
            limit=limit + 1,
        )
    return failures[:limit], _next(failures, limit, _position_of_failure)


async def replay_events(engine: AsyncEngine, chosen: EventSelection, wish: Wish) -> Replayed:
    """Makes the chosen events due once more and says how many, and how many it left."""

    async def replay(db: AsyncConnection) -> dict[str, int]:
        if chosen.id:
            await _require_replayable(db, chosen.id)
        found = await store.lock_events(db, chosen, SELECTION_MAX + 1)
        _require_few(len(found))
        with_body, without_body = await store.count_events(db, chosen)
        ids = [event.id for event in found]
        await store.remove_letters_of(db, ids)
        await store.deliver_again(db, ids)
        change = Change(
            action="webhook.replay",
            resource_type="webhook_event",
            resource_id=chosen.id or "selection",
            tenant_id=chosen.tenant_id or _only({event.tenant_id for event in found}),
            before={"selection": plain(chosen), "events": {event.id: event.stood for event in found}},
            after={"status": "pending", "events": len(ids)},
        )
        await _audit(db, change, wish)
        return {"count": len(ids), "in_attempt": max(0, with_body - len(ids)), "without_body": without_body}

    answer = await _once(engine, "replay", plain(chosen), wish, replay)
    return Replayed(answer["count"], answer.get("in_attempt", 0), answer.get("without_body", 0))


async def requeue_dead_letters(engine: AsyncEngine, chosen: LetterSelection, wish: Wish) -> int:
    """Takes the chosen dead letters off the queue, makes their events due and says how many."""

    async def requeue(db: AsyncConnection) -> dict[str, int]:
        letters = await _take_letters(db, chosen)
        await store.deliver_again(db, [letter.webhook_event_id for letter in letters])
        await _audit(db, _change("webhook.requeue", chosen, letters, "pending"), wish)
        return {"count": len(letters)}

    return (await _once(engine, "requeue", plain(chosen), wish, requeue))["count"]


async def discard_dead_letters(engine: AsyncEngine, chosen: LetterSelection, wish: Wish) -> int:
    """Takes the chosen dead letters off the queue for good and says how many."""

    async def discard(db: AsyncConnection) -> dict[str, int]:
        letters = await _take_letters(db, chosen)
        await _audit(db, _change("webhook.discard", chosen, letters, "dead"), wish)
        return {"count": len(letters)}

    return (await _once(engine, "discard", plain(chosen), wish, discard))["count"]


async def _once(
    engine: AsyncEngine,
    operation: str,
    selection: Mapping[str, Any],
    wish: Wish,
    change: Callable[[AsyncConnection], Awaitable[dict[str, int]]],
) -> Mapping[str, int]:
    """The change and its answer commit together under the key; a repetition gets the first answer."""
    request = {
        "operation": operation,
        "selection": dict(selection),
        "actor": wish.actor,
        "reason": wish.reason,
    }
    async with transaction(engine) as db:
        known = await store.begin_request(db, wish.idempotency_key, request)
        if known is not None:
            return _first_answer(known, request, wish.idempotency_key)
        answer = await change(db)
        await store.remember_answer(db, wish.idempotency_key, answer)
    return answer


def _first_answer(
    known: tuple[Mapping[str, Any], Mapping[str, Any]], request: Mapping[str, Any], key: str
) -> Mapping[str, int]:
    first, answer = known
    for field, value in request.items():
        if first[field] != value:
            raise IdempotencyKeyReused(
                f"this idempotency key belongs to a request with another {field}",
                idempotency_key=key,
                field=field,
            )
    return answer


async def _require_replayable(db: AsyncConnection, id: str) -> None:
    event = (await store.events_by_id(db, [id])).get(id)
    if event is None:
        raise EventNotFound("no event has this id", event=id)
    if event.body_removed_at is not None:
        raise EventBodyRemoved("the event's body is past its retention and was removed", event=id)


async def _take_letters(db: AsyncConnection, chosen: LetterSelection) -> list[DeadLetter]:
    letters = await store.take_letters(db, chosen, SELECTION_MAX + 1)
    missing = sorted(set(chosen.ids) - {letter.id for letter in letters})
    if missing:
        raise DeadLetterNotFound("no dead letter has this id", dead_letter=missing[0])
    _require_few(len(letters))
    return letters


def _require_few(selected: int) -> None:
    if selected > SELECTION_MAX:
        raise SelectionTooLarge(
            f"more than {SELECTION_MAX} are selected; narrow the selection",
            selected=selected,
            maximum=SELECTION_MAX,
        )


def _change(action: str, chosen: LetterSelection, letters: Sequence[DeadLetter], status: str) -> Change:
    return Change(
        action=action,
        resource_type="webhook_dead_letter",
        resource_id=chosen.ids[0] if len(chosen.ids) == 1 else "selection",
        tenant_id=chosen.tenant_id or _only({letter.tenant_id for letter in letters}),
        before={"selection": plain(chosen), "dead_letters": [_remembered(letter) for letter in letters]},
        after={"status": status, "dead_letters": 0, "events": len(letters)},
    )


def _only(tenants: Set[str | None]) -> str | None:
    """Whom all of them concern, if it is one."""
    return next(iter(tenants)) if len(tenants) == 1 else None


async def _audit(db: AsyncConnection, change: Change, wish: Wish) -> None:
    await record_audit(
        db,
        room="webhooks",
        actor_type="operator",
        actor_id=wish.actor,
        reason=wish.reason,
        request_id=wish.request_id,
        **vars(change),
    )


def _remembered(letter: DeadLetter) -> dict[str, str | None]:
    return {
        "id": letter.id,
        "webhook_event_id": letter.webhook_event_id,
        "tenant_id": letter.tenant_id,
        "reason": letter.reason,
        "last_error": letter.last_error,
        "created_at": letter.created_at.isoformat(),
    }


def _next(rows: list[Any], limit: int, position: Callable[[Any], Position]) -> str:
    return page_token(position(rows[limit - 1])) if len(rows) > limit else ""


def _position_of_failure(failure: SignatureFailure) -> Position:
    assert failure.created_at is not None  # noqa: S101 - every stored one has it
    return Position(failure.created_at, failure.id)
