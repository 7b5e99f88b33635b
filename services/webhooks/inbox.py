"""The write path of the ingress: deliveries that wait at the same time share one commit."""

import asyncio
from collections import deque
from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncEngine

from services.webhooks.errors import NotStored
from services.webhooks.rules.inbox import NewEvent
from services.webhooks.store.arrivals import Arrival, open_writer
from shared import logs

_BATCH_EVENTS = 128
_BATCH_BYTES = 4 << 20
_WRITERS = 2
_CROWD = 8
# How long a writer keeps its connection for what comes next: fetching one costs as much as storing a dozen deliveries.
_KEEP_SECONDS = 0.1

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
        self._callers = 0
        self._working = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._closing = False

    @property
    def is_crowded(self) -> bool:
        """Whether many wait for their delivery to be stored."""
        return self._callers >= _CROWD

    async def put(self, event: NewEvent) -> bool:
        """True: stored and committed. False: it was there before. NotStored: it may be on disk or not."""
        if self._waiting_bytes + len(event.body) > self._waiting_bytes_max:
            raise NotStored("too many deliveries wait to be stored")
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((event, stored))
        self._waiting_bytes += len(event.body)
        if self._idle:
            self._idle.popleft().set_result(None)
        elif self._working < _WRITERS:
            self._working += 1
            writer = asyncio.create_task(self._write())
            self._writers.add(writer)
            writer.add_done_callback(self._writers.discard)
        self._callers += 1
        patience = loop.call_later(self._wait_seconds, _give_up, stored)
        try:
            return await stored
        finally:
            patience.cancel()
            self._callers -= 1

    async def close(self) -> None:
        """Waits until everything taken in is written."""
        self._closing = True
        while self._idle:
            self._idle.popleft().set_result(None)
        while self._writers:
            await asyncio.wait(self._writers)

    async def _write(self) -> None:
        try:
            while batch := self._next_batch():
                await self._write_on_from(batch)
        finally:
            # At once, and not when the task is seen to be over: what comes in between would wait for nobody.
            self._working -= 1

    async def _write_on_from(self, batch: list[tuple[NewEvent, asyncio.Future[bool]]]) -> None:
        try:
            async with open_writer(self._engine) as writer:
                while batch:
                    # Longer than anybody waits: afterwards only the writer itself would still be stuck.
                    arrival = await writer.insert(
                        [event for event, _ in batch], cut_after_seconds=self._wait_seconds + 1
                    )
                    self._on_stored()
                    self._answer(batch, arrival)
                    batch = self._next_batch() or await self._idle_for_more()
        except Exception as error:
            # Whatever it was: what waits behind this batch is the next one, and must find a writer.
            _log.error("not_stored", deliveries=len(batch), error=logs.brief(error))
            self._answer_all(batch, NotStored("the delivery could not be stored"))
            self._on_stored()  # perhaps it is, and only the answer was lost
        except BaseException:
            self._answer_all(batch, NotStored("the delivery could not be stored"))
            raise

    async def _idle_for_more(self) -> list[tuple[NewEvent, asyncio.Future[bool]]]:
        while not self._closing:
            called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(called)
            try:
                await asyncio.wait([called], timeout=_KEEP_SECONDS)
            finally:
                if not called.done():
                    self._idle.remove(called)
            # The other writer may have been quicker; then there will be more in a moment.
            if (batch := self._next_batch()) or not called.done():
                return batch
        return self._next_batch()

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
    def _answer(batch: list[tuple[NewEvent, asyncio.Future[bool]]], arrival: Arrival) -> None:
        if arrival.refused:
            _log.error("not_stored", deliveries=len(arrival.refused), error="held_up")
        for event, answer in batch:
            if answer.done():
                continue
            if event.id in arrival.refused:
                answer.set_exception(NotStored("the delivery could not be stored"))
            else:
                answer.set_result(event.id in arrival.stored)

    @staticmethod
    def _answer_all(batch: list[tuple[NewEvent, asyncio.Future[bool]]], error: NotStored) -> None:
        for _, answer in batch:
            if not answer.done():
                answer.set_exception(error)


def _give_up(stored: asyncio.Future[bool]) -> None:
    if not stored.done():
        stored.set_exception(NotStored("the database did not answer in time"))
