"""Refused signatures on their way to the database: enough of them to see an attack, never enough to be one."""

import asyncio
from collections import Counter
from dataclasses import replace

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from services.webhooks.rules.inbox import SignatureFailure
from services.webhooks.store import signatures as store
from shared import logs
from shared.database import transaction
from shared.ops import strangers

_WINDOW_SECONDS = 60.0

_log = logs.get_logger()


class FailureLog:
    """Records failures beside the request: of each endpoint at most so many a minute, in all and from one sender.

    Of each, since a flood at one must not hide that another has the wrong secret.
    """

    def __init__(self, engine: AsyncEngine, *, per_minute: int = 120, per_sender: int = 30) -> None:
        self._engine = engine
        self._per_minute = per_minute
        self._per_sender = per_sender
        self._window_began_at = float("-inf")
        self._taken: dict[str | None, Counter[str]] = {}  # by the endpoint's path, then by the sender
        self._left_out = 0
        self._waiting: list[SignatureFailure] = []
        self._writer: asyncio.Task[None] | None = None

    def record(self, failure: SignatureFailure) -> None:
        """Takes the failure down unless this minute has enough of them; returns at once and never raises."""
        now = asyncio.get_running_loop().time()
        if now - self._window_began_at >= _WINDOW_SECONDS:
            if self._left_out:
                _log.warning("signature_failures_left_out", count=self._left_out)
            self._window_began_at, self._taken, self._left_out = now, {}, 0
        sender = failure.remote_ip or ""
        taken = self._taken.setdefault(failure.path, Counter())
        if taken.total() >= self._per_minute or taken[sender] >= self._per_sender:
            self._left_out += 1
            return
        taken[sender] += 1
        failure = _fit_to_log(failure)
        self._waiting.append(failure)
        _log.warning(
            "signature_refused",
            path=failure.path,
            remote_ip=failure.remote_ip,
            payload_id=failure.payload_id,
        )
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Waits until everything taken down is written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                async with transaction(self._engine) as db:
                    await store.insert_failures(db, batch)
            except (DBAPIError, PoolTimeout, OSError) as error:
                _log.error("signature_failures_lost", count=len(batch), error=logs.brief(error))


def _fit_to_log(failure: SignatureFailure) -> SignatureFailure:
    return replace(
        failure,
        remote_ip=strangers.address(failure.remote_ip),
        user_agent=strangers.agent(failure.user_agent),
        payload_id=strangers.identifier(failure.payload_id),
    )
