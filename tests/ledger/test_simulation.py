"""Rules and lanes over a store that fails before, in and after its commits, a few hundred seeds in seconds.

Two processes serve the same tenants. Callers ask again with the same key until they are told; some go away. At the
end what was committed is followed with the reference model, and everybody was told what is there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from services.ledger import lanes as lanes_module
from services.ledger.lanes import Lanes
from services.ledger.rules.model import GENESIS, Noted, Outcome, Transaction
from services.ledger.rules.requests import (
    DEBIT_SHORTFALL,
    EXPIRE_AGAIN,
    CaptureHold,
    Consume,
    Debit,
    ExtendHold,
    Grant,
    Keyed,
    PlaceHold,
    Refund,
    Revoke,
    Settle,
    VoidHold,
)
from services.ledger.store import load, write
from shared import database
from shared.errors import BillingError, Unavailable
from tests.faults import soaking
from tests.ledger.model import credits as reference
from tests.ledger.model.credits import Booked, Credits, Moved
from tests.ledger.model.follow import totals
from tests.ledger.model.memory import POSTS, Memory, Rows, now, virtual_loop

SEEDS = 60
TENANTS = ("ann", "bob")
CALLERS, CALLS = 6, 8


@dataclass
class Told:
    """What a caller was told about one operation."""

    operation: Keyed
    answers: list[Any] = field(default_factory=list)


class World:
    """One simulated evening."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.postgres = Memory(self.rng)
        self.told: dict[tuple[str, str], Told] = {}
        self.holds: list[tuple[str, str]] = []
        self.spent: list[tuple[str, str]] = []
        self.grants: list[tuple[str, str]] = []
        self.processes: list[Lanes] = []

    async def run(self) -> None:
        settings = {"count": 1, "waiting_max": 1000, "waiting_per_tenant_max": 1000}
        async with Lanes("memory:1", **settings) as one, Lanes("memory:2", **settings) as two:
            self.processes = [one, two]
            for tenant in TENANTS:
                await self.ask(self.a_grant(tenant))
            await asyncio.gather(*(self.caller() for _ in range(CALLERS)))
            self.postgres.faults = 0
            await asyncio.gather(*self.postgres.late)
            await asyncio.sleep(60)  # whatever is in doubt is over
            for lanes in self.processes:
                for tenant in TENANTS:  # whoever comes now is served, and at once
                    async with asyncio.timeout(5):
                        await lanes.submit(Settle(tenant))

    async def caller(self) -> None:
        for _ in range(CALLS):
            await asyncio.sleep(self.rng.expovariate(2))
            operation = self.an_operation()
            if self.rng.random() < 0.15:
                await self.ask_and_leave(operation)
            else:
                await self.ask(operation)

    async def ask_and_leave(self, operation: Keyed) -> None:
        call = asyncio.create_task(self.ask(operation))
        await asyncio.sleep(self.rng.uniform(0, 0.02))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    async def ask(self, operation: Keyed) -> None:
        """Asks until there is a definite answer, whichever process gives it."""
        told = self.told.setdefault((operation.tenant_id, operation.idempotency_key), Told(operation))
        while True:
            try:
                answer: Any = await self.rng.choice(self.processes).submit(operation)
            except Unavailable:
                await asyncio.sleep(self.rng.uniform(0, 1))
                continue
            except BillingError as refusal:
                answer = refusal
            told.answers.append(answer)
            if isinstance(answer, Outcome):
                self.note(answer)
            return

    def note(self, outcome: Outcome) -> None:
        transaction = outcome.transaction
        if outcome.hold is not None and transaction.kind == "hold":
            self.holds.append((transaction.tenant_id, outcome.hold.id))
        if transaction.kind in ("debit", "capture"):
            self.spent.append((transaction.tenant_id, transaction.id))
        if transaction.kind == "grant":
            self.grants.append((transaction.tenant_id, transaction.reference_id))

    # -- what is asked ------------------------------------------------------------------------------------------

    def an_operation(self) -> Keyed:
        """Mostly something new; now and then what somebody asked before."""
        if self.told and self.rng.random() < 0.15:
            return self.rng.choice(list(self.told.values())).operation
        tenant = self.rng.choice(TENANTS)
        make: Callable[[str], Keyed] = self.rng.choice(
            (
                *(self.a_grant, self.a_revocation, self.a_consumption),
                *(self.a_debit, self.a_debit, self.a_debit),
                *(self.a_hold, self.a_hold, self.with_a_hold, self.with_a_hold, self.with_a_hold),
                *(self.a_refund, self.a_refund),
            )
        )
        return make(tenant)

    def key(self, tenant: str) -> dict[str, Any]:
        return {"tenant_id": tenant, "idempotency_key": f"k{self.rng.getrandbits(48):x}"}

    def a_grant(self, tenant: str) -> Grant:
        named, ends = self.key(tenant), self.rng.choice([None, None, 3, 10])
        return Grant(
            **named,
            bucket=reference.PERMANENT if ends is None else reference.SUBSCRIPTION,
            credits=self.rng.randint(5, 40),
            expires_at=None if ends is None else now() + timedelta(seconds=ends),
            reference_id=named["idempotency_key"],
            reason="credit_pack",
        )

    def a_debit(self, tenant: str) -> Debit:
        credits = self.rng.randint(1, 15)
        least = self.rng.choice([credits, credits, 1])
        return Debit(**self.key(tenant), credits=credits, min_credits=least, reason="blog.publish")

    def a_hold(self, tenant: str) -> PlaceHold:
        ttl = timedelta(seconds=self.rng.choice([1, 4, 60]))
        return PlaceHold(
            **self.key(tenant), credits=self.rng.randint(1, 15), ttl=ttl, reason="media.transcode"
        )

    def with_a_hold(self, tenant: str) -> Keyed:
        tenant, hold_id = self.rng.choice(self.holds or [(tenant, "hold_unknown")])
        named: dict[str, Any] = {**self.key(tenant), "hold_id": hold_id}
        kind = self.rng.randrange(4)
        if kind == 0:
            return VoidHold(**named)
        if kind == 1:
            return ExtendHold(**named, ttl=timedelta(seconds=5))
        more = self.rng.random() < 0.5
        return CaptureHold(
            **named, credits=self.rng.randint(1, 10), more_follows=more, over_capture_policy=DEBIT_SHORTFALL
        )

    def a_refund(self, tenant: str) -> Refund:
        tenant, spent = self.rng.choice(self.spent or [(tenant, "txn_unknown")])
        credits = self.rng.choice([None, 1, 5])
        return Refund(
            **self.key(tenant),
            transaction_id=spent,
            credits=credits,
            expired_policy=EXPIRE_AGAIN,
            reason="blog.publish_failed",
        )

    def a_revocation(self, tenant: str) -> Revoke:
        tenant, granted = self.rng.choice(self.grants or [(tenant, "pay_unknown")])
        named = self.key(tenant)
        return Revoke(
            **named,
            grant_reference_id=granted,
            credits=self.rng.randint(1, 30),
            reference_id=named["idempotency_key"],
            reason="payment.refund",
        )

    def a_consumption(self, tenant: str) -> Consume:
        return Consume(**self.key(tenant), limits=(("blog.posts", self.rng.randint(1, 3)),))


