"""A PostgreSQL that lives in this process, forgets nothing it committed, and fails when told to.

It stands in for the database behind the lanes' load and write: row locks, unique keys, commits that arrive although
their answer does not. Time is the loop's own, so that waiting costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import selectors
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import psycopg

from services.ledger.rules.batch import Decided, Known
from services.ledger.rules.limits import Limit, LimitState
from services.ledger.rules.lots import in_burn_order
from services.ledger.rules.model import (
    ACTIVE,
    GENESIS,
    Account,
    Entry,
    Hold,
    Lot,
    Outcome,
    Record,
    Revocation,
    Spent,
    SpentLine,
)
from services.ledger.store.load import Wanted

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
POSTS = Limit(key="posts", value=6, kind="hard", grace_seconds=0, addon="")


class Instant(selectors.DefaultSelector):
    """Waits by moving the clock. When nobody is left who could wake anybody, it says so instead of waiting for ever."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("everybody waits for somebody")
        if not events and timeout:
            self.now += timeout
        return events


def virtual_loop() -> asyncio.AbstractEventLoop:
    """A loop whose time passes only by waiting, and then at once."""
    selector = Instant()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    return loop


def now() -> datetime:
    return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())


@dataclass
class Rows:
    """What is committed of one tenant."""

    account: Account
    lots: dict[int, Lot] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    revocations: dict[str, Revocation] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)


class Link:
    """One connection: which rows it has locked, and whether it is still there."""

    def __init__(self, postgres: Memory) -> None:
        self.postgres = postgres
        self.closed = False
        self.locked: list[asyncio.Lock] = []
        self.lost = asyncio.get_running_loop().create_future()

    async def execute(self, statement: str, values: object = None) -> None:
        """Settings of a session; here there are none."""

    async def close(self) -> None:
        self.cut()

    def cut(self) -> None:
        """What this side gave up the other side rolls back."""
        self.closed = True
        if not self.lost.done():
            self.lost.set_result(None)
        self.unlock()

    def unlock(self) -> None:
        for lock in self.locked:
            lock.release()
        self.locked.clear()

    async def wait(self, seconds: float) -> None:
        """A round trip of so long; it ends early, and badly, when the connection is cut."""
        if not self.closed:
            await asyncio.wait([self.lost], timeout=seconds)
        if self.closed:
            raise psycopg.OperationalError("the connection is lost")


