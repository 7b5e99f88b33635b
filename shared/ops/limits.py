"""Rate limits that hold over all processes of a room: one bucket a key in `rate_limit_buckets`, one statement a question.

GCRA: a bucket remembers the theoretical arrival time (`tat`) at which it will be empty. A burst of `events` passes at
once, then one each `seconds / events`.
Source: ITU-T I.371, the generic cell rate algorithm in its virtual scheduling form.
"""

import math
import time
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared import logs
from shared.database import transaction
from shared.errors import RateLimited

# A bucket that is this much fuller than any burst was filled before the clock was set back, or under another limit: it
# begins anew rather than refuse for as long as the clock jumped. The slack is longer than anybody waits for a row lock.
_SLACK_SECONDS = 30.0
# How many refused keys a process remembers; strangers choose some of the keys.
_REMEMBERED_MAX = 4096

_TAKE = text("""
    WITH taken AS (
        INSERT INTO rate_limit_buckets AS bucket (room, key, tat, created_at)
        SELECT :room, :key, now + make_interval(secs => :each), now FROM (SELECT clock_timestamp() AS now) AS clock
        ON CONFLICT ON CONSTRAINT rate_limit_buckets_pk DO UPDATE
        SET tat = make_interval(secs => :each) + CASE
            WHEN bucket.tat > excluded.created_at + make_interval(secs => :whole + :slack) THEN excluded.created_at
            ELSE greatest(bucket.tat, excluded.created_at) END
        WHERE bucket.tat <= excluded.created_at + make_interval(secs => :whole - :each)
           OR bucket.tat > excluded.created_at + make_interval(secs => :whole + :slack)
        RETURNING 1
    )
    SELECT EXISTS (SELECT FROM taken), extract(epoch FROM clock_timestamp()),
        (SELECT extract(epoch FROM tat) FROM rate_limit_buckets WHERE room = :room AND key = :key)
""")

_log = logs.get_logger()


@dataclass(frozen=True)
class Limit:
    """So many events in so many seconds; all of them may come at once."""

    events: int
    seconds: float

    @property
    def each_seconds(self) -> float:
        """What one event costs of the time."""
        return self.seconds / self.events

    def __str__(self) -> str:
        return f"{self.events} in {self.seconds / 60:g} minutes"


def per_quarter_hour(events: int) -> Limit:
    """So many in fifteen minutes."""
    return Limit(events, 15 * 60.0)


async def take(db: AsyncConnection, *, room: str, key: str, limit: Limit) -> float:
    """Takes one event out of a bucket: 0.0, or the whole seconds, at least one, until the next may come."""
    values = {
        "room": room,
        "key": key,
        "each": limit.each_seconds,
        "whole": limit.seconds,
        "slack": _SLACK_SECONDS,
    }
    allowed, now, tat = (await db.execute(_TAKE, values)).one()
    if allowed:
        return 0.0
    # No row yet: it was made by another transaction after this statement began.
    full_again = float(tat) + limit.each_seconds - limit.seconds if tat is not None else float(now)
    return float(max(1, math.ceil(full_again - float(now))))


class Limiter:
    """A room's limits. A key that was refused is refused from memory until its time, so that a flood costs no statements."""

    def __init__(self, engine: AsyncEngine, room: str) -> None:
        self._engine = engine
        self._room = room
        self._refused_until: OrderedDict[str, float] = OrderedDict()

    async def assert_allowed(self, key: str, limit: Limit, what: str) -> None:
        """Takes one event, or raises RateLimited, saying of what there were too many."""
        if wait := await self.take(key, limit):
            raise RateLimited(
                f"{what}: at most {limit}; the next one may come in {wait:.0f} s",
                retry_after_seconds=wait,
                limit=str(limit),
            )

    def remembered(self, key: str) -> float:
        """The seconds that a key must still wait as far as this process knows; 0.0: only the database can tell."""
        until = self._refused_until.get(key)
        if until is None:
            return 0.0
        if (left := until - time.monotonic()) > 0:
            return float(max(1, math.ceil(left)))
        del self._refused_until[key]
        return 0.0

    async def take(self, key: str, limit: Limit) -> float:
        """0.0: go on. Else the seconds to wait, at least one. While the database is away everything goes on."""
        if left := self.remembered(key):
            return left
        try:
            async with transaction(self._engine) as db:
                wait = await take(db, room=self._room, key=key, limit=limit)
        except (DBAPIError, PoolTimeout, OSError) as error:
            _log.warning("limit_not_asked", error=logs.brief(error))
            return 0.0
        if wait:
            self._refused_until[key] = time.monotonic() + wait
            while len(self._refused_until) > _REMEMBERED_MAX:
                self._refused_until.popitem(last=False)
        return wait
