"""A batch of operations, decided one after the other over what was loaded under the locks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from services.ledger import errors
from services.ledger.rules import answers, fingerprint, operations
from services.ledger.rules.model import Account, Debit, Grant, Operation, Outcome, Record, Settle, Transaction
from shared.errors import BillingError, FailedPrecondition

# (moment, position in the batch) → an id that sorts by both.
NewId = Callable[[datetime, int], str]

_TICK = timedelta(microseconds=1)


@dataclass(slots=True)
class Known:
    """What is known about a batch, read under the locks of its tenants."""

    now: datetime
    accounts: dict[str, Account]
    records: dict[tuple[str, str], Record]  # by tenant and idempotency key
    granted: dict[tuple[str, str], str]  # transaction id by tenant and reference


@dataclass(frozen=True, slots=True)
class Repeat:
    """An operation that was decided by an earlier call; its answer is what is stored."""

    record: Record


@dataclass(frozen=True, slots=True)
class Settled:
    """What time had already taken from a tenant, now written down."""

    expiries: tuple[Outcome, ...]


Answer = Outcome | Repeat | Settled | BillingError


@dataclass(slots=True)
class Decided:
    """One answer for each operation, and everything that must be written for them to be true."""

    answers: list[Answer] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    before: dict[str, Account] = field(default_factory=dict)
    after: dict[str, Account] = field(default_factory=dict)


def decide(known: Known, batch: Sequence[Operation], new_id: NewId) -> Decided:
    """Decides every operation in order; each sees what the ones before it did, refusals included."""
    return _Batch(known, new_id).run(batch)


class _Batch:
    def __init__(self, known: Known, new_id: NewId) -> None:
        self._known = known
        self._new_id = new_id
        self._made = 0
        self._decided = Decided(before=dict(known.accounts), after=dict(known.accounts))
        self._settled: dict[str, tuple[Outcome, ...]] = {}

    def run(self, batch: Sequence[Operation]) -> Decided:
        for tenant_id, account in self._known.accounts.items():
            self._settle(tenant_id, account)
        for operation in batch:
            try:
                answer: Answer = self._one(operation)
            except BillingError as refusal:
                answer = refusal
            self._decided.answers.append(answer)
        return self._decided

    def _settle(self, tenant_id: str, account: Account) -> None:
        after, expiries = operations.settle(account, self._moment(account), self._id_at(account))
        self._decided.after[tenant_id] = after
        self._settled[tenant_id] = tuple(expiries)
        for expiry in expiries:
            self._keep(
                Record(expiry.transaction, b"", fingerprint.VERSION, answers.answer_of_totals(expiry.totals)),
                expiry,
            )

    def _one(self, operation: Operation) -> Answer:
        if isinstance(operation, Settle):
            return Settled(self._settled.get(operation.tenant_id, ()))
        account = self._decided.after.get(operation.tenant_id)
        if account is None:
            raise errors.UnknownTenant(
                f"tenant {operation.tenant_id} has no account; provision it first",
                tenant_id=operation.tenant_id,
            )
        if repeat := self._earlier(operation):
            return repeat
        dry_run = isinstance(operation, Debit) and operation.dry_run
        if isinstance(operation, Grant):
            self._refuse_second_funding(operation)
        now = self._moment(account)
        try:
            after, outcome = operations.apply(account, operation, now, self._id_at(account))
        except errors.REMEMBERED as refusal:
            if not dry_run:
                self._remember(operation, refusal, now)
            raise
        if dry_run:
            return outcome
        self._decided.after[operation.tenant_id] = after
        if isinstance(operation, Grant):
            self._known.granted[operation.tenant_id, operation.reference_id] = outcome.transaction.id
        answer = answers.answer_of_totals(outcome.totals)
        self._keep(
            Record(outcome.transaction, fingerprint.of(operation), fingerprint.VERSION, answer), outcome
        )
        return outcome

    def _earlier(self, operation: Debit | Grant) -> Answer | None:
        record = self._known.records.get((operation.tenant_id, operation.idempotency_key))
        if record is None:
            return None
        if field_name := fingerprint.differing_field(operation, record.fingerprint):
            raise errors.IdempotencyKeyReused(
                f"idempotency_key was used before with another {field_name}; use a new key for a new operation",
                field=field_name,
                idempotency_key=operation.idempotency_key,
            )
        if record.transaction.status == "rejected":
            raise answers.refusal_of_answer(record.answer, record.transaction.created_at)
        for outcome in self._decided.outcomes:
            if outcome.transaction.id == record.transaction.id:
                return replace(outcome, replayed=True)
        return Repeat(record)

    def _refuse_second_funding(self, grant: Grant) -> None:
        if earlier := self._known.granted.get((grant.tenant_id, grant.reference_id)):
            raise errors.DuplicateReference(
                f"{grant.reference_id} funded before", reference_id=grant.reference_id, transaction_id=earlier
            )

    def _remember(self, operation: Debit | Grant, refusal: FailedPrecondition, now: datetime) -> None:
        transaction = Transaction(
            id=self._next_id(now),
            tenant_id=operation.tenant_id,
            idempotency_key=operation.idempotency_key,
            kind="debit" if isinstance(operation, Debit) else "grant",
            status="rejected",
            amount=0,
            reason=operation.reason,
            description=operation.description,
            reference_id=operation.reference_id,
            hold_id="",
            refunded_transaction_id="",
            metadata=operation.metadata if isinstance(operation, Debit) else {},
            first_seq=0,
            last_seq=0,
            created_at=now,
        )
        answer = answers.answer_of_refusal(refusal)
        self._keep(Record(transaction, fingerprint.of(operation), fingerprint.VERSION, answer), None)

    def _keep(self, record: Record, outcome: Outcome | None) -> None:
        transaction = record.transaction
        self._known.records[transaction.tenant_id, transaction.idempotency_key] = record
        self._decided.records.append(record)
        if outcome is not None:
            self._decided.outcomes.append(outcome)

    def _moment(self, account: Account) -> datetime:
        """The database's time, pushed on where needed so that a tenant's time never stands still or goes back."""
        return max(self._known.now, account.last_at + _TICK)

    def _id_at(self, account: Account) -> Callable[[], str]:
        return lambda: self._next_id(self._moment(account))

    def _next_id(self, at: datetime) -> str:
        self._made += 1
        return self._new_id(at, self._made % 4096)
