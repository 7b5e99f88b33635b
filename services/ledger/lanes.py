"""The write path: operations queue on their tenant's lane, and each lane writes what is queued in one transaction.

A unary call is a batch of one. Under load batches grow by themselves, since they form while the one before commits:
a hot tenant's row is then locked once for many operations. Several processes may serve one tenant: row locks keep
it correct, lanes keep it fast.
"""

import asyncio
import contextlib
import zlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Self

import psycopg
from psycopg import AsyncConnection

from services.ledger import errors
from services.ledger.rules import answers, batch
from services.ledger.rules.model import GENESIS, Entry, Grant, Operation, Outcome, Settle
from services.ledger.store import lane as lane_store
from shared import backoff, clock, database, ids, logs
from shared.errors import BillingError, Unavailable

BATCH_MAX = 200
# What one round trip may take before its connection is given up: a half-open link never answers.
ROUND_TRIP_SECONDS = 8.0
# A lost connection is tried again for about as long as a caller waits.
ATTEMPTS_MAX = 8

_log = logs.get_logger()

Result = Outcome | batch.Settled


@dataclass(eq=False, slots=True)
class _Waiter:
    """An operation in the queue and the call that waits for it."""

    operation: Operation
    answer: asyncio.Future[Result]
    # It was being written: if its connection is lost and it is found afterwards, it was this very call's.
    in_doubt: bool = False


class Lanes:
    """All lanes of this process. Use as an async context manager; leaving it ends the lanes."""

    def __init__(self, url: str, *, count: int, waiting_max: int, waiting_per_tenant_max: int) -> None:
        self._lanes = [_Lane(number, url, waiting_max, waiting_per_tenant_max) for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(lane.run(), name=f"lane-{lane.number}") for lane in self._lanes]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self._lanes:
            await lane.close()

    async def submit(self, operation: Operation) -> Result:
        """The outcome of the operation, durable when it is answered; refusals are raised.

        A caller that stops waiting harms nobody: what was taken into a batch goes on without it.
        """
        lane = self._lanes[zlib.crc32(operation.tenant_id.encode()) % len(self._lanes)]
        return await lane.enqueue(operation)