# -- what must be true afterwards -----------------------------------------------------------------------------------


def check(world: World) -> None:
    for tenant in TENANTS:
        rows = world.postgres.tenants[tenant]
        check_lines(rows)
        check_holds(rows)
        follow(rows, {key: told.operation for (who, key), told in world.told.items() if who == tenant})
        check_usage(world, tenant, rows)
    for (tenant, key), told in world.told.items():
        check_told(told, world.postgres.tenants[tenant], key)
    assert not any(lock.locked() for lock in world.postgres.locks.values())


def check_lines(rows: Rows) -> None:
    """Gapless, in order of time, each total what the line before and the line itself add up to."""
    assert [line.seq for line in rows.entries] == list(range(1, rows.account.seq + 1))
    sums: dict[int, tuple[int, int]] = {}
    for before, line in zip([None, *rows.entries], rows.entries, strict=False):
        posted, held = sums.get(line.lot, (0, 0))
        sums[line.lot] = (posted + line.d_posted, held + line.d_held)
        assert (line.lot_posted_after, line.lot_held_after) == sums[line.lot]
        assert line.account_posted_after == sum(posted for posted, _ in sums.values())
        assert before is None or before.at <= line.at
    assert {lot.lot: (lot.remaining, lot.held) for lot in rows.lots.values()} == sums
    assert rows.account.chain_head == (rows.entries[-1].hash if rows.entries else GENESIS)
    keys = [outcome.transaction.idempotency_key for outcome in rows.outcomes]
    assert len(keys) == len(set(keys))


def check_holds(rows: Rows) -> None:
    held: Counter[int] = Counter()
    for hold in rows.holds.values():
        assert hold.reserved == hold.captured + hold.released + sum(leg.open for leg in hold.legs)
        assert (hold.status == "held") == bool(hold.open)
        held.update({leg.lot: leg.open for leg in hold.legs})
    assert {number: lot.held for number, lot in rows.lots.items() if lot.held} == dict(+held)


def follow(rows: Rows, asked: dict[str, Keyed]) -> None:
    """The model does what was committed, in that order, and comes to the same lines."""
    model, by_itself, expected = Credits(), list[Booked](), list[Booked]()
    for outcome in rows.outcomes:
        transaction = outcome.transaction
        lines = [Moved(line.lot, line.d_posted, line.d_held) for line in outcome.entries]
        assert sum(line.posted for line in lines) == transaction.amount
        if transaction.idempotency_key == transaction.id:
            by_itself.append(Booked(transaction.kind, lines, transaction.hold_id))
            continue
        expected += model.settle(transaction.created_at)
        booked, *after = apply(model, asked[transaction.idempotency_key], transaction)
        assert totals([booked]) == totals([Booked(transaction.kind, lines)]), (transaction, lines, booked)
        expected += after
    expected += model.settle(rows.account.last_at)
    assert totals(by_itself) == totals(expected)
    assert {lot.number: (lot.posted, lot.held) for lot in model.lots} == {
        number: (lot.remaining, lot.held) for number, lot in rows.lots.items()
    }


