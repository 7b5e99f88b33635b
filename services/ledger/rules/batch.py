"""A batch of operations, decided one after the other over what was loaded under the locks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from services.ledger import errors
from services.ledger.rules import (
    answers,
    fingerprint,
    funding,
    holds,
    mirrors,
    refunds,
    revocations,
    settling,
    spending,
    states,
    usage,
)
from services.ledger.rules.limits import LimitState
from services.ledger.rules.model import Account, Noted, Outcome, Record, Spent, Transaction
from services.ledger.rules.requests import (
    Adjust,
    Authorize,
    CaptureHold,
    Consume,
    Debit,
    ExtendHold,
    Freeze,
    Grant,
    Group,
    Keyed,
    Operation,
    PlaceHold,
    RebuildMirrors,
    Refund,
    RefundOverdebit,
    Release,
    Restore,
    Revoke,
    Settle,
    SetUsage,
    Unfreeze,
    VoidHold,
)
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
    # transaction id by tenant, kind and reference, for what happens once per reference
    referenced: dict[tuple[str, str, str], str] = field(default_factory=dict)
    granted_lots: dict[tuple[str, str], int] = field(default_factory=dict)  # by tenant and grant reference
    spent: dict[tuple[str, str], Spent] = field(default_factory=dict)  # by tenant and transaction
    limits: dict[str, dict[str, LimitState]] = field(default_factory=dict)  # by tenant and limit key
    # By tenant, where mirrors are written anew; None once they were.
    stored: dict[str, mirrors.Stored | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Repeat:
    """An operation that was decided by an earlier call; its answer is what is stored."""

    record: Record


@dataclass(frozen=True, slots=True)
class Settled:
    """What time had already taken from a tenant, now written down."""

    booked: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Grouped:
    """One answer for each debit of a group."""

    answers: tuple["Answer", ...]


Refusal: TypeAlias = BillingError | usage.NotAuthorized
Answer: TypeAlias = Outcome | Noted | Repeat | Settled | Grouped | Refusal


@dataclass(slots=True)
class Decided:
    """One answer for each operation, and everything that must be written for them to be true."""

    answers: list[Answer] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    noted: list[tuple[str, Noted]] = field(default_factory=list)  # with their tenants
    # (tenant, a limit as usage left it, when), in the order of the decisions: moments may be equal.
    counted: list[tuple[str, LimitState, datetime]] = field(default_factory=list)
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
        self._settled: dict[str, list[Outcome]] = {}
        # What this batch did under each key.
        self._done: dict[tuple[str, str], Outcome | Noted] = {}

    def run(self, batch: Sequence[Operation]) -> Decided:
        for operation in batch:
            try:
                answer = self._one(operation)
            except (BillingError, usage.NotAuthorized) as refusal:
                answer = refusal
            self._decided.answers.append(answer)
        return self._decided

    def _one(self, operation: Operation) -> Answer:
        if operation.tenant_id not in self._settled:
            self._settled[operation.tenant_id] = []
            self._settle(operation.tenant_id)
        match operation:
            case Settle():
                return Settled(tuple(self._settled[operation.tenant_id]))
            case Group():
                return self._group(operation)
            case _:
                return self._keyed(operation)

    def _settle(self, tenant_id: str) -> None:
        account = self._account(tenant_id)
        after, booked = settling.settle(account, self._moment(account), self._id_at(account))
        if booked:
            self._take_over(after, booked)

    def _take_over(self, after: Account, booked: list[Outcome]) -> None:
        self._decided.after[after.tenant_id] = after
        self._settled[after.tenant_id] += booked
        for outcome in booked:
            self._keep(_record(outcome, b"", outcome.transaction.kind), outcome)

    def _keyed(self, operation: Keyed) -> Answer:
        if repeat := self._earlier(operation):
            return repeat
        self._refuse_second_reference(operation)
        account = self._account(operation.tenant_id)
        now = self._moment(account)
        dry_run = getattr(operation, "dry_run", False)
        try:
            after, outcome = self._apply(account, operation, now)
        except usage.NotAuthorized as refused:
            if isinstance(refused.refusal, errors.REMEMBERED) and not dry_run:
                self._remember(operation, refused.refusal, now, refused.parts)
            raise
        except errors.REMEMBERED as refusal:
            if operation.remembers and not dry_run:
                self._remember(operation, refusal, now, None)
            raise
        # What returns to a lot that has ended, or is claimed, is gone again at once: the balance answered says so.
        after, booked = settling.settle(after, self._moment(after), self._id_at(after))
        if booked:
            outcome = outcome._replace(totals=booked[-1].totals._replace(as_of=outcome.totals.as_of))
        if not dry_run:
            self._note(operation, outcome, now)
            self._take_over(after, booked)
        return outcome

    def _apply(self, account: Account, operation: Keyed, now: datetime) -> tuple[Account, Outcome | Noted]:
        new_id = self._id_at(account)
        limits = self._known.limits.get(operation.tenant_id, {})
        match operation:
            case Debit():
                return spending.debit(account, operation, now, new_id)
            case PlaceHold():
                return holds.place(account, operation, now, new_id)
            case CaptureHold():
                return holds.capture(account, operation, now, new_id)
            case VoidHold():
                return holds.void(account, operation, now, new_id)
            case ExtendHold():
                return holds.extend(account, operation, now, new_id)
            case Refund():
                return self._refund(account, operation, now)
            case Grant():
                return funding.grant(account, operation, now, new_id)
            case Revoke():
                lot = self._known.granted_lots.get((operation.tenant_id, operation.grant_reference_id))
                return revocations.revoke(account, operation, lot, now, new_id)
            case Restore():
                return revocations.restore(account, operation, now, new_id)
            case Adjust():
                return funding.adjust(account, operation, now, new_id)
            case Freeze():
                return states.freeze(account, operation, now)
            case Unfreeze():
                return states.unfreeze(account, operation, now)
            case RebuildMirrors():
                return self._rebuild(account, operation, now)
            case Consume() | Release() | SetUsage():
                return account, usage.count(account, operation, limits, now)
            case Authorize():
                return usage.authorize(account, operation, limits, now, new_id)

    def _refund(self, account: Account, operation: Refund, now: datetime) -> tuple[Account, Outcome]:
        asked = operation.tenant_id, operation.transaction_id
        spent = self._known.spent.get(asked)
        after, outcome = refunds.refund(account, operation, spent, now, self._id_at(account))
        if spent is not None:
            left = self._known.spent[asked] = refunds.after(spent, outcome)
            outcome = outcome._replace(refundable=left.refundable)
            if isinstance(operation, RefundOverdebit):
                outcome = outcome._replace(audit=refunds.audit(account, operation, spent, outcome, now))
        return after, outcome

    def _rebuild(self, account: Account, operation: RebuildMirrors, now: datetime) -> tuple[Account, Noted]:
        stored = self._known.stored[operation.tenant_id] or mirrors.Stored(mirrors.of(account), sound=True)
        after, noted = mirrors.rebuild(account, operation, stored, now)
        self._known.stored[operation.tenant_id] = None  # from here on they follow the lots
        return after, noted

    def _group(self, group: Group) -> Grouped:
        """All debits or none: what the members did is dropped when one is refused, but for what was done before."""
        account = self._account(group.tenant_id)
        records, outcomes = len(self._decided.records), len(self._decided.outcomes)
        found: list[Answer | None] = []
        # Who was refused before refuses again, so that a repeat has one culprit, and the same.
        culprit = next((debit for debit in group.debits if self._was_refused(debit)), None)
        for debit in group.debits:
            try:
                # Behind the culprit nothing is tried any more: its refusal would be one that the group caused.
                found.append(self._keyed(debit) if culprit is None else self._earlier(debit))
            except BillingError as refusal:
                culprit = culprit or debit
                found.append(refusal)
        if culprit is None:
            return Grouped(tuple(each for each in found if each is not None))
        self._decided.after[group.tenant_id] = account
        dropped = self._drop(records, outcomes)
        aborted = errors.GroupAborted(
            f"another debit of group {group.group_id} was refused, so none was applied",
            group_id=group.group_id,
            culprit=culprit.idempotency_key,
        )
        return Grouped(
            tuple(
                aborted if each is None or debit.idempotency_key in dropped else each
                for debit, each in zip(group.debits, found, strict=True)
            )
        )

    def _was_refused(self, debit: Debit) -> bool:
        record = self._known.records.get((debit.tenant_id, debit.idempotency_key))
        return record is not None and record.rejected

    def _drop(self, records: int, outcomes: int) -> set[str]:
        """Forgets what was done since then; a refusal stays, since whoever asks again is told the same."""
        since = self._decided.records[records:]
        del self._decided.records[records:], self._decided.outcomes[outcomes:]
        self._decided.records += [record for record in since if record.rejected]
        done = [record for record in since if not record.rejected]
        for record in done:
            del self._known.records[record.tenant_id, record.idempotency_key]
            self._done.pop((record.tenant_id, record.idempotency_key), None)
        return {record.idempotency_key for record in done}

    def _earlier(self, operation: Keyed) -> Answer | None:
        key = operation.tenant_id, operation.idempotency_key
        record = self._known.records.get(key)
        if record is None:
            return None
        if field_name := fingerprint.differing_field(operation, record.fingerprint):
            raise errors.IdempotencyKeyReused(
                f"idempotency_key was used before with another {field_name}; use a new key for a new operation",
                field=field_name,
                idempotency_key=operation.idempotency_key,
            )
        if record.rejected:
            refusal, parts = answers.refusal(record), answers.parts(record)
            if parts is not None:
                raise usage.NotAuthorized(refusal, parts)
            raise refusal
        if (done := self._done.get(key)) is not None:
            return done._replace(replayed=True)
        return Repeat(record)

    def _refuse_second_reference(self, operation: Keyed) -> None:
        if not isinstance(operation, Grant | Revoke | Restore):
            return
        key = operation.tenant_id, operation.kind, operation.reference_id
        if earlier := self._known.referenced.get(key):
            raise errors.DuplicateReference(
                f"{operation.reference_id} was used for a {operation.kind} before",
                reference_id=operation.reference_id,
                transaction_id=earlier,
            )

    def _note(self, operation: Keyed, outcome: Outcome | Noted, now: datetime) -> None:
        """Keeps what the operation did, for what follows in the batch and for what is written."""
        self._done[operation.tenant_id, operation.idempotency_key] = outcome
        for state in outcome.counted:
            self._known.limits[operation.tenant_id][state.limit_key] = state
            self._decided.counted.append((operation.tenant_id, state, now))
        asked = fingerprint.of(operation)
        if isinstance(outcome, Noted):
            self._decided.noted.append((operation.tenant_id, outcome))
            self._keep(
                Record(
                    operation.tenant_id,
                    operation.idempotency_key,
                    operation.kind,
                    rejected=False,
                    decided_at=now,
                    fingerprint=asked,
                    fingerprint_version=fingerprint.VERSION,
                    answer=answers.of_noted(outcome),
                ),
                None,
            )
            return
        if isinstance(operation, Grant | Revoke | Restore):
            key = operation.tenant_id, operation.kind, operation.reference_id
            self._known.referenced[key] = outcome.transaction.id
        if isinstance(operation, Grant):
            self._known.granted_lots[operation.tenant_id, operation.reference_id] = outcome.entries[0].lot
        self._keep(_record(outcome, asked, operation.kind), outcome)

    def _remember(
        self, operation: Keyed, refusal: FailedPrecondition, now: datetime, parts: usage.Parts | None
    ) -> None:
        of_credits = not isinstance(operation, Consume | Authorize)
        self._keep(
            Record(
                operation.tenant_id,
                operation.idempotency_key,
                operation.kind,
                rejected=True,
                decided_at=now,
                fingerprint=fingerprint.of(operation),
                fingerprint_version=fingerprint.VERSION,
                answer=answers.of_refusal(refusal, parts),
                transaction=self._rejected(operation, now) if of_credits else None,
            ),
            None,
        )

    def _rejected(self, operation: Keyed, now: datetime) -> Transaction:
        return Transaction(
            id=self._next_id(now),
            tenant_id=operation.tenant_id,
            idempotency_key=operation.idempotency_key,
            kind=operation.kind,
            status="rejected",
            amount=0,
            reason=getattr(operation, "reason", ""),
            description=getattr(operation, "description", ""),
            reference_id=getattr(operation, "reference_id", ""),
            hold_id=getattr(operation, "hold_id", ""),
            refunded_transaction_id=getattr(operation, "transaction_id", ""),
            metadata=getattr(operation, "metadata", {}),
            first_seq=0,
            last_seq=0,
            created_at=now,
        )

    def _keep(self, record: Record, outcome: Outcome | None) -> None:
        self._known.records[record.tenant_id, record.idempotency_key] = record
        self._decided.records.append(record)
        if outcome is not None:
            self._decided.outcomes.append(outcome)

    def _account(self, tenant_id: str) -> Account:
        account = self._decided.after.get(tenant_id)
        if account is None:
            raise errors.UnknownTenant(
                f"tenant {tenant_id} has no account; provision it first", tenant_id=tenant_id
            )
        return account

    def _moment(self, account: Account) -> datetime:
        """The database's time, pushed on where needed so that a tenant's time never stands still or goes back."""
        return max(self._known.now, account.last_at + _TICK)

    def _id_at(self, account: Account) -> Callable[[], str]:
        return lambda: self._next_id(self._moment(account))

    def _next_id(self, at: datetime) -> str:
        self._made += 1
        return self._new_id(at, self._made % 4096)


def _record(outcome: Outcome, asked: bytes, kind: str) -> Record:
    transaction = outcome.transaction
    return Record(
        transaction.tenant_id,
        transaction.idempotency_key,
        kind,
        rejected=False,
        decided_at=transaction.created_at,
        fingerprint=asked,
        fingerprint_version=fingerprint.VERSION,
        answer=answers.of_outcome(outcome),
        transaction=transaction,
    )
