"""What people are told of alerts."""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import metrics, rules
from services.scheduler.clients import AlertSink
from services.scheduler.rules import Policy
from services.scheduler.store import alerts as alert_store
from shared import logs
from shared.database import transaction

# Longer than one post may take: whoever claimed it died, or the sink did not take it.
SINK_RETRY = timedelta(minutes=1)
DEFAULTS = Policy()

log = logs.get_logger()


async def tell_sink(
    engine: AsyncEngine,
    sink: AlertSink,
    *,
    now: datetime,
    per_minute: int = DEFAULTS.messages_per_minute,
) -> int:
    """Tell the sink what it does not know yet, message by message, until it fails; answers of how many alerts.

    What it does not take comes again later. A process that dies between post and note tells it twice, never not.
    """
    told = 0
    while news := await _claim(engine, now=now, per_minute=per_minute):
        delivered = await sink.post(rules.message_of(news))
        metrics.sink_posted(delivered=delivered)
        if not delivered:
            log.warning("alert_sink_failed", alerts=len(news))
            break
        async with transaction(engine) as db:
            await alert_store.mark_told(db, news)
        told += len(news)
    return told


async def _claim(engine: AsyncEngine, *, now: datetime, per_minute: int) -> list[rules.News]:
    async with transaction(engine) as db:
        # Most seconds have no news, and then no replica keeps another waiting.
        if not await alert_store.count_untold(db, now=now):
            return []
        posted = await alert_store.posted_lately(db)
        untold = await alert_store.count_untold(db, now=now)
        limit = rules.alerts_in_next_message(untold, posted=posted, per_minute=per_minute)
        if not limit:
            return []
        return await alert_store.claim_untold(db, now=now, limit=limit, retry_after=SINK_RETRY)
