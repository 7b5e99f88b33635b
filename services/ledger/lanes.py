"""The write path: operations queue on their tenant's lane, and each lane writes what is queued in one transaction.

A unary call is a batch of one. Under load batches grow by themselves, since they form while the one before commits:
a hot tenant's row is then locked once for many operations. Several processes may serve one tenant: row locks keep
it correct, lanes keep it fast.
"""

import asyncio
import contextlib
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Self, TypeAlias

import psycopg
from psycopg import AsyncConnection

from services.ledger import errors, metrics
from services.ledger.rules import answers, batch
from services.ledger.rules.batch import Grouped, Repeat, Settled
from services.ledger.rules.model import GENESIS, Entry, Noted, Outcome, Record
from services.ledger.rules.requests import Group, Operation, Settle
from services.ledger.rules.usage import NotAuthorized
from services.ledger.store import load as loading
from services.ledger.store import write as writing
from services.ledger.store.round_trip import Connection
from services.ledger.store.wanted import wanted
from shared import backoff, clock, database, ids, logs
from shared.errors import BillingError, Internal, Unavailable

BATCH_MAX = 200
# Under load a lane waits this long before it takes a batch: callers that were just answered ask again within it, and a
# larger batch costs each of them less. Whoever comes while it is quiet never waits.
LINGER_SECONDS = 0.002
BUSY_FROM = 4
# What one caller sends at once is queued in portions, so that neighbours get their turn between them.
PORTION_MAX = 50
# What one round trip may take before its connection is given up: a half-open link never answers.
ROUND_TRIP_SECONDS = 8.0
# What this side has given up must not keep its locks there. Idling alone is no bound: a pipeline ends with a message
# that stops PostgreSQL's clock for it. Servers before 17 do not know this setting.
BOUND_TRANSACTIONS = (
    "SELECT set_config('transaction_timeout', %s, false) FROM pg_settings WHERE name = 'transaction_timeout'"
)
# A lane asks by key alone, so a plan is made once; tables that were small then must not be read whole ever after.
PROBES_ONLY = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
# Those of these tenants whose rows somebody keeps locked, without waiting for them.
LOCKED = """
WITH free AS MATERIALIZED (
    SELECT tenant_id FROM tenant_credits WHERE tenant_id = ANY(%(tenants)s) FOR NO KEY UPDATE SKIP LOCKED)
SELECT tenant_id FROM tenant_credits WHERE tenant_id = ANY(%(tenants)s) EXCEPT SELECT tenant_id FROM free"""
# A lost connection is tried again for about as long as a caller waits.
ATTEMPTS_MAX = 8

_log = logs.get_logger()

Result: TypeAlias = Outcome | Noted | Settled | list[Outcome | BillingError]
Refusal: TypeAlias = BillingError | NotAuthorized


@dataclass(eq=False, slots=True)
class _Waiter:
    """Operations of one tenant in the queue, and the call that waits for them."""

    operations: tuple[Operation, ...]
    answer: asyncio.Future[list[Result | Refusal]]
    # Keys that were being written: if the connection is lost and they are found afterwards, it was this very call.
    in_doubt: set[str] = field(default_factory=set)


