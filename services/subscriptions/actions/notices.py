"""Notices: delivered until they arrive, and listed for operators."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions import metrics
from services.subscriptions.clients.notices import NoticeSink
from services.subscriptions.rules.notices import Notice, wait_after
from services.subscriptions.store import notices as store
from shared import logs
from shared.database import transaction

AT_ONCE = 8
# A job must not wait for a receiver any longer than this and one attempt.
RUN_SECONDS = 30.0

_log = logs.get_logger()


async def deliver_notices(engine: AsyncEngine, sink: NoticeSink | None, *, now: datetime) -> int:
    """Send what is owed and due, and answer how many arrived; without a sink everything stays owed.

    At least once: a receiver that took a notice whose answer was lost sees its id again.
    """
    sent, ends_at = 0, time.monotonic() + RUN_SECONDS
    while sink is not None and time.monotonic() < ends_at:
        async with transaction(engine) as db:
            claimed = await store.claim_owed(db, now, limit=AT_ONCE)
        arrived = sum(await asyncio.gather(*(_send(engine, sink, notice, now) for notice in claimed)))
        sent += arrived
        if not arrived:  # nothing is due, or nobody listens: the next run tries again
            break
    return sent


async def list_notices(
    engine: AsyncEngine,
    *,
    tenant_id: str | None,
    kind: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[Notice]:
    """A page of notices, newest first."""
    async with transaction(engine) as db:
        return await store.list_notices(db, tenant_id=tenant_id, kind=kind, before=before, limit=limit)


async def _send(engine: AsyncEngine, sink: NoticeSink, notice: Notice, now: datetime) -> bool:
    failure = await sink.post(notice.id, notice.body)
    async with transaction(engine) as db:
        if failure is None:
            await store.set_sent(db, notice, now)
        else:
            await store.postpone(db, notice, now + wait_after(notice.attempts))
    metrics.notice_attempted(arrived=failure is None)
    if failure is not None:
        _log.warning(
            "notice_not_delivered",
            notification_id=notice.id,
            tenant_id=notice.tenant_id,
            kind=notice.kind,
            attempts=notice.attempts,
            error=failure,
        )
    return failure is None
