"""The write path of the ingress: deliveries that wait at the same time share one commit."""

import asyncio
from collections.abc import Callable

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from services.webhooks.errors import NotStored
from services.webhooks.rules.inbox import NewEvent
from services.webhooks.store.arrivals import open_writer
from shared import logs

_BATCH_EVENTS = 128
_BATCH_BYTES = 4 << 20
_WRITERS = 2

_log = logs.get_logger()


class Inbox:
    """Stores events in groups. Bounded: beyond `waiting_bytes_max` it refuses rather than grow."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        on_stored: Callable[[], None],
        wait_seconds: float = 4.0,
        waiting_bytes_max: int = 64 << 20,
    ) -> None:
        self._engine = engine
        self._on_stored = on_stored
        self._wait_seconds = wait_seconds
        self._waiting_bytes_max = waiting_bytes_max
        self._waiting: list[tuple[NewEvent, asyncio.Future[bool]]] = []
        self._waiting_bytes = 0
        self._writers: set[asyncio.Task[None]] = set()

    async def put(self, event: NewEvent) -> bool:
        """True: stored and committed. False: it was there before. NotStored: it may be on disk or not."""
        if self._waiting_bytes + len(event.body) > self._waiting_bytes_max:
            raise NotStored("too many deliveries wait to be stored")
        stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, stored))
        self._waiting_bytes += len(event.body)
        if len(self._writers) < _WRITERS:
            writer = asyncio.create_task(self._write())
            self._writers.add(writer)
            writer.add_done_callback(self._writers.discard)
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await stored
        except TimeoutError:
            raise NotStored("the database did not answer in time") from None

    async def close(self) -> None:
        """Waits until everything taken in is written."""
        while self._writers:
            await asyncio.wait(self._writers)

    async def _write(self) -> None:
        while batch := self._next_batch():
            try:
                async with open_writer(self._engine) as writer:
                    while batch:
                        # Longer than anybody waits: afterwards only the writer itself would still be stuck.
                        stored = await writer.insert(
                            [event for event, _ in batch], cut_after_seconds=self._wait_seconds + 1
                        )
                        self._on_stored()
                        for event, answer in batch:
                            if not answer.done():
                                answer.set_result(event.id in stored)
                        batch = self._next_batch()
            except (psycopg.Error, DBAPIError, PoolTimeout, OSError) as error:
                _log.error("not_stored", deliveries=len(batch), error_type=type(error).__name__)
                self._answer_all(batch, NotStored("the delivery could not be stored"))
                self._on_stored()  # perhaps it is, and only the answer was lost
            except BaseException:
                self._answer_all(batch, NotStored("the delivery could not be stored"))
                raise

    def _next_batch(self) -> list[tuple[NewEvent, asyncio.Future[bool]]]:
        batch: list[tuple[NewEvent, asyncio.Future[bool]]] = []
        size = 0
        for waiting in self._waiting[:_BATCH_EVENTS]:
            if batch and size + len(waiting[0].body) > _BATCH_BYTES:
                break
            batch.append(waiting)
            size += len(waiting[0].body)
        del self._waiting[: len(batch)]
        self._waiting_bytes -= size
        # Whoever gave up was told to send again: storing it now would only make that a duplicate, which is as well.
        return batch

    @staticmethod
    def _answer_all(batch: list[tuple[NewEvent, asyncio.Future[bool]]], error: NotStored) -> None:
        for _, answer in batch:
            if not answer.done():
                answer.set_exception(error)
