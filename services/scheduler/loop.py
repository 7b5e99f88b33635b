"""The door of time: looks each second for what is due, and executes it beside everything else."""

import asyncio
import contextvars
import os
import socket
import time
from datetime import timedelta

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import actions
from services.scheduler.clients import AlertSink, Maintenance
from services.scheduler.rules import Policy, Run
from shared import clock, ids, logs
from shared.backoff import delay
from shared.clock import Clock

PRUNE_EVERY_SECONDS = 3600.0
# The server drains for eight seconds; a run that needs longer is taken over by whoever runs next.
DRAIN_SECONDS = 5.0
SINK_PAUSE_SECONDS_MAX = 60.0
SECOND = timedelta(seconds=1)
DEFAULTS = Policy()

log = logs.get_logger()


def new_owner() -> str:
    """A name for this process that no other ever had, readable for a person."""
    return f"{socket.gethostname()}:{os.getpid()}:{ids.new_id('own')[-6:]}"


class Loop:
    """Claims ticks and executes runs until it is cancelled."""

    def __init__(
        self,
        engine: AsyncEngine,
        maintenance: Maintenance,
        *,
        sink: AlertSink | None,
        now: Clock = clock.now,
        policy: Policy = DEFAULTS,
    ) -> None:
        self.owner = new_owner()
        self._engine = engine
        self._maintenance = maintenance
        self._sink = sink
        self._now = now
        self._policy = policy
        self._runs: set[asyncio.Task[None]] = set()
        # Runs begin from here, not from the RPC that asked: its deadline and its request end before they do.
        self._context = contextvars.copy_context()

    def start(self, run: Run) -> asyncio.Task[None]:
        """Execute a run that this process claimed, in the background, whoever waits for it or leaves."""
        task = asyncio.create_task(self._execute(run), context=self._context.copy())
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        return task

    async def keep_time(self) -> None:
        """Claim and start what is due, each second, whatever happens to the database meanwhile."""
        try:
            while True:
                await asyncio.sleep(1 - time.time() % 1)
                try:
                    await self.tick()
                except (DBAPIError, PoolTimeout, OSError) as error:
                    # The database is away, perhaps for many seconds: where in the code is the same each time.
                    log.error("tick_failed", error=logs.brief(error))
                except Exception as error:
                    log.error("tick_failed", error=logs.brief(error), exc_info=error)
        finally:
            await self.drain()

    async def tick(self) -> None:
        """Claim and start what is due at this moment."""
        due = await actions.claim_due(
            self._engine, owner=self.owner, now=self._now(), lease=self._policy.lease
        )
        for run in due:
            self.start(run)

    async def tell_sink(self) -> None:
        """Bring alerts to the sink, each second while it takes them, whatever happens to it."""
        if self._sink is None:
            await asyncio.Event().wait()  # background work that ends would end the room
            return
        while True:
            # A sink that is away is asked ever more rarely.
            failures = self._sink.failures
            wait = delay(failures, base_seconds=2, max_seconds=SINK_PAUSE_SECONDS_MAX) if failures else SECOND
            await asyncio.sleep(wait.total_seconds())
            try:
                await actions.tell_sink(
                    self._engine, self._sink, now=self._now(), per_minute=self._policy.messages_per_minute
                )
            except Exception as error:
                log.error("alerts_failed", error=logs.brief(error))

    async def keep_tidy(self) -> None:
        """Forget what is old, now and each hour."""
        while True:
            try:
                await actions.prune(self._engine, now=self._now(), policy=self._policy)
            except Exception as error:
                log.error("prune_failed", error=logs.brief(error))
            await asyncio.sleep(PRUNE_EVERY_SECONDS)

    async def drain(self) -> None:
        """Give what runs a moment to end, then leave it to the next owner."""
        if self._runs:
            _, late = await asyncio.wait(self._runs, timeout=DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _execute(self, run: Run) -> None:
        logs.request_id.set(logs.new_request_id())
        try:
            await actions.execute(
                self._engine, self._maintenance, run, clock=self._now, lease=self._policy.lease
            )
        except Exception as error:
            # Its lease lapses, and the run is taken over with the same key.
            log.error("run_broken", job=run.job, run_id=run.id, error=logs.brief(error), exc_info=error)
