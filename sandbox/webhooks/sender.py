"""Posts deliveries with Razorpay's patience."""

import asyncio
import zlib
from collections.abc import Coroutine
from contextlib import suppress
from itertools import pairwise
from typing import Any

import httpx

from sandbox.state.world import World
from sandbox.webhooks.delivery import Delivery, Manners
from sandbox.webhooks.outbox import Outbox
from shared import logs

log = logs.get_logger()

# Seconds since the first failure, as measured at Razorpay; the next step would pass 24 hours.
LADDER = (0.2, 6, 19, 40, 82, 164, 326, 650, 1294, 2576, 5_100, 10_300, 20_500, 41_000, 82_000)
SLOW_EVENTS = ("refund.created", "payment.failed")
TIMEOUT_SECONDS = 5.0
# What one act causes leaves in order; a slow endpoint does not hold back the next event for long.
HEAD_START_SECONDS = 0.5
# Acts on different things tell of themselves side by side.
LANES = 8
HURRY_SECONDS = 1.0


class Sender:
    """Posts deliveries lane by lane; each that fails climbs the ladder on its own."""

    def __init__(self, world: World, outbox: Outbox, *, scale: float = 1.0) -> None:
        self._world = world
        self._outbox = outbox
        self._scale = scale
        self._lanes: list[asyncio.Queue[tuple[Delivery, int]]] = [asyncio.Queue() for _ in range(LANES)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurried = asyncio.Event()
        self._accepted_at = 0.0
        # The merchant's own machine: no proxy, no redirects.
        self._client = httpx.AsyncClient(trust_env=False, headers={"Accept-Encoding": "gzip"})

    @property
    def pending(self) -> int:
        """How many deliveries are neither acknowledged nor given up."""
        return self._open

    def queue(self, deliveries: list[Delivery], manners: Manners, subject: str = "") -> None:
        """Lets go of what was marked for sending; one subject's deliveries keep their order."""
        for delivery in manners.order(deliveries):
            if delivery.status == "queued":
                self._put(delivery, 0, subject)

    def _put(self, delivery: Delivery, failures: int, subject: str) -> None:
        self._open += 1
        self._idle.clear()
        self._lanes[zlib.crc32(subject.encode()) % LANES].put_nowait((delivery, failures))

    def start(self) -> None:
        """Takes up what an earlier process had not finished, then works until stopped."""
        for delivery in self._outbox.unfinished():
            failures = sum(not attempt.get("hurried") for attempt in delivery.attempts)
            self._put(delivery, failures, "")
        for lane in self._lanes:
            self._spawn(self._work(lane))

    async def stop(self) -> None:
        """Drops everything in flight; the journal has it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def drain(self, *, timeout_seconds: float, hurry: bool) -> bool:
        """Waits until every delivery is acknowledged or given up; in a hurry, retries do not wait their time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while self._open and (left := deadline - loop.time()) > 0:
            if hurry:
                self._wake()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, HURRY_SECONDS)):
                    await self._idle.wait()
        return not self._open

    def _wake(self) -> None:
        self._hurried.set()
        self._hurried = asyncio.Event()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work(self, lane: asyncio.Queue[tuple[Delivery, int]]) -> None:
        while True:
            delivery, failures = await lane.get()
            task = self._spawn(self._deliver(delivery, failures))
            await asyncio.wait({task}, timeout=HEAD_START_SECONDS)

    async def _deliver(self, delivery: Delivery, failures: int) -> None:
        if await self._attempt(delivery):
            self._finish()
        else:
            self._spawn(self._climb(delivery, failures))

    def _finish(self) -> None:
        self._open -= 1
        if not self._open:
            self._idle.set()

    async def _climb(self, delivery: Delivery, failures: int) -> None:
        failing_since = asyncio.get_running_loop().time()
        if not await self._retry(delivery, failures):
            delivery.status = "abandoned"
            self._outbox.save(delivery)
            # A day of nothing but failures; one event that nobody wanted disables nothing.
            if self._accepted_at < failing_since and not self._outbox.endpoint.disabled:
                self._outbox.disable()
                self._wake()
                log.warning("webhook endpoint disabled", url=delivery.url, event_id=delivery.event_id)
        self._finish()

    async def _retry(self, delivery: Delivery, failures: int) -> bool:
        steps = LADDER[1:] if delivery.event in SLOW_EVENTS else LADDER
        for before, step in pairwise((0.0, *steps)[failures:]):
            if await self._accepted_early(delivery, (step - before) * self._scale):
                return True
            # Once disabled, nothing is retried: only a replay brings the event again.
            if self._outbox.endpoint.disabled:
                return False
            if await self._attempt(delivery):
                return True
        return False

    async def _accepted_early(self, delivery: Delivery, seconds: float) -> bool:
        """Waits for the next step; an attempt made in a hurry meanwhile uses up no step."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._hurried.wait()
            except TimeoutError:
                return False
            if self._outbox.endpoint.disabled:
                return False
            if await self._attempt(delivery, hurried=True):
                return True

    async def _attempt(self, delivery: Delivery, *, hurried: bool = False) -> bool:
        outcome: dict[str, Any] = {"at": self._world.now()} | ({"hurried": True} if hurried else {})
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                response = await self._client.post(
                    delivery.url, content=delivery.body, headers=delivery.headers()
                )
            outcome["status"] = response.status_code
            accepted = response.is_success
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            outcome["error"] = type(error).__name__
            accepted = False
        if accepted:
            self._accepted_at = asyncio.get_running_loop().time()
        delivery.attempts.append(outcome)
        delivery.status = "delivered" if accepted else "retrying"
        self._outbox.save(delivery)
        what = "webhook delivered" if accepted else "webhook not accepted"
        log.info(what, event_name=delivery.event, event_id=delivery.event_id, **outcome)
        return accepted
