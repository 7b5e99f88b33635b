"""ListAuditLog: who changed what and why, in all rooms."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.rules.records import Record
from services.subscriptions.store import records as store
from shared.database import transaction


async def list_records(
    engine: AsyncEngine,
    *,
    tenant_id: str | None,
    action: str | None,
    room: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[Record]:
    """A page of changes, newest first; what is recorded meanwhile moves no later page."""
    async with transaction(engine) as db:
        return await store.list_records(
            db, tenant_id=tenant_id, action=action, room=room, before=before, limit=limit
        )
