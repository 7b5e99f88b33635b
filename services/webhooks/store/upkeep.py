"""What watching and cleaning need."""

from datetime import datetime

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.webhooks.tables import MOMENT, webhook_events

_BODIES = text("""
    UPDATE webhook_events SET body = '', body_removed_at = :now WHERE id IN (
        SELECT id FROM webhook_events
        WHERE processed AND body_removed_at IS NULL AND processed_at < :before
          AND NOT EXISTS (SELECT 1 FROM webhook_dead_letter_queue WHERE webhook_event_id = webhook_events.id)
        LIMIT :limit FOR UPDATE SKIP LOCKED)
""").bindparams(bindparam("now", type_=MOMENT), bindparam("before", type_=MOMENT))
_EVENTS = text("""
    DELETE FROM webhook_events WHERE id IN (
        SELECT id FROM webhook_events
        WHERE processed AND body_removed_at IS NOT NULL AND received_at < :before AND processed_at < :before
        LIMIT :limit FOR UPDATE SKIP LOCKED)
""").bindparams(bindparam("before", type_=MOMENT))
_REQUESTS = text("""
    DELETE FROM webhook_admin_requests WHERE idempotency_key IN (
        SELECT idempotency_key FROM webhook_admin_requests WHERE created_at < :before
        LIMIT :limit FOR UPDATE SKIP LOCKED)
""").bindparams(bindparam("before", type_=MOMENT))
_DUE_BODIES = text("""
    SELECT count(*) FROM webhook_events
    WHERE processed AND body_removed_at IS NULL AND processed_at < :before
      AND NOT EXISTS (SELECT 1 FROM webhook_dead_letter_queue WHERE webhook_event_id = webhook_events.id)
""").bindparams(bindparam("before", type_=MOMENT))
_DUE_EVENTS = text("""
    SELECT count(*) FROM webhook_events
    WHERE processed AND body_removed_at IS NOT NULL AND received_at < :before AND processed_at < :before
""").bindparams(bindparam("before", type_=MOMENT))
_DUE_REQUESTS = text("SELECT count(*) FROM webhook_admin_requests WHERE created_at < :before").bindparams(
    bindparam("before", type_=MOMENT)
)


async def last_received_at(db: AsyncConnection) -> datetime | None:
    """When the newest event was received."""
    newest: datetime | None = (await db.execute(select(func.max(webhook_events.c.received_at)))).scalar_one()
    return newest


async def remove_bodies(db: AsyncConnection, *, before: datetime, now: datetime, limit: int) -> int:
    """Empties bodies of events processed before a moment; the row and its hash stay."""
    return (await db.execute(_BODIES, {"before": before, "now": now, "limit": limit})).rowcount


async def remove_events(db: AsyncConnection, *, before: datetime, limit: int) -> int:
    """Removes processed events without a body that were received before a moment."""
    return (await db.execute(_EVENTS, {"before": before, "limit": limit})).rowcount


async def remove_requests(db: AsyncConnection, *, before: datetime, limit: int) -> int:
    """Forgets admin requests made before a moment."""
    return (await db.execute(_REQUESTS, {"before": before, "limit": limit})).rowcount


async def count_removable(
    db: AsyncConnection, *, bodies: datetime, events: datetime, requests: datetime
) -> tuple[int, int, int]:
    """How many bodies, events and admin requests are older than their moments."""
    return (
        (await db.execute(_DUE_BODIES, {"before": bodies})).scalar_one(),
        (await db.execute(_DUE_EVENTS, {"before": events})).scalar_one(),
        (await db.execute(_DUE_REQUESTS, {"before": requests})).scalar_one(),
    )
