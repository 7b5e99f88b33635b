"""What operators do: look, replay, requeue, discard. Every change is audited in the transaction that makes it."""

from collections.abc import Awaitable, Callable, Mapping
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
from services.webhooks.rules.inbox import SignatureFailure
from services.webhooks.rules.operators import (
    SELECTION_MAX,
    DeadLetter,
    EventFilter,
    EventRow,
    EventSelection,
    LetterSelection,
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
        return EventView(event, redacted(body), "", len(body))
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


async def replay_events(engine: AsyncEngine, chosen: EventSelection, wish: Wish) -> int:
    """Makes the chosen events due once more and says how many."""

    async def replay(db: AsyncConnection) -> int:
        if chosen.id:
            await _require_replayable(db, chosen.id)
        ids = await store.lock_events(db, chosen, SELECTION_MAX + 1)
        _require_few(len(ids))
        await store.remove_letters_of(db, ids)
        await store.deliver_again(db, ids)
        await _audit(db, "webhook.replay", "webhook_event", wish, plain(chosen), {"events": ids})
        return len(ids)

    return await _once(engine, "replay", plain(chosen), wish, replay)


async def requeue_dead_letters(engine: AsyncEngine, chosen: LetterSelection, wish: Wish) -> int:
    """Takes the chosen dead letters off the queue, makes their events due and says how many."""

    async def requeue(db: AsyncConnection) -> int:
        letters = await _take_letters(db, chosen)
        await store.deliver_again(db, [letter.webhook_event_id for letter in letters])
        after = {"dead_letters": [_remembered(letter) for letter in letters]}
        await _audit(db, "webhook.requeue", "webhook_dead_letter", wish, plain(chosen), after)
        return len(letters)

    return await _once(engine, "requeue", plain(chosen), wish, requeue)


async def discard_dead_letters(engine: AsyncEngine, chosen: LetterSelection, wish: Wish) -> int:
    """Takes the chosen dead letters off the queue for good and says how many."""

    async def discard(db: AsyncConnection) -> int:
        letters = await _take_letters(db, chosen)
        after = {"dead_letters": [_remembered(letter) for letter in letters]}
        await _audit(db, "webhook.discard", "webhook_dead_letter", wish, plain(chosen), after)
        return len(letters)

    return await _once(engine, "discard", plain(chosen), wish, discard)


async def _once(
    engine: AsyncEngine,
    operation: str,
    selection: Mapping[str, Any],
    wish: Wish,
    change: Callable[[AsyncConnection], Awaitable[int]],
) -> int:
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
        count = await change(db)
        await store.remember_answer(db, wish.idempotency_key, {"count": count})
    return count


def _first_answer(
    known: tuple[Mapping[str, Any], Mapping[str, Any]], request: Mapping[str, Any], key: str
) -> int:
    first, answer = known
    for field, value in request.items():
        if first[field] != value:
            raise IdempotencyKeyReused(
                f"this idempotency key belongs to a request with another {field}",
                idempotency_key=key,
                field=field,
            )
    return int(answer["count"])


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


async def _audit(
    db: AsyncConnection,
    action: str,
    resource_type: str,
    wish: Wish,
    selection: Mapping[str, Any],
    after: Mapping[str, Any],
) -> None:
    resource = selection.get("id") or next(iter(selection.get("ids", [])), None) or "selection"
    await record_audit(
        db,
        room="webhooks",
        action=action,
        actor_type="operator",
        actor_id=wish.actor,
        tenant_id=selection.get("tenant_id"),
        resource_type=resource_type,
        resource_id=str(resource),
        before={"selection": dict(selection)},
        after=after,
        reason=wish.reason,
        request_id=wish.request_id,
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
