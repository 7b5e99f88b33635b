"""What CheckLimit reads: questions that arrive while a query runs are answered together by the next one.

A fresh answer comes from a query that was sent after its question arrived. A caller that tolerates staleness may get
an answer that was read before; it says when.
"""

import asyncio
import contextlib
import itertools
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TypeAlias

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from services.ledger import errors
from services.ledger.rules.limits import LimitState
from services.ledger.store import limits as store
from services.ledger.store.limits import LimitKey
from shared import backoff, clock, database, logs
from shared.errors import Unavailable

BATCH_MAX = 500
# Between two queries under load: what arrives meanwhile is read together. The first question of a quiet time never
# waits for it.
PACE_SECONDS = 0.003
WAITING_MAX = 10_000
# What one round trip may take before its connection is cut: a half-open link never answers.
ROUND_TRIP_SECONDS = 3.0
# How long a question waits for a database that stays away.
PATIENCE_SECONDS = 5.0

_log = logs.get_logger()


@dataclass(frozen=True, slots=True)
class Reading:
    """A limit's state, the moment that it is of, and what is needed to know its age."""

    state: LimitState
    as_of: datetime
    sent_at: float  # by the loop's clock, before the query left: a reading is never younger than it seems
    offset: timedelta  # of the test clock


@dataclass(eq=False, slots=True)
class _Question:
    answer: "asyncio.Future[Reading | None]"
    arrived_at: float
    keep: bool


_Asked: TypeAlias = dict[LimitKey, list[_Question]]