class Memory:
    """The server. `faults` in 0…1 is how often something goes wrong; the seed decides where."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.faults = 0.3
        self.tenants: dict[str, Rows] = {}
        self.locks: dict[str, asyncio.Lock] = {}
        self.late: set[asyncio.Task[None]] = set()
        self.happened: list[str] = []

    async def connect(self, url: str, **settings: object) -> Link:
        if self._goes_wrong("connect", 0.2):
            raise psycopg.OperationalError("nobody listens")
        return Link(self)

    def _goes_wrong(self, where: str, share: float) -> bool:
        if self.rng.random() < self.faults * share:
            self.happened.append(where)
            return True
        return False

    # -- reading ------------------------------------------------------------------------------------------------

    async def load(
        self, link: Link, wanted: Wanted, *, opened_at: datetime, genesis: bytes
    ) -> tuple[Known, list[str]]:
        await link.wait(self._takes())
        if self._goes_wrong("lost before the lock", 0.2):
            link.cut()
            await link.wait(0)
        for tenant_id in wanted.tenants:
            lock = self.locks.setdefault(tenant_id, asyncio.Lock())
            await self._lock(link, lock)
        for tenant_id, _ in wanted.opening:
            self.tenants.setdefault(tenant_id, Rows(_opened(tenant_id)))
        if self._goes_wrong("lost while loading", 0.2):
            link.cut()
        await link.wait(self._takes())
        known = Known(now=now(), accounts={}, records={})
        for tenant_id in wanted.tenants:
            if tenant_id in self.tenants:
                self._read(known, tenant_id, self.tenants[tenant_id], wanted)
        return known, []

    async def _lock(self, link: Link, lock: asyncio.Lock) -> None:
        """Waits for the row as long as the connection lives."""
        waiting = asyncio.ensure_future(lock.acquire())
        try:
            await asyncio.wait([waiting, link.lost], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                lock.release()
            waiting.cancel()
            raise
        if waiting.done():
            link.locked.append(lock)
            if link.closed:
                link.unlock()
        else:
            waiting.cancel()
        await link.wait(0)

    def _takes(self) -> float:
        """How long a round trip takes; now and then longer than anybody waits."""
        return 30.0 if self._goes_wrong("slow", 0.05) else self.rng.uniform(0.0005, 0.005)

    def _read(self, known: Known, tenant_id: str, rows: Rows, wanted: Wanted) -> None:
        """As the statements of the store do: open lots and due holds, and of the rest what was named."""
        named = {key for owner, key in wanted.hold_ids if owner == tenant_id}
        soon = max(known.now, rows.account.last_at) + timedelta(milliseconds=10)
        holds = {
            each.id: each
            for each in rows.holds.values()
            if each.id in named or (each.status == "held" and each.expires_at <= soon)
        }
        lots = {number: lot for number, lot in rows.lots.items() if lot.remaining}
        self._read_named(known, tenant_id, rows, wanted, lots)
        restoring = {key for owner, key in wanted.revoked if owner == tenant_id}
        claimed = any(lot.claimed for lot in lots.values())
        revocations = {
            key: each
            for key, each in rows.revocations.items()
            if key in restoring or (claimed and each.claimed)
        }
        known.accounts[tenant_id] = rows.account._replace(
            lots=in_burn_order(lot for lot in lots.values() if lot.remaining),
            emptied={number: lot for number, lot in lots.items() if not lot.remaining},
            holds=holds,
            revocations=revocations,
        )
        for owner, key in wanted.keys:
            if owner == tenant_id and key in rows.records:
                known.records[owner, key] = rows.records[key]
        for owner, limit_key in wanted.limits:
            if owner == tenant_id:
                used = rows.used.get(limit_key)
                known.limits.setdefault(owner, {})[limit_key] = LimitState(
                    limit_key, True, POSTS, used or 0, used is not None, None, 1
                )

    def _read_named(
        self, known: Known, tenant_id: str, rows: Rows, wanted: Wanted, lots: dict[int, Lot]
    ) -> None:
        """What operations are about that are done to what was there before, with its lots, open or not."""
        done = [each for each in rows.outcomes if each.transaction.tenant_id == tenant_id]
        for owner, kind, reference in wanted.references:
            for each in done:
                if (owner, kind, reference) == (
                    tenant_id,
                    each.transaction.kind,
                    each.transaction.reference_id,
                ):
                    known.referenced[owner, kind, reference] = each.transaction.id
        for owner, reference in wanted.granted:
            for each in done:
                if (owner, "grant", reference) == (
                    tenant_id,
                    each.transaction.kind,
                    each.transaction.reference_id,
                ):
                    number = known.granted_lots[owner, reference] = each.entries[0].lot
                    lots[number] = rows.lots[number]
        for owner, reference in wanted.revoked:
            if owner == tenant_id and reference in rows.revocations:
                number = rows.revocations[reference].lot
                lots[number] = rows.lots[number]
        for owner, transaction_id in wanted.spent:
            for each in done:
                if (owner, transaction_id) == (tenant_id, each.transaction.id):
                    known.spent[owner, transaction_id] = spent = _spent(each, rows.entries)
                    lots |= {line.lot: rows.lots[line.lot] for line in spent.lines}

    async def entries_of(
        self, link: Link, records: Sequence[Record]
    ) -> dict[tuple[str, str], tuple[Entry, ...]]:
        if records:
            await link.wait(self._takes())
        found = {}
        for record in records:
            if record.transaction is not None:
                own = record.transaction.id
                entries = self.tenants[record.tenant_id].entries
                found[record.tenant_id, own] = tuple(each for each in entries if each.transaction_id == own)
        return found

    # -- writing ------------------------------------------------------------------------------------------------

    async def write(self, link: Link, decided: Decided) -> None:
        await link.wait(self._takes())
        if self._goes_wrong("lost before the commit", 0.5):
            link.cut()
            await link.wait(0)
        if self._goes_wrong("committed late and unanswered", 0.3):
            # The other side goes on without us and keeps its locks until it is done.
            kept, link.locked = link.locked, []
            task = asyncio.create_task(self._commit_late(decided, kept, self.rng.uniform(0.01, 3)))
            self.late.add(task)
            task.add_done_callback(self.late.discard)
            link.cut()
            await link.wait(0)
        self.commit(decided)
        if self._goes_wrong("lost after the commit", 0.5):
            link.cut()
        link.unlock()
        await link.wait(self._takes())

    async def _commit_late(self, decided: Decided, locked: list[asyncio.Lock], after: float) -> None:
        await asyncio.sleep(after)
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            self.commit(decided)
        for lock in locked:
            lock.release()

    def commit(self, decided: Decided) -> None:
        """All or nothing, with the keys of the real tables."""
        keys = {(record.tenant_id, record.idempotency_key) for record in decided.records}
        entries = [(each.transaction.tenant_id, line) for each in decided.outcomes for line in each.entries]
        if len(keys) < len(decided.records) or any(key in self.tenants[who].records for who, key in keys):
            raise psycopg.errors.UniqueViolation("a key is there already")
        if any(line.seq <= len(self.tenants[who].entries) for who, line in entries):
            raise psycopg.errors.UniqueViolation("a line of this number is there already")
        for record in decided.records:
            self.tenants[record.tenant_id].records[record.idempotency_key] = _as_stored(record)
        for who, line in entries:
            self.tenants[who].entries.append(line)
        for outcome in decided.outcomes:
            rows = self.tenants[outcome.transaction.tenant_id]
            rows.outcomes.append(outcome)
            rows.lots |= {lot.lot: lot for lot in outcome.touched}
            rows.revocations |= {each.reference_id: each for each in outcome.revocations}
            if outcome.hold is not None:
                rows.holds[outcome.hold.id] = outcome.hold
        counted = [
            *((each.transaction.tenant_id, each.totals.as_of, each.counted) for each in decided.outcomes),
            *((who, each.totals.as_of, each.counted) for who, each in decided.noted),
        ]
        for who, _, states in sorted(counted, key=lambda each: each[1]):
            self.tenants[who].used |= {state.limit_key: state.used for state in states}
        for who, account in decided.after.items():
            if account is not decided.before[who]:
                self.tenants[who].account = account._replace(lots=(), emptied={}, holds={}, revocations={})


def _opened(tenant_id: str) -> Account:
    epoch = datetime.fromtimestamp(0, UTC)
    return Account(tenant_id, 0, epoch, GENESIS, ACTIVE, "", 1, ())


def _as_stored(record: Record) -> Record:
    return record._replace(answer=json.loads(json.dumps(record.answer)))


def _spent(outcome: Outcome, entries: Sequence[Entry]) -> Spent:
    back: dict[int | None, int] = {}
    for line in entries:
        back[line.refunded_seq] = back.get(line.refunded_seq, 0) + line.d_posted
    transaction = outcome.transaction
    lines = [
        SpentLine(line.seq, line.lot, -line.d_posted, back.get(line.seq, 0))
        for line in outcome.entries
        if line.d_posted < 0
    ]
    return Spent(transaction.id, transaction.kind, transaction.status, tuple(lines))