class Lanes:
    """All lanes of this process. Use as an async context manager; leaving it ends the lanes."""

    def __init__(self, url: str, *, count: int, waiting_max: int, waiting_per_tenant_max: int) -> None:
        self._lanes = [_Lane(number, url, waiting_max, waiting_per_tenant_max) for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for lane in self._lanes:
            metrics.watch_lane(lane.number, lane.depth)
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
        (answer,) = await self._of(operation.tenant_id).queue((operation,))
        if isinstance(answer, BillingError | NotAuthorized):
            raise answer
        return answer

    async def submit_all(self, operations: Sequence[Operation]) -> list[Result | Refusal]:
        """One outcome or refusal for each operation; those of one tenant are decided in their order."""
        answers: list[Result | Refusal | None] = [None] * len(operations)
        by_tenant: dict[str, list[int]] = {}
        for position, operation in enumerate(operations):
            by_tenant.setdefault(operation.tenant_id, []).append(position)
        # Futures rather than tasks: a batch over a thousand tenants has a thousand portions.
        portions: list[tuple[list[int], asyncio.Future[list[Result | Refusal]]]] = []
        for tenant_id, positions in by_tenant.items():
            lane = self._of(tenant_id)
            for start in range(0, len(positions), PORTION_MAX):
                own = positions[start : start + PORTION_MAX]
                try:
                    portions.append((own, lane.queue(tuple([operations[position] for position in own]))))
                except BillingError as error:
                    for position in own:
                        answers[position] = error
        told = await asyncio.gather(*(future for _, future in portions), return_exceptions=True)
        for (own, _), found in zip(portions, told, strict=True):
            if isinstance(found, BaseException) and not isinstance(found, BillingError):
                # It is in the log already; its neighbours have answers of their own.
                found = Internal("internal error")
            for place, position in enumerate(own):
                answers[position] = found if isinstance(found, BillingError) else found[place]
        return [answer for answer in answers if answer is not None]

    def _of(self, tenant_id: str) -> "_Lane":
        return self._lanes[zlib.crc32(tenant_id.encode()) % len(self._lanes)]


class _Lane:
    def __init__(self, number: int, url: str, waiting_max: int, waiting_per_tenant_max: int) -> None:
        self.number = number
        self._url = url
        self._waiting_max = waiting_max
        self._waiting_per_tenant_max = waiting_per_tenant_max
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._waiting: dict[str, int] = {}  # operations by tenant
        self._waiting_in_all = 0
        self._wake = asyncio.Event()
        self._connection: Connection | None = None
        self._taken: list[_Waiter] = []
        self._busy = False
        # Tenants of a batch that waited for a lock in vain, until they are found free.
        self._locked: set[str] = set()

    def depth(self) -> int:
        """How many operations wait."""
        return self._waiting_in_all

    def queue(self, operations: tuple[Operation, ...]) -> asyncio.Future[list[Result | Refusal]]:
        """One answer for each, in the future; all of one tenant."""
        tenant_id, count = operations[0].tenant_id, sum(map(_size, operations))
        own = self._waiting.get(tenant_id, 0)
        if self._waiting_in_all >= self._waiting_max or own >= self._waiting_per_tenant_max:
            full = errors.LaneFull("too many operations are waiting; nothing was done, try again")
            metrics.operations_failed(operations, full)
            raise full
        waiter = _Waiter(operations, asyncio.get_running_loop().create_future())
        self._queues.setdefault(tenant_id, deque()).append(waiter)
        self._waiting[tenant_id] = own + count
        self._waiting_in_all += count
        self._wake.set()
        return waiter.answer

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            if self._busy and self._waiting_in_all < BATCH_MAX:
                await asyncio.sleep(LINGER_SECONDS)
            self._taken = self._take()
            self._busy = len(self._taken) >= BUSY_FROM
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
        room = BATCH_MAX
        share = max(1, BATCH_MAX // max(1, len(self._queues)))
        while self._queues and room > 0:
            tenant_id, queue = self._queues.popitem(last=False)
            own = 0
            while queue and own < share and room > 0:
                waiter = queue.popleft()
                count = sum(map(_size, waiter.operations))
                self._waiting_in_all -= count
                self._waiting[tenant_id] -= count
                if not waiter.answer.done():
                    taken.append(waiter)
                    own += count
                    room -= count
            if queue:
                self._queues[tenant_id] = queue
            else:
                del self._waiting[tenant_id]
        return taken

    async def _answer(self, waiters: list[_Waiter]) -> None:
        """Answers every waiter of a batch; never raises, since a lane must outlive every failure."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            if not waiters:
                return
            try:
                if self._locked and not (waiters := await self._unlocked(waiters)):
                    return
                began = time.perf_counter()
                results = await self._transact(waiters)
            except Exception as error:
                await self._disconnect()
                if isinstance(error, psycopg.errors.LockNotAvailable):
                    self._locked |= _tenants(waiters)
                if not _passes(error):
                    await self._isolate(waiters, error)
                    return
                # Whether a lost COMMIT arrived is found out by asking again: the keys are looked up under the
                # lock, which waits for whatever is still in doubt.
                _log.warning("lane_retry", lane=self.number, attempt=attempt, error=logs.brief(error))
                waiters = [waiter for waiter in waiters if not waiter.answer.done()]
                await asyncio.sleep(backoff.delay(attempt, base_seconds=0.05, max_seconds=2).total_seconds())
            else:
                for waiter, result in zip(waiters, results, strict=True):
                    _settle(waiter, result)
                asked = [waiter.operations for waiter in waiters]
                metrics.batch_written(zip(asked, results, strict=True), time.perf_counter() - began)
                return
        for waiter in waiters:
            _fail(waiter, Unavailable("the database did not answer; ask again with the same key"))

    async def _unlocked(self, waiters: list[_Waiter]) -> list[_Waiter]:
        """Those whose rows can be had: the others would keep the whole lane waiting, so they are told to ask again.

        Who is in doubt stays: the lock may be that of its own lost transaction, and its end is the answer.
        """
        asked = sorted(self._locked & _tenants(waiters))
        if not asked:
            return waiters
        connection = await self._connected()
        with _cut_in_time(connection):
            cursor = await connection.execute(LOCKED, {"tenants": asked})
            locked = {tenant_id for (tenant_id,) in await cursor.fetchall()}
        self._locked -= set(asked) - locked
        left = [each for each in waiters if each.in_doubt or each.operations[0].tenant_id not in locked]
        if len(left) < len(waiters):
            _log.warning("tenants_locked", lane=self.number, tenants=sorted(locked)[:20])
        for waiter in waiters:
            if waiter not in left:
                _fail(
                    waiter, Unavailable("the account is locked by somebody else; ask again with the same key")
                )
        return left

    async def _isolate(self, waiters: list[_Waiter], error: Exception) -> None:
        """A failing operation fails alone: its neighbours are tried again, each by itself."""
        if len(waiters) > 1:
            for waiter in waiters:
                await self._answer([waiter])
            return
        (waiter,) = waiters
        if len(waiter.operations) > 1:
            _settle(waiter, [await self._alone(waiter, operation) for operation in waiter.operations])
            return
        _log.error("operation_failed", tenant_id=waiter.operations[0].tenant_id, exc_info=error)
        _fail(waiter, error)

    async def _alone(self, waiter: _Waiter, operation: Operation) -> Result | Refusal:
        alone = _Waiter((operation,), asyncio.get_running_loop().create_future(), waiter.in_doubt)
        await self._answer([alone])
        try:
            return (await alone.answer)[0]
        except BillingError as refusal:
            return refusal
        except Exception:
            return Internal("internal error")

    async def _transact(self, waiters: Sequence[_Waiter]) -> list[list[Result | Refusal]]:
        operations = [operation for waiter in waiters for operation in waiter.operations]
        connection = await self._connected()
        with _cut_in_time(connection):
            known, crowded = await self._load(connection, operations)
            while crowded:
                # More holds are due than are settled at once: the rest must not count as held in what is decided.
                settled = batch.decide(known, [Settle(each) for each in crowded], _new_id)
                await writing.write(connection, settled)
                known, crowded = await self._load(connection, operations)
                if not settled.outcomes:
                    break  # due by another clock than the tenant's own, which may have gone back
            decided = batch.decide(known, operations, _new_id)
            lines = await loading.entries_of(connection, _repeated(decided.answers))
            found = iter(zip(operations, decided.answers, strict=True))
            answered = []
            for waiter in waiters:
                own = [next(found) for _ in waiter.operations]
                doubts = set(waiter.in_doubt)
                answered.append([_as_first(each, _result(answer, lines), doubts) for each, answer in own])
                for each, answer in own:
                    waiter.in_doubt |= _new_keys(each, answer)
            await writing.write(connection, decided)
        return answered

    async def _load(
        self, connection: Connection, operations: Sequence[Operation]
    ) -> tuple[batch.Known, list[str]]:
        asked = wanted(operations, clock_offset=clock.offset())
        return await loading.load(connection, asked, opened_at=clock.now(), genesis=GENESIS)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await AsyncConnection.connect(
                self._url,
                autocommit=True,
                application_name=f"ledger-lane-{self.number}",
                connect_timeout=5,
                options=f"{database.session_options()} {PROBES_ONLY}",
            )
            with _cut_in_time(self._connection):
                await self._connection.execute(
                    BOUND_TRANSACTIONS, [f"{(ROUND_TRIP_SECONDS + 1) * 1000:.0f}ms"]
                )
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.close(), 1)


@contextlib.contextmanager
def _cut_in_time(connection: Connection) -> Iterator[None]:
    """Cut rather than cancelled: psycopg would first ask the server that does not answer to cancel."""
    guard = asyncio.get_running_loop().call_later(ROUND_TRIP_SECONDS, database.cut, connection)
    try:
        yield
    finally:
        guard.cancel()


def _tenants(waiters: Sequence[_Waiter]) -> set[str]:
    return {waiter.operations[0].tenant_id for waiter in waiters}


def _size(operation: Operation) -> int:
    return len(operation.debits) if isinstance(operation, Group) else 1


def _new_id(at: datetime, position: int) -> str:
    return ids.ordered_id("txn", at, position)


def _repeated(found: Sequence[batch.Answer]) -> list[Record]:
    repeats = []
    for answer in found:
        if isinstance(answer, Grouped):
            repeats += _repeated(answer.answers)
        elif isinstance(answer, Repeat):
            repeats.append(answer.record)
    return repeats


def _new_keys(operation: Operation, answer: batch.Answer) -> set[str]:
    """The keys under which something is about to be written for the first time."""
    if isinstance(operation, Group) and isinstance(answer, Grouped):
        members = zip(operation.debits, answer.answers, strict=True)
        return {key for debit, each in members for key in _new_keys(debit, each)}
    if (
        isinstance(answer, Outcome | Noted)
        and not answer.replayed
        and not isinstance(operation, Group | Settle)
    ):
        return {operation.idempotency_key}
    return set()


def _result(answer: batch.Answer, lines: dict[loading.Key, tuple[Entry, ...]]) -> Result | Refusal:
    match answer:
        case Repeat(record):
            if record.transaction is None:
                return answers.noted(record)
            own = lines.get((record.tenant_id, record.transaction.id), ())
            return answers.outcome(record, own)
        case Grouped():
            return [_member(_result(each, lines)) for each in answer.answers]
        case _:
            return answer


def _member(result: Result | Refusal) -> Outcome | BillingError:
    if not isinstance(result, Outcome | BillingError):
        raise TypeError(f"a debit was answered {type(result).__name__}")
    return result


def _passes(error: Exception) -> bool:
    """Whether the same batch may well succeed on a new connection: the fault lies with the connection or the server."""
    if isinstance(error, psycopg.OperationalError | TimeoutError | OSError):
        # 54…: something asked for is too large for the server, on every connection.
        return not (getattr(error, "sqlstate", None) or "").startswith("54")
    # 25…: the session idled in the transaction while this process was frozen, or the server became a standby.
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith("25")


def _settle(waiter: _Waiter, results: list[Result | Refusal]) -> None:
    if not waiter.answer.done():
        waiter.answer.set_result(results)


def _as_first(operation: Operation, result: Result | Refusal, doubts: set[str]) -> Result | Refusal:
    """What this very call wrote, and found when it had to ask again, is no repeat; what follows it is."""
    if not doubts:
        return result
    if isinstance(operation, Group) and isinstance(result, list):
        members = zip(operation.debits, result, strict=True)
        return [_member(_as_first(debit, each, doubts)) for debit, each in members]
    key = getattr(operation, "idempotency_key", None)
    if isinstance(result, Outcome | Noted) and key in doubts:
        doubts.remove(key)
        return result._replace(replayed=False)
    return result


def _fail(waiter: _Waiter, error: Exception) -> None:
    if not waiter.answer.done():
        waiter.answer.set_exception(error)
        metrics.operations_failed(waiter.operations, error)
