"""After healing: whether everybody was told the truth, found out from the tables and by asking again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb

from tests.faults.journal import OF_OPERATORS_AND_ROOMS, Answer, Call, Journal, Told
from tests.faults.ledgers import Client
from tests.faults.operations import COUNTED, a_debit
from tests.faults.writers import PATIENT_SECONDS, Writers, settle

AT_ONCE = 16
# Rows that the ledger writes by itself: time and claims; their key is their own id.
OF_ITS_OWN = {"expiry", "lapse", "revoke"}

ROWS = """
SELECT tenant_id, idempotency_key, id, kind, tx_status, amount, last_seq - first_seq + (last_seq > 0)::int,
       (SELECT count(*) FROM credit_entries e WHERE e.tenant_id = t.tenant_id AND e.transaction_id = t.id)
FROM credit_transactions t WHERE tenant_id = ANY(%(tenants)s)
UNION ALL
SELECT tenant_id, idempotency_key, '', kind, CASE WHEN rejected THEN 'rejected' ELSE 'noted' END, 0, 0, 0
FROM tenant_operations WHERE tenant_id = ANY(%(tenants)s)"""

SUMS = """
SELECT tenant_id, balance, held, seq,
    (SELECT coalesce(sum(amount), 0) FROM credit_transactions t WHERE t.tenant_id = c.tenant_id),
    (SELECT coalesce(sum(d_posted), 0) FROM credit_entries e WHERE e.tenant_id = c.tenant_id),
    (SELECT coalesce(sum(d_held), 0) FROM credit_entries e WHERE e.tenant_id = c.tenant_id),
    (SELECT count(*) FROM credit_entries e WHERE e.tenant_id = c.tenant_id),
    (SELECT coalesce(max(seq), 0) FROM credit_entries e WHERE e.tenant_id = c.tenant_id),
    (SELECT coalesce(sum(remaining), 0) FROM credit_buckets b WHERE b.tenant_id = c.tenant_id),
    (SELECT coalesce(sum(held), 0) FROM credit_buckets b WHERE b.tenant_id = c.tenant_id)
