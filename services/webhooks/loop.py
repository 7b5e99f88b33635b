"""Keeps deliveries moving: woken by every stored event, and by itself for what falls due later."""

import asyncio
from collections.abc import Callable

from services.webhooks.actions.deliver import Courier
from services.webhooks.rules.delivery import Claimed
from shared import logs

_AFTER_TROUBLE_SECONDS = 1.0
_FINISH_SECONDS = 5.0
# A claim costs as much as handing an event on, so it is made for several slots where that is a matter of moments.
_GATHER_SECONDS = 0.01

_log = logs.get_logger()


class DeliveryLoop:
    """Runs up to `concurrency` attempts at a time, and few while the ingress `is_crowded`.

    A provider waits for its answer and gives up after seconds; for an event that is on disk nobody waits so.
    """

    def __init__(
        self,
        courier: Courier,
        *,
        concurrency: int,
        poll_seconds: float,
        is_crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._courier = courier
        self._concurrency = concurrency
        self._is_crowded = is_crowded
        self._poll_seconds = poll_seconds
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Something new may be due."""
        self._wake.set()

    async def run(self) -> None:
        """Delivers until cancelled; then lets running attempts finish, or gives their claims back."""
        try:
            while True:
                self._wake.clear()
                if not await self._start_due():
                    continue
                try:
                    async with asyncio.timeout(self._poll_seconds):
                        await self._wake.wait()
                except TimeoutError:
                    pass  # a retry may have fallen due
        finally:
            await self._finish()

    async def _start_due(self) -> bool:
        """Starts what can be started; True: there is nothing more to start for now."""
        free = self._free()
        if 0 < free < self._concurrency // 2:
            await asyncio.sleep(_GATHER_SECONDS)
            free = self._free()
        if free <= 0:
            return True
        try:
            claimed = await self._courier.claim(free)
        except Exception as error:
            _log.error("claim_failed", error=logs.brief(error))
            await asyncio.sleep(_AFTER_TROUBLE_SECONDS)
            return False
        for event in claimed:
            task = asyncio.create_task(self._deliver(event))
            self._running.add(task)
            task.add_done_callback(self._ended)
        return len(claimed) < free

    def _free(self) -> int:
        # Never none at all: what a crowd brings in must not grow for as long as it lasts.
        slots = max(1, self._concurrency // 8) if self._is_crowded() else self._concurrency
        return slots - len(self._running)

    async def _deliver(self, event: Claimed) -> None:
        try:
            await self._courier.deliver(event)
        except Exception as error:
            # The outcome could not be written down: the lease ends and the event is tried again.
            _log.error("delivery_not_recorded", webhook_event=event.id, error=logs.brief(error))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._wake.set()  # a slot is free, and a later event of the same aggregate may go now

    async def _finish(self) -> None:
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=_FINISH_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
