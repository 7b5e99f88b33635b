"""The model and the ledger side by side: whatever is asked is asked of both, and every line is looked at."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf.message import Message

from shared import clock
from shared.errors import BillingError
from tests.ledger.model.credits import BalanceSeen, Booked, Credits, Moved, Refused
from tests.ledger.model.limits import Decision, Limits
from tests.ledger.model.talk import (
    ONCE,
    REMEMBERED,
    Reply,
    Talk,
    decided,
    first_time,
    kind_of,
    moment,
    patience,
    plain,
    same,
    says_replayed,
    seen,
    status_of,
)

# What the model does with an operation, given the moment it was decided at and what the ledger called it.
Plan = Callable[[Credits, datetime, Reply], list[Booked]]

STATUS = {
    "grant": "posted",
    "debit": "posted",
    "hold": "held",
    "capture": "captured",
    "void": "voided",
    "lapse": "expired",
    "expiry": "expired",
    "refund": "posted",
    "adjustment": "posted",
    "revoke": "posted",
    "restore": "posted",
    "extend": "held",
}


@dataclass
class Asked:
    """A question whose answer must never change."""

    rpc: str
    request: Message
    reply: Reply


class Follower:
    """One tenant's ledger under watch."""

    def __init__(self, talk: Talk, tenant: str) -> None:
        self.talk = talk
        self.tenant = tenant
        self.credits = Credits()
        self.limits = Limits()
        self.seq = 0
        self.asked: list[Asked] = []
        self.forgotten: list[tuple[str, Message, Plan]] = []
        self.lines: list[types.Entry] = []
        self.transactions: dict[str, types.Transaction] = {}
        # What was, after each step that booked something: the last line, its moment, the model.
        self.past: list[tuple[int, datetime, Credits]] = []
        self._pending: deque[types.Transaction] = deque()
        self._lots: dict[int, tuple[int, int]] = {}

    # -- operations on credits ----------------------------------------------------------------------------------

    def operate(self, rpc: str, request: Message, plan: Plan, *, how: str = ONCE) -> Reply:
        """Asks both and compares; the model has followed when it returns."""
        began = clock.now()
        reply = self.talk.ask(rpc, request, how, patience())
        self.pull()
        self.judge(rpc, request, reply, plan, began)
        assert not self._pending, f"nobody asked for {self._pending}"
        self.balance()
        return reply

    def judge(self, rpc: str, request: Message, reply: Reply, plan: Plan, began: datetime) -> None:
        """Whether the reply is what the model would say, and everything booked what it would book."""
        if isinstance(reply, BillingError):
            self._judge_refusal(rpc, request, reply, plan, began)
            return
        if getattr(request, "dry_run", False):
            self._judge_dry_run(reply, plan)
            return
        transaction = self._transaction_of(request, reply)
        at = moment(transaction.created_at)
        self._settled_until(transaction)
        due = self.credits.copy().settle(at)
        assert not due, (
            f"{rpc} at {at} was booked before what had fallen due: {due}, {self.credits.edges()}\n{reply}"
        )
        try:
            booked, *after = plan(self.credits, at, reply)
        except Refused as refused:
            raise AssertionError(f"{rpc} had to be refused: {refused}\n{request}\n{reply}") from refused
        self._compare(transaction, booked, request)
        consequences = []
        while self._pending and by_itself(self._pending[0]):
            consequences.append(self._pending.popleft())
        self._compare_all(consequences, after)
        last = consequences[-1] if consequences else transaction
        self.past.append((self.seq - len_of(self._pending), moment(last.created_at), self.credits.copy()))
        self._compare_reply(reply, at, booked)
        self.asked.append(Asked(rpc, request, first_time(reply)))

    def _judge_refusal(
        self, rpc: str, request: Message, refusal: BillingError, plan: Plan, began: datetime
    ) -> None:
        self._settled_until(None)
        kept = self.talk.transaction(self.tenant, request.idempotency_key)  # type: ignore[attr-defined]
        moments = [began, clock.now()] if kept is None else [moment(kept.created_at)]
        reasons = {}
        for at in moments:
            trial = self.credits.copy()
            trial.settle(at)
            try:
                plan(trial, at, refusal)
            except Refused as refused:
                reasons[refused.reason] = refused
        told = f"{rpc} was refused with {refusal!r} {refusal.metadata}, the model says {reasons}\n{request}"
        assert refusal.reason in reasons, told
        for name, value in reasons[refusal.reason].says.items():
            assert refusal.metadata.get(name) == value, told
        if refusal.reason == "INSUFFICIENT_CREDITS":
            asked, there = int(refusal.metadata["requested"]), int(refusal.metadata["available"])
            assert int(refusal.metadata["shortfall"]) == asked - there, told
        if getattr(request, "dry_run", False):
            assert kept is None, f"a dry run was remembered: {kept}"
        elif self.talk.doors.remembers_refusals(rpc) and refusal.reason in REMEMBERED:
            if kept is not None:
                assert (status_of(kept.status), kept.amount, kept.first_seq) == ("rejected", 0, 0), kept
            self.asked.append(Asked(rpc, request, refusal))
        else:
            assert kept is None, f"{refusal.reason} of {rpc} must not be remembered: {kept}"
            self.forgotten.append((rpc, request, plan))

    def _judge_dry_run(self, reply: Reply, plan: Plan) -> None:
        self._settled_until(None)
        at = moment(reply.balance.as_of)
        trial = self.credits.copy()
        trial.settle(at)
        booked = plan(trial, at, reply)[0]
        assert (kind_of(reply.transaction), reply.transaction.amount) == (booked.kind, booked.amount), reply
        self._compare_balance(reply.balance, trial.balance(at))

    def _transaction_of(self, request: Message, reply: Reply) -> types.Transaction:
        if "transaction" in reply.DESCRIPTOR.fields_by_name:
            return reply.transaction  # type: ignore[no-any-return]
        found = self.talk.transaction(self.tenant, request.idempotency_key)  # type: ignore[attr-defined]
        assert found is not None, request
        return found

    def _settled_until(self, transaction: types.Transaction | None) -> None:
        """Follows what the ledger booked by itself before an operation, and says if it is not what fell due."""
        settled = []
        while self._pending and by_itself(self._pending[0]):
            settled.append(self._pending.popleft())
        if transaction is not None and transaction.last_seq:
            assert self._pending, f"{transaction} is not in the list"
            first = self._pending.popleft()
            assert first == transaction, f"told {transaction}, listed {first}"
        if settled:
            at = moment(settled[-1].created_at)
            self._compare_all(settled, self.credits.settle(at))
            self.past.append((settled[-1].last_seq, at, self.credits.copy()))

    def _compare_all(self, found: Sequence[types.Transaction], expected: Sequence[Booked]) -> None:
        """What the ledger booked by itself: the same sums for each kind and lot; who comes first is its own affair."""
        assert totals(map(booked_of, found)) == totals(expected), f"{found}\nexpected {expected}"
        for each in found:
            assert status_of(each.status) == STATUS[kind_of(each)], each

    def _compare(self, transaction: types.Transaction, booked: Booked, request: Message) -> None:
        lines = [Moved(line.lot, line.d_posted, line.d_held) for line in transaction.entries]
        told = f"{transaction}\nexpected {booked}"
        assert kind_of(transaction) == booked.kind, told
        assert transaction.amount == booked.amount, told
        assert status_of(transaction.status) == STATUS[booked.kind], told
        if booked.kind == "refund":
            assert totals([replace(booked, lines=lines)]) == totals([booked]), told
        else:
            assert lines == booked.lines, told
        if booked.hold_id:
            assert transaction.hold_id == booked.hold_id, told
        for name in ("idempotency_key", "reason", "description", "metadata"):
            if name in request.DESCRIPTOR.fields_by_name:
                assert getattr(transaction, name) == getattr(request, name), (name, told)
        buckets: Counter[int] = Counter()
        for line in transaction.entries:
            buckets[line.bucket] += line.d_posted
        assert {each.bucket: each.credits for each in transaction.buckets} == {
            bucket: credits for bucket, credits in buckets.items() if credits
        }, told

    def _compare_reply(self, reply: Reply, at: datetime, booked: Booked) -> None:
        fields = reply.DESCRIPTOR.fields_by_name
        if "balance" in fields:
            self._compare_balance(reply.balance, self.credits.balance(at))
        if "hold" in fields and booked.hold_id:
            hold = self.credits.holds[booked.hold_id]
            expected = (hold.id, hold.reserved, hold.captured, hold.released, hold.expires_at, hold.status)
            told = reply.hold
            assert (
                *(told.id, told.reserved, told.captured, told.released, moment(told.expires_at)),
                status_of(told.status),
            ) == expected, f"{reply}\nexpected {expected}"

    def _compare_balance(self, told: types.Balance, expected: BalanceSeen) -> None:
        """Operations answer totals; lots are GetBalance's."""
        assert replace(seen(told), lots=[]) == replace(expected, lots=[]), f"{told}\nexpected {expected}"

    def race(self, calls: Sequence[tuple[str, Message, Plan]]) -> list[Reply]:
        """Different operations at once: what came of them is what some order of them would have given."""
        began = clock.now()
        replies = self.talk.ask_all([(rpc, request) for rpc, request, _ in calls])
        self.pull()
        told = list(zip(calls, replies, strict=True))
        booked = [each for each in told if not isinstance(each[1], BillingError)]
        if not booked:
            self._settled_until(None)
        between = [self.credits.copy()]
        for (rpc, request, plan), reply in sorted(booked, key=lambda each: each[1].transaction.first_seq):
            self.judge(rpc, request, reply, plan, began)
            between.append(self.credits.copy())
        after = self.credits
        for (rpc, request, plan), reply in told:
            if isinstance(reply, BillingError):
                self._judge_refusal_among(between, rpc, request, reply, plan, began)
        self.credits = after
        self.touch()
        return replies

    def _judge_refusal_among(
        self,
        moments: Sequence[Credits],
        rpc: str,
        request: Message,
        refusal: BillingError,
        plan: Plan,
        began: datetime,
    ) -> None:
        """A refusal is right if it is right at one of the moments between the operations that were booked."""
        for number, then in enumerate(moments, 1):
            self.credits = then.copy()
            try:
                self.judge(rpc, request, refusal, plan, began)
            except AssertionError:
                if number == len(moments):
                    raise
            else:
                return

    # -- what is there ------------------------------------------------------------------------------------------

    def balance(self) -> None:
        """GetBalance says what the model says."""
        reply = self.talk.ask("GetBalance", pb.GetBalanceRequest(tenant_id=self.tenant))
        expected = self.credits.balance(moment(reply.balance.as_of))
        assert seen(reply.balance) == expected, f"{reply}\nexpected {expected}"
        assert reply.balance.as_of_seq == self.seq, reply

    def touch(self) -> None:
        """Follows whatever the ledger may have settled on the occasion of a call that changes no credits."""
        self.pull()
        self._settled_until(None)
        assert not self._pending, f"nobody asked for {self._pending}"
        self.balance()

    def pull(self) -> None:
        """Reads the transactions with new lines, oldest first, and checks each line against the one before it."""
        request = pb.ListTransactionsRequest(tenant_id=self.tenant, page_size=100)
        fresh: list[types.Transaction] = []
        while True:
            page = self.talk.ask("ListTransactions", request)
            new = [each for each in page.transactions if each.last_seq > self.seq]
            fresh += new
            request.page_token = page.next_page_token
            older = [each for each in page.transactions if 0 < each.last_seq <= self.seq]
            if older or not request.page_token:
                break
        for transaction in sorted(fresh, key=lambda each: each.first_seq):
            self._check_lines(transaction)
            self._pending.append(transaction)
            self.transactions[transaction.id] = transaction

    def _check_lines(self, transaction: types.Transaction) -> None:
        assert [line.seq for line in transaction.entries] == list(
            range(transaction.first_seq, transaction.last_seq + 1)
        ), transaction
        assert sum(line.d_posted for line in transaction.entries) == transaction.amount, transaction
        for line in transaction.entries:
            assert line.seq == self.seq + 1, f"after line {self.seq}: {transaction}"
            posted, held = self._lots.get(line.lot, (0, 0))
            self._lots[line.lot] = (posted + line.d_posted, held + line.d_held)
            account = sum(posted for posted, _ in self._lots.values())
            assert (line.lot_posted_after, line.lot_held_after) == self._lots[line.lot], transaction
            assert line.account_posted_after == account, transaction
            assert line.at == transaction.created_at, transaction
            assert not self.lines or moment(line.at) >= moment(self.lines[-1].at), transaction
            self.seq = line.seq
            self.lines.append(line)

    # -- limits -------------------------------------------------------------------------------------------------

    def count(
        self,
        rpc: str,
        request: Message,
        change: Callable[[Limits, datetime], list[Decision]],
        *,
        how: str = ONCE,
    ) -> Reply:
        """An operation on limits alone: no moment is answered, so it is one between asking and being told."""
        began = clock.now()
        reply = self.talk.ask(rpc, request, how, patience())
        self.judge_limits(reply, change, began)
        if not isinstance(reply, BillingError):
            self.asked.append(Asked(rpc, request, first_time(reply)))
        elif reply.reason in REMEMBERED:
            self.asked.append(Asked(rpc, request, reply))
        self.touch()
        return reply

    def judge_limits(
        self, reply: Reply, change: Callable[[Limits, datetime], list[Decision]], began: datetime
    ) -> None:
        """Compares what the limits say, and makes the model count."""
        thought = []
        for at in (began, clock.now()):
            trial = self.limits.copy()
            try:
                decisions: list[Decision] | Refused = change(trial, at)
            except Refused as refused:
                decisions = refused
            thought.append(decisions)
            if agrees(reply, decisions):
                if not isinstance(decisions, Refused):
                    self.limits = trial
                    self._adopt_grace(reply)
                return
        raise AssertionError(f"told {reply} {getattr(reply, 'metadata', '')}, the model says {thought}")

    def _adopt_grace(self, reply: Reply) -> None:
        for message in told_limits(reply):
            if message.HasField("grace_expires_at"):
                end = moment(message.grace_expires_at)
                assert abs(end - self.limits.grace[message.limit_key]) < timedelta(seconds=5), message
                self.limits.grace[message.limit_key] = end

    # -- repeats ------------------------------------------------------------------------------------------------

    def repeat(self, asked: Asked, how: str = ONCE) -> None:
        """The same question has the same answer, whatever happened since."""
        reply = self.talk.ask(asked.rpc, asked.request, how, patience())
        told = f"first {asked.reply!r}, then {reply!r} {getattr(reply, 'metadata', '')}"
        assert same(reply, asked.reply), told
        if isinstance(reply, BillingError):
            assert reply.metadata["replayed"] == "true", told
            assert "decided_at" in reply.metadata, told
            assert plain(reply) == plain(asked.reply), told
        elif "replayed" in reply.DESCRIPTOR.fields_by_name:
            assert says_replayed(reply), told
        self.touch()

    def refuse_reuse(self, rpc: str, request: Message, field: str | None) -> None:
        """Other content under a used key changes nothing and is named."""
        reply = self.talk.ask(rpc, request)
        told = f"{rpc} {request} -> {reply!r} {getattr(reply, 'metadata', '')}; altered: {field}"
        assert isinstance(reply, BillingError), told
        assert reply.reason == "IDEMPOTENCY_KEY_REUSED", told
        assert reply.metadata.get("field") if field is None else reply.metadata["field"] in field, told
        self.touch()