FROM tenant_credits c WHERE tenant_id = ANY(%(tenants)s)"""


@dataclass(frozen=True)
class Row:
    """One row of credit_transactions, or of tenant_operations, which move no credits."""

    tenant_id: str
    key: str
    id: str
    kind: str
    status: str
    amount: int
    lines_named: int
    lines: int


async def verify(writers: Writers, operator_url: str) -> None:
    """Everything that a caller may rely on, against the tables and against a repeat of every call."""
    journal, client, tenants = writers.journal, writers.clients[0], list(writers.world.tenants)
    tables = Tables(operator_url, tenants)
    for each in writers.clients:
        await until_idle(each, tenants)
    rows = await tables.rows()
    check_first_answers(journal, rows)
    unsettled = [call for call in journal.calls if not call.is_settled]
    await each_of(unsettled, lambda call: settle_unknown(call, client, rows))
    await each_of(journal.calls, lambda call: replay(call, client))
    rows = await tables.rows()
    check_every_key(journal, rows)
    await each_of(journal.calls, lambda call: check_reading(call, client))
    await check_sums(journal, tables)
    await check_usage(journal, client, tenants)
    await check_proof(client, tenants)


async def until_idle(client: Client, tenants: list[str]) -> None:
    """What was left in a queue by callers who went away has been decided: it stood before this."""
    for tenant in tenants:
        await settle(Call("idle", "Debit", a_debit(tenant, "idle", 1, dry_run=True)), client)


class Tables:
    """What an operator sees."""

    def __init__(self, url: str, tenants: list[str]) -> None:
        self._url = url
        self._tenants = tenants

    async def select(self, statement: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self._url) as db:
            cursor = await db.execute(statement, {"tenants": self._tenants})
            return await cursor.fetchall()

    async def rows(self) -> dict[str, Row]:
        """By idempotency key, which the writers make unique over all tenants."""
        found = [Row(*row) for row in await self.select(ROWS)]
        twice = [key for key, times in Counter(row.key for row in found).items() if times > 1]
        assert not twice, f"booked more than once: {twice}"
        return {row.key: row for row in found}


def check_first_answers(journal: Journal, rows: dict[str, Row]) -> None:
    """What was acknowledged is there, what was refused is not, before anybody asks again."""
    for call, key, answers in journal.each():
        row = rows.get(key)
        told = {answer.told for answer in answers}
        if Told.OK in told:
            assert row is not None, f"{key} was acknowledged and is lost"
            assert row.status != "rejected", f"{key} was acknowledged and is stored as refused"
        elif Told.REFUSED in told:
            assert row is None or row.status == "rejected", f"{key} was refused and is booked: {row}"
        elif Told.UNKNOWN not in told:
            assert row is None, f"{key} was turned away and is booked: {row}"
        assert not {Told.OK, Told.REFUSED} <= told, f"{call.name} {key}: {answers}"


async def settle_unknown(call: Call, client: Client, rows: dict[str, Row]) -> None:
    """A retry with the same key finds what is there, or does it now."""
    known = {key: any(answer.is_definite for answer in told) for key, told in call.answers.items()}
    await settle(call, client)
    for key, told in call.answers.items():
        if known[key]:
            continue
        answer = next(answer for answer in told if answer.is_definite)
        was_there = rows.get(key)
        assert not answer.leaves_a_record or answer.replayed == (was_there is not None), (
            key,
            answer,
            was_there,
        )
        if was_there is not None and answer.transaction is not None:
            assert answer.transaction.id == was_there.id


async def replay(call: Call, client: Client) -> None:
    """The same request again is told the same, and that it is a repeat."""
    if call.rpc in OF_OPERATORS_AND_ROOMS and not first_definite(call.answers[call.keys[0]]).leaves_a_record:
        return
    again = await call.ask(client.send(call.rpc, timeout=PATIENT_SECONDS))
    for key, answer in again.items():
        told = [each for each in call.answers[key] if each.is_definite]
        first = told[0]
        if not first.leaves_a_record:
            assert answer.told is Told.REFUSED, f"{key} was refused and is booked now: {answer}"
            continue
        contents = {each.content for each in [*told, answer]}
        assert contents == {first.content}, f"{key} was told different things:\n{[*told, answer]}"
        assert answer.replayed, f"{key} was done anew: {answer}"


def check_every_key(journal: Journal, rows: dict[str, Row]) -> None:
    """The tables hold what callers were told, once, and nothing else."""
    asked = {}
    for _, key, answers in journal.each():
        answer = asked[key] = first_definite(answers)
        row = rows.get(key)
        if row is None:
            assert not answer.leaves_a_record, f"{key}: {answer} left no record"
            continue
        assert (row.status == "rejected") == (answer.told is Told.REFUSED), f"{key}: {answer}, {row}"
        assert row.lines == row.lines_named, f"{key}: half a transaction: {row}"
        if answer.told is Told.REFUSED:
            assert (row.amount, row.lines) == (0, 0), f"{key} was refused and has an effect: {row}"
        elif answer.transaction is not None:
            told = answer.transaction
            assert (told.id, told.amount, len(told.entries)) == (row.id, row.amount, row.lines), (
                f"{key}: {row}"
            )
    strangers = [row for key, row in rows.items() if key not in asked and not is_of_its_own(row)]
    assert not strangers, f"nobody asked for these: {strangers}"


def is_of_its_own(row: Row) -> bool:
    return row.kind in OF_ITS_OWN and row.key == row.id


async def check_reading(call: Call, client: Client) -> None:
    """GetTransaction by the key answers what the call itself was told."""
    for key, answers in call.answers.items():
        told = first_definite(answers).transaction
        if told is not None:
            found = await client.service.GetTransaction(
                pb.GetTransactionRequest(tenant_id=told.tenant_id, idempotency_key=key)
            )
            assert found.transaction == told, f"{key}: {found.transaction} is not {told}"


async def check_sums(journal: Journal, tables: Tables) -> None:
    """The balance is the sum of everything: rows, lines, lots, and what callers were told."""
    told: Counter[str] = Counter()
    for _, _, answers in journal.each():
        if transaction := first_definite(answers).transaction:
            told[transaction.tenant_id] += transaction.amount
    for row in (await tables.rows()).values():
        if is_of_its_own(row):
            told[row.tenant_id] += row.amount
    found = await tables.select(SUMS)
    assert found
    for tenant, balance, held, seq, amounts, posted, d_held, lines, last, remaining, lots_held in found:
        assert {amounts, posted, remaining, told[tenant]} == {balance}, (
            f"{tenant}: {balance=} {amounts=} {told=}"
        )
        assert {d_held, lots_held} == {held}, f"{tenant}: {held=} {d_held=} {lots_held=}"
        assert {lines, last} == {seq}, f"{tenant}: {seq=} {lines=} {last=}"
        assert balance >= held >= 0


async def check_usage(journal: Journal, client: Client, tenants: list[str]) -> None:
    """What was counted is what callers were told was counted."""
    told: Counter[str] = Counter()
    for call, _, answers in journal.each():
        counts = isinstance(call.request, pb.ConsumeLimitsRequest | pb.AuthorizeRequest)
        if counts and first_definite(answers).told is Told.OK:
            told[call.request.tenant_id] += sum(
                each.amount for each in call.request.limits if each.limit_key == COUNTED
            )
    for tenant in tenants:
        answer = await client.funding.ListUsage(funding_pb.ListUsageRequest(tenant_id=tenant))
        used = {usage.limit_key: usage.used for usage in answer.usage}
        assert used.get(COUNTED, 0) == told[tenant], f"{tenant}: {used=}, told={told[tenant]}"


async def check_proof(client: Client, tenants: list[str]) -> None:
    """The ledger recomputes itself from its lines and its hash chain."""
    for tenant in tenants:
        answer = await client.admin.VerifyLedger(admin_pb.VerifyLedgerRequest(tenant_id=tenant))
        (proof,) = answer.verifications
        assert proof.verified, proof


def first_definite(answers: list[Answer]) -> Answer:
    return next(answer for answer in answers if answer.is_definite)


async def each_of(calls: Iterable[Call], work: Callable[[Call], Awaitable[None]]) -> None:
    """Many at once, in no order; the first failure is raised."""
    waiting = iter(calls)

    async def worker() -> None:
        for call in waiting:
            await work(call)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