class LimitReads:
    """Reads limits for this process, over one connection. Use as an async context manager."""

    def __init__(self, url: str, *, kept_max: int = 100_000) -> None:
        self._url = url
        self._kept_max = kept_max
        self._kept: OrderedDict[LimitKey, Reading] = OrderedDict()
        self._waiting: _Asked = {}
        self._waiting_count = 0
        self._wake = asyncio.Event()
        self._sent_at = 0.0
        self._connection: AsyncConnection[TupleRow] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="limit-reads")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for questions in self._waiting.values():
            _fail(questions, "the ledger is stopping; ask again")
        await self._disconnect()

    async def find(self, tenant_id: str, limit_key: str, *, max_staleness_ms: int = 0) -> Reading | None:
        """The limit's state, at most so old; None if the tenant has no account."""
        key = (tenant_id, limit_key)
        if max_staleness_ms and (kept := self._young_enough(key, max_staleness_ms / 1000)):
            return kept
        if self._waiting_count >= WAITING_MAX:
            raise errors.LaneFull("too many questions are waiting; try again")
        loop = asyncio.get_running_loop()
        question = _Question(loop.create_future(), loop.time(), keep=max_staleness_ms > 0)
        self._waiting.setdefault(key, []).append(question)
        self._waiting_count += 1
        self._wake.set()
        return await question.answer

    def _young_enough(self, key: LimitKey, age_seconds: float) -> Reading | None:
        kept = self._kept.get(key)
        if kept is None or asyncio.get_running_loop().time() - kept.sent_at > age_seconds:
            return None
        if kept.offset != clock.offset():
            return None  # by the test clock it may be of any age
        self._kept.move_to_end(key)
        return kept

    async def _run(self) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            await asyncio.sleep(max(0.0, self._sent_at + PACE_SECONDS - loop.time()))
            asked = self._take()
            try:
                answered = await self._answer(asked)
            except BaseException:
                self._put_back(asked)
                raise
            attempt = 0 if answered else attempt + 1
            if not answered:
                pause = backoff.delay(attempt, base_seconds=0.05, max_seconds=0.5)
                await asyncio.sleep(pause.total_seconds())

    def _take(self) -> _Asked:
        """Up to a batch, those first that waited longest; whoever stopped waiting is left out."""
        keys = list(itertools.islice(self._waiting, BATCH_MAX))
        taken = {key: self._waiting.pop(key) for key in keys}
        self._waiting_count -= sum(map(len, taken.values()))
        if not self._waiting:
            self._wake.clear()
        alive = {key: [each for each in asked if not each.answer.done()] for key, asked in taken.items()}
        return {key: questions for key, questions in alive.items() if questions}

    async def _answer(self, asked: _Asked) -> bool:
        """Answers whoever asked; False if the database was away, and they wait on or have waited long enough."""
        if not asked:
            return True
        try:
            found = await self._read(list(asked))
        except Exception as error:
            await self._disconnect()
            if _passes(error):
                _log.warning("limit_reads_retry", error=logs.brief(error))
                self._put_back_the_patient(asked)
                return False
            await self._isolate(asked, error)
            return True
        for key, questions in asked.items():
            self._tell(key, questions, found.get(key))
        return True

    async def _isolate(self, asked: _Asked, error: Exception) -> None:
        """A failing question fails alone: its neighbours are asked again, each by itself."""
        if len(asked) > 1:
            for key, questions in asked.items():
                await self._answer({key: questions})
            return
        for key, questions in asked.items():
            self._tell(key, questions, error)

    async def _read(self, asked: list[LimitKey]) -> dict[LimitKey, Reading | Exception]:
        connection = await self._connected()
        offset = clock.offset()
        loop = asyncio.get_running_loop()
        self._sent_at = sent_at = loop.time()
        # Cut rather than cancelled: psycopg would first ask the server that does not answer to cancel.
        guard = loop.call_later(ROUND_TRIP_SECONDS, database.cut, connection)
        try:
            rows = await store.find_rows(connection, asked, offset)
        finally:
            guard.cancel()
        found: dict[LimitKey, Reading | Exception] = {}
        for row in rows:
            try:
                state, as_of = store.state_of(row)
            except Exception as error:  # a hand-edited limit is no reason to fail the others
                found[row[0], row[1]] = error
            else:
                found[row[0], row[1]] = Reading(state, as_of, sent_at, offset)
        return found

    def _tell(self, key: LimitKey, questions: list[_Question], found: Reading | Exception | None) -> None:
        if isinstance(found, Exception):
            _log.error("limit_read_failed", tenant_id=key[0], limit_key=key[1], exc_info=found)
        else:
            self._keep(key, questions, found)
        for question in questions:
            if question.answer.done():
                continue
            if isinstance(found, Exception):
                question.answer.set_exception(found)
            else:
                question.answer.set_result(found)

    def _keep(self, key: LimitKey, questions: list[_Question], found: Reading | None) -> None:
        """Keeps what somebody may ask for again; what is not there is never kept."""
        if found is None or not found.state.known:
            self._kept.pop(key, None)
        elif key in self._kept or any(question.keep for question in questions):
            self._kept[key] = found
            self._kept.move_to_end(key)
            if len(self._kept) > self._kept_max:
                self._kept.popitem(last=False)

    def _put_back(self, asked: _Asked) -> None:
        for key, questions in asked.items():
            self._waiting.setdefault(key, []).extend(questions)
            self._waiting_count += len(questions)
        self._wake.set()

    def _put_back_the_patient(self, asked: _Asked) -> None:
        """Whoever has waited long enough learns that the database is away; the others wait on."""
        since = asyncio.get_running_loop().time() - PATIENCE_SECONDS
        for questions in asked.values():
            _fail(
                [each for each in questions if each.arrived_at <= since],
                "the database did not answer; ask again",
            )
        self._put_back(asked)

    async def _connected(self) -> AsyncConnection[TupleRow]:
        if self._connection is None or self._connection.closed:
            self._connection = await AsyncConnection.connect(
                self._url,
                autocommit=True,
                application_name="ledger-limit-reads",
                connect_timeout=3,
                options=database.session_options(),
            )
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.close(), 1)


def _passes(error: Exception) -> bool:
    """Whether the same question may well be answered on a new connection."""
    return isinstance(error, psycopg.OperationalError | TimeoutError | OSError)


def _fail(questions: list[_Question], message: str) -> None:
    for question in questions:
        if not question.answer.done():
            question.answer.set_exception(Unavailable(message))