class _Lane:
    def __init__(self, number: int, url: str, waiting_max: int, waiting_per_tenant_max: int) -> None:
        self.number = number
        self._url = url
        self._waiting_max = waiting_max
        self._waiting_per_tenant_max = waiting_per_tenant_max
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._connection: lane_store.Connection | None = None
        self._taken: list[_Waiter] = []

    async def enqueue(self, operation: Operation) -> Result:
        own = len(self._queues.get(operation.tenant_id, ()))
        if self._waiting >= self._waiting_max or own >= self._waiting_per_tenant_max:
            raise errors.LaneFull("too many operations are waiting; nothing was done, try again")
        waiter = _Waiter(operation, asyncio.get_running_loop().create_future())
        self._queues.setdefault(operation.tenant_id, deque()).append(waiter)
        self._waiting += 1
        self._wake.set()
        return await waiter.answer

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._taken = self._take()
            if not self._queues:
                self._wake.clear()
            await self._answer(self._taken)
            self._taken = []

    async def close(self) -> None:
        """Ends the connection; whoever still waits learns that the outcome is unknown."""
        for waiter in [*self._taken, *(each for queue in self._queues.values() for each in queue)]:
            _fail(waiter, Unavailable("the ledger is stopping; ask again with the same key"))
        await self._disconnect()

    def _take(self) -> list[_Waiter]:
        """Up to a batch, a fair share from each tenant in turn: one tenant's flood never fills it alone."""
        taken: list[_Waiter] = []
        share = max(1, BATCH_MAX // max(1, len(self._queues)))
        while self._queues and len(taken) < BATCH_MAX:
            tenant_id, queue = self._queues.popitem(last=False)
            for _ in range(min(share, BATCH_MAX - len(taken), len(queue))):
                waiter = queue.popleft()
                self._waiting -= 1
                if not waiter.answer.done():
                    taken.append(waiter)
            if queue:
                self._queues[tenant_id] = queue
        return taken

    async def _answer(self, waiters: list[_Waiter]) -> None:
        """Answers every waiter of a batch; never raises, since a lane must outlive every failure."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            if not waiters:
                return
            try:
                results = await self._transact(waiters)
            except Exception as error:
                await self._disconnect()
                if not _passes(error):
                    await self._isolate(waiters, error)
                    return
                # Whether a lost COMMIT arrived is found out by asking again: the keys are looked up under the
                # lock, which waits for whatever is still in doubt.
                _log.warning("lane_retry", lane=self.number, attempt=attempt, error_type=type(error).__name__)
                waiters = [waiter for waiter in waiters if not waiter.answer.done()]
                await asyncio.sleep(backoff.delay(attempt, base_seconds=0.05, max_seconds=2).total_seconds())
            else:
                for waiter, result in zip(waiters, results, strict=True):
                    _settle(waiter, result)
                return
        for waiter in waiters:
            _fail(waiter, Unavailable("the database did not answer; ask again with the same key"))

    async def _isolate(self, waiters: list[_Waiter], error: Exception) -> None:
        """A failing operation fails alone: its neighbours are tried again, each by itself."""
        if len(waiters) > 1:
            for waiter in waiters:
                await self._answer([waiter])
            return
        _log.error("operation_failed", tenant_id=waiters[0].operation.tenant_id, exc_info=error)
        _fail(waiters[0], error)

    async def _transact(self, waiters: Sequence[_Waiter]) -> list[Result | BillingError]:
        operations = [waiter.operation for waiter in waiters]
        connection = await self._connected()
        async with asyncio.timeout(ROUND_TRIP_SECONDS):
            known = await lane_store.load(
                connection, _wanted(operations), opened_at=clock.now(), genesis=GENESIS
            )
            decided = batch.decide(known, operations, _new_id)
            repeats = [answer.record for answer in decided.answers if isinstance(answer, batch.Repeat)]
            lines = await lane_store.entries_of(connection, repeats)
            for waiter, answer in zip(waiters, decided.answers, strict=True):
                waiter.in_doubt |= isinstance(answer, Outcome) and not answer.replayed
            await lane_store.write(connection, decided)
        return [_result(answer, lines) for answer in decided.answers]

    async def _connected(self) -> lane_store.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await AsyncConnection.connect(
                self._url,
                autocommit=True,
                application_name=f"ledger-lane-{self.number}",
                connect_timeout=5,
                options=database.session_options(),
            )
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.close(), 1)


def _wanted(operations: Sequence[Operation]) -> lane_store.Wanted:
    tenants = sorted({operation.tenant_id for operation in operations})
    opening = sorted({operation.tenant_id for operation in operations if isinstance(operation, Grant)})
    return lane_store.Wanted(
        tenants=tenants,
        opening=[(tenant_id, ids.new_id("acc")) for tenant_id in opening],
        keys=[
            (operation.tenant_id, operation.idempotency_key)
            for operation in operations
            if not isinstance(operation, Settle)
        ],
        grant_references=[
            (operation.tenant_id, operation.reference_id)
            for operation in operations
            if isinstance(operation, Grant)
        ],
        clock_offset=clock.offset(),
    )


def _new_id(at: datetime, position: int) -> str:
    return ids.ordered_id("txn", at, position)


def _result(answer: batch.Answer, lines: dict[str, tuple[Entry, ...]]) -> Result | BillingError:
    if not isinstance(answer, batch.Repeat):
        return answer
    transaction = answer.record.transaction
    totals = answers.totals_of_answer(answer.record.answer, transaction.created_at)
    return Outcome(transaction, lines.get(transaction.id, ()), totals, replayed=True)


def _passes(error: Exception) -> bool:
    """Whether the same batch may well succeed on a new connection: the fault lies with the connection or the server."""
    if isinstance(error, psycopg.OperationalError | TimeoutError | OSError):
        return True
    # 25…: the session idled in the transaction while this process was frozen, or the server became a standby.
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith("25")


def _settle(waiter: _Waiter, result: Result | BillingError) -> None:
    if isinstance(result, BillingError):
        _fail(waiter, result)
    elif not waiter.answer.done():
        if waiter.in_doubt and isinstance(result, Outcome):
            result = replace(result, replayed=False)
        waiter.answer.set_result(result)


def _fail(waiter: _Waiter, error: Exception) -> None:
    if not waiter.answer.done():
        waiter.answer.set_exception(error)