def apply(model: Credits, asked: Keyed, done: Transaction) -> Sequence[Booked]:
    at = done.created_at
    match asked:
        case Grant():
            return model.grant(at, asked.bucket, asked.credits, asked.expires_at, asked.reference_id)
        case Debit():
            return model.debit(at, asked.credits, least=asked.min_credits, transaction_id=done.id)
        case PlaceHold():
            return model.place(at, asked.credits, asked.ttl, done.hold_id)
        case CaptureHold():
            return model.capture(
                at,
                asked.hold_id,
                asked.credits,
                more_follows=asked.more_follows,
                debit_shortfall=True,
                transaction_id=done.id,
            )
        case VoidHold():
            return model.void(at, asked.hold_id)
        case ExtendHold():
            return model.extend(at, asked.hold_id, asked.ttl)
        case Refund():
            return model.refund(at, asked.transaction_id, asked.credits, reference.EXPIRE_AGAIN)
        case Revoke():
            return model.revoke(at, asked.grant_reference_id, asked.credits, asked.reference_id)[0]
    raise AssertionError(f"{asked} books nothing")


def check_usage(world: World, tenant: str, rows: Rows) -> None:
    """As much is counted as operations were let through, and never more than the plan has."""
    counted = 0
    for (who, key), told in world.told.items():
        if who == tenant and isinstance(told.operation, Consume):
            record = rows.records.get(key)
            if record is not None and not record.rejected:
                counted += told.operation.limits[0][1]
    assert rows.used.get("blog.posts", 0) == counted
    assert POSTS.value is not None
    assert counted <= POSTS.value


def check_told(told: Told, rows: Rows, key: str) -> None:
    """Everybody who asked was told the same, and it is what is there."""
    record = rows.records.get(key)
    done = [outcome for outcome in rows.outcomes if outcome.transaction.idempotency_key == key]
    for answer in told.answers:
        if isinstance(answer, Outcome):
            assert [outcome.transaction for outcome in done] == [answer.transaction], (answer, done)
            assert answer.entries == done[0].entries
            assert answer.totals == done[0].totals
        elif isinstance(answer, Noted):
            assert record is not None
            assert not record.rejected
        else:
            assert not done, f"{answer!r} was told of what was done: {done}"
    reasons = {answer.reason for answer in told.answers if isinstance(answer, BillingError)}
    if record is not None and told.answers:
        assert record.rejected == bool(reasons), (record, told.answers)
        assert len(reasons) <= 1, reasons


# -- the tests ------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The lanes' door to the database leads to whatever Memory their connection belongs to."""
    monkeypatch.setattr(load, "load", lambda link, *rest, **named: link.postgres.load(link, *rest, **named))
    monkeypatch.setattr(load, "entries_of", lambda link, records: link.postgres.entries_of(link, records))
    monkeypatch.setattr(write, "write", lambda link, decided: link.postgres.write(link, decided))
    monkeypatch.setattr(database, "cut", lambda link: link.cut())
    return monkeypatch


def simulate(seed: int, memory: pytest.MonkeyPatch) -> World:
    random.seed(seed)  # the lanes' back-off
    with asyncio.Runner(loop_factory=virtual_loop) as runner:
        world = World(seed)

        class Connections:
            connect = world.postgres.connect

        memory.setattr(lanes_module, "AsyncConnection", Connections)
        runner.run(world.run())
        check(world)
    return world


def test_whatever_fails_everybody_is_told_what_is_there(memory: pytest.MonkeyPatch) -> None:
    happened: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for seed in range(SEEDS):
        try:
            world = simulate(seed, memory)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        happened.update(world.postgres.happened)
        for rows in world.postgres.tenants.values():
            kinds.update(outcome.transaction.kind for outcome in rows.outcomes)

    assert {*happened} == {
        "connect",
        "lost before the lock",
        "lost while loading",
        "slow",
        "lost before the commit",
        "committed late and unanswered",
        "lost after the commit",
    }
    wanted = {"grant", "debit", "hold", "capture", "void", "extend", "lapse", "expiry", "refund", "revoke"}
    assert {*kinds} == wanted


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
def test_whatever_fails_for_as_long_as_asked(memory: pytest.MonkeyPatch) -> None:
    seed = soaking.any_seed()
    ends_at, rounds = time.monotonic() + soaking.SECONDS, 0
    while time.monotonic() < ends_at:
        simulate(seed + rounds, memory)
        rounds += 1
    print(f"{rounds} evenings")
    assert rounds