def by_itself(transaction: types.Transaction) -> bool:
    return bool(transaction.idempotency_key == transaction.id)


def len_of(pending: deque[types.Transaction]) -> int:
    return sum(len(each.entries) for each in pending)


def booked_of(transaction: types.Transaction) -> Booked:
    lines = [Moved(line.lot, line.d_posted, line.d_held) for line in transaction.entries]
    return Booked(kind_of(transaction), lines, transaction.hold_id)


def totals(booked: Sequence[Booked] | map[Booked]) -> dict[tuple[str, int], tuple[int, int]]:
    """By kind and lot: moved, held."""
    sums: dict[tuple[str, int], tuple[int, int]] = {}
    for each in booked:
        for line in each.lines:
            posted, held = sums.get((each.kind, line.lot), (0, 0))
            sums[each.kind, line.lot] = (posted + line.posted, held + line.held)
    return sums


def told_limits(reply: Reply) -> list[pb.LimitDecision]:
    for name in ("limits", "limit", "decision"):
        if name in reply.DESCRIPTOR.fields_by_name:
            value = getattr(reply, name)
            return list(value) if name == "limits" else [value]
    return []


def agrees(reply: Reply, thought: list[Decision] | Refused) -> bool:
    """Whether the ledger says what the model thinks; the end of a grace period is compared where it is adopted."""
    if isinstance(thought, Refused):
        return (
            isinstance(reply, BillingError)
            and reply.reason == thought.reason
            and all(reply.metadata.get(name) == value for name, value in thought.says.items())
        )
    if isinstance(reply, BillingError):
        return False
    return [comparable(decided(each)) for each in told_limits(reply)] == [
        comparable(each) for each in thought
    ]


def comparable(decision: Decision) -> Decision:
    """Without the end of a grace period; of a service that is off the contract names no ceiling."""
    if decision.reason == "SERVICE_DISABLED":
        decision = replace(decision, limit=None, addon="")
    return replace(decision, grace_expires_at=None)
