"""One function for each thing that the ledger can do. What changes credits goes through the lanes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.ledger import errors
from services.ledger.lanes import Lanes
from services.ledger.limit_reads import LimitReads
from services.ledger.rules import limits, lots
from services.ledger.rules.batch import Settled
from services.ledger.rules.limits import LimitDecision, ServiceEntitlement, decide
from services.ledger.rules.model import (
    GENESIS,
    Account,
    Entry,
    Lot,
    Noted,
    Outcome,
    Totals,
    Transaction,
)
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
    PlaceHold,
    Refund,
    Release,
    Restore,
    Revoke,
    Settle,
    SetUsage,
    Unfreeze,
    VoidHold,
)
from services.ledger.store import entitlements, grace, reads
from shared import clock
from shared.database import transaction
from shared.errors import BillingError, InvalidArgument

SETTLE_PAGE = 500


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the actions work with: the lanes write, the limits have a reader, the engine serves everything else."""

    engine: AsyncEngine
    lanes: Lanes
    limit_reads: LimitReads
    grace_retention: timedelta = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class BalanceView:
    """A balance and the lots that it is made of."""

    totals: Totals
    lots: tuple[Lot, ...]


@dataclass(frozen=True, slots=True)
class Booked:
    """A stored transaction and its lines."""

    transaction: Transaction
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What was settled."""

    lots: int
    credits: int
    holds: int
    grace_periods: int


MovesCredits: TypeAlias = (
    Debit | PlaceHold | CaptureHold | VoidHold | ExtendHold | Refund | Grant | Revoke | Restore | Adjust
)
MovesNone: TypeAlias = Consume | Release | SetUsage | Freeze | Unfreeze


async def book(ledger: Ledger, operation: MovesCredits) -> Outcome:
    """Do it once per key and answer what was booked; the refusals that the contract names are remembered under it."""
    outcome = await ledger.lanes.submit(operation)
    if not isinstance(outcome, Outcome):
        raise TypeError(f"a lane answered {type(outcome).__name__}")
    return outcome


async def note(ledger: Ledger, operation: MovesNone) -> Noted:
    """Count usage, or freeze an account and end it, once per key."""
    noted = await ledger.lanes.submit(operation)
    if not isinstance(noted, Noted):
        raise TypeError(f"a lane answered {type(noted).__name__}")
    return noted


async def authorize(ledger: Ledger, operation: Authorize) -> Outcome | Noted:
    """Limits and credits in one decision; raises NotAuthorized with what every part said."""
    decided = await ledger.lanes.submit(operation)
    if not isinstance(decided, Outcome | Noted):
        raise TypeError(f"a lane answered {type(decided).__name__}")
    return decided


async def batch_debit(ledger: Ledger, debits: Sequence[tuple[Debit, str]]) -> list[Outcome | BillingError]:
    """One answer for each (debit, group id), in their order; a group is one tenant's and applied whole or not at all."""
    positions: dict[str, list[int]] = {}
    for position, (_, group_id) in enumerate(debits):
        positions.setdefault(f"group {group_id}" if group_id else f"alone {position}", []).append(position)
    operations: list[Debit | Group] = []
    for own in positions.values():
        members, group_id = tuple(debits[position][0] for position in own), debits[own[0]][1]
        if group_id:
            _refuse_other_tenants(debits, own)
        operations.append(Group(members[0].tenant_id, group_id, members) if group_id else members[0])
    found: dict[int, Outcome | BillingError] = {}
    answers = await ledger.lanes.submit_all(operations)
    for own, answer in zip(positions.values(), answers, strict=True):
        for index, position in enumerate(own):
            each = answer[index] if isinstance(answer, list) else answer
            if not isinstance(each, Outcome | BillingError):
                raise TypeError(f"a lane answered {type(each).__name__}")
            found[position] = each
    return [found[position] for position in range(len(debits))]


async def get_balance(
    ledger: Ledger, tenant_id: str, *, as_of_seq: int | None = None, as_of: datetime | None = None
) -> BalanceView:
    """What the tenant has now, or had after a line or at a moment; expiries due by then are already subtracted."""
    async with ledger.engine.connect() as db:
        found = await reads.find_account(db, tenant_id, clock.offset())
        if found is None:
            raise _unknown_tenant(tenant_id)
        account, now = found
        now = max(now, account.last_at)  # a tenant's time never goes back, whatever the clock does
        if as_of_seq is None and as_of is None:
            return _view(account, now)
        line = await reads.find_line(db, tenant_id, seq=as_of_seq, at=as_of)
        if line is None and as_of_seq:
            raise errors.UnknownLine(
                f"there is no line {as_of_seq}; the last one is {account.seq}",
                as_of_seq=as_of_seq,
                last_seq=account.seq,
            )
        seq, at = line or (0, as_of or now)
        then = await reads.list_lots_at(db, tenant_id, seq, since=at, until=as_of or at)
        return _view(account._replace(seq=seq, lots=then), as_of or at)


async def list_transactions(
    ledger: Ledger, tenant_id: str, *, before: str | None, reason_prefix: str, rejected: bool, page: int
) -> tuple[list[Booked], str | None]:
    """(transactions, newest first, with their lines; where the next page begins, None at the end)."""
    async with ledger.engine.connect() as db:
        found, following = await reads.list_transactions(
            db, tenant_id, before=before, reason=reason_prefix or None, rejected=rejected, page=page
        )
        if not found:
            await _require_tenant(db, tenant_id)
    return [Booked(transaction, entries) for transaction, entries in found], following


async def get_transaction(
    ledger: Ledger, tenant_id: str, *, transaction_id: str | None, idempotency_key: str | None
) -> Booked:
    """One transaction, by its id or by the key it was asked under."""
    async with ledger.engine.connect() as db:
        found = await reads.find_transaction(
            db, tenant_id, transaction_id=transaction_id, idempotency_key=idempotency_key
        )
    if found is None:
        asked = {"transaction_id": transaction_id, "idempotency_key": idempotency_key}
        raise errors.UnknownTransaction(
            "there is no such transaction",
            **{name: value for name, value in asked.items() if value is not None},
        )
    return Booked(*found)


async def list_grants(ledger: Ledger, tenant_id: str, *, before: int | None, page: int) -> list[Lot]:
    """Grants, newest first; one more than `page` when there are more."""
    async with ledger.engine.connect() as db:
        found = await reads.list_grants(db, tenant_id, before=before, page=page + 1)
        if not found:
            await _require_tenant(db, tenant_id)
    return found


async def set_entitlements(
    ledger: Ledger, tenant_id: str, *, version: int, plan_code: str, services: list[ServiceEntitlement]
) -> tuple[bool, int]:
    """Replace what the tenant may use if `version` is newer: (whether it holds now, the version stored).

    A version is the key of its content: the same one with anything else is refused.
    """
    now = clock.now()
    async with transaction(ledger.engine) as db:
        await entitlements.open_account(db, tenant_id, genesis=GENESIS, now=now)
        stored = await entitlements.lock_version(db, tenant_id)
        if version > stored:
            await entitlements.replace(db, tenant_id, services, version=version, plan_code=plan_code, now=now)
        elif version == stored:
            await _refuse_other_content(db, tenant_id, version, plan_code, services)
    return version >= stored, max(version, stored)


async def get_entitlements(ledger: Ledger, tenant_id: str) -> tuple[int, str, list[ServiceEntitlement]]:
    """(version, plan, services) as pushed last."""
    async with ledger.engine.connect() as db:
        found = await entitlements.find_entitlements(db, tenant_id)
    if found is None:
        raise _unknown_tenant(tenant_id)
    return found


async def list_usage(
    ledger: Ledger, tenant_id: str, *, after: str, page: int
) -> list[tuple[str, int, datetime]]:
    """(limit key, used, when it changed), by key; one more than `page` when there are more."""
    async with ledger.engine.connect() as db:
        found = await entitlements.list_usage(db, tenant_id, after=after, page=page + 1)
        if not found:
            await _require_tenant(db, tenant_id)
    return found


async def check_limit(
    ledger: Ledger,
    tenant_id: str,
    limit_key: str,
    *,
    requested: int,
    current_usage: int | None,
    max_staleness_ms: int,
) -> tuple[LimitDecision, int, datetime]:
    """(what the limit says about `requested` more, by which version of the entitlements, as of when)."""
    found = await ledger.limit_reads.find(tenant_id, limit_key, max_staleness_ms=max_staleness_ms)
    if found is None:
        raise _unknown_tenant(tenant_id)
    state = found.state
    if not state.known:
        raise limits.unknown_limit(limit_key)
    decision = decide(state, requested, found.as_of, current_usage=current_usage)
    return decision, state.entitlements_version, found.as_of


async def settle_expired(ledger: Ledger, *, dry_run: bool, time_left_seconds: float) -> Settlement:
    """Write down what time took, tenant by tenant, as long as there is time.

    A tenant that cannot be settled keeps nobody else waiting; its failure is raised when nothing else is left.
    """
    offset = clock.offset()
    async with ledger.engine.connect() as db:
        if dry_run:
            due = await reads.count_due(db, offset)
            return Settlement(*due, await grace.count_due(db, offset))
    async with transaction(ledger.engine) as db:
        grace_periods = await grace.end_due(db, offset)
    ends_at = asyncio.get_running_loop().time() + time_left_seconds / 2
    settled_lots = settled_credits = settled_holds = 0
    while asyncio.get_running_loop().time() < ends_at:
        tenants = await _list_due(ledger, offset)
        if not tenants:
            break
        results = await asyncio.gather(
            *(ledger.lanes.submit(Settle(tenant_id)) for tenant_id in tenants), return_exceptions=True
        )
        booked = [
            outcome.transaction for each in results if isinstance(each, Settled) for outcome in each.booked
        ]
        settled_lots += sum(each.kind == "expiry" for each in booked)
        settled_credits -= sum(each.amount for each in booked if each.kind == "expiry")
        settled_holds += sum(each.kind == "lapse" for each in booked)
        if not booked:
            # Asking again would find the same: all failed, somebody else was faster, or the test clock went back.
            for failure in results:
                if isinstance(failure, BaseException):
                    raise failure
            break
    return Settlement(settled_lots, settled_credits, settled_holds, grace_periods)


async def _refuse_other_content(
    db: AsyncConnection, tenant_id: str, version: int, plan_code: str, services: list[ServiceEntitlement]
) -> None:
    found = await entitlements.find_entitlements(db, tenant_id)
    if found is None:
        raise _unknown_tenant(tenant_id)
    _, known_plan, known = found
    differs = "plan_code" if plan_code != known_plan else "services"
    if differs == "plan_code" or limits.meaning(services) != limits.meaning(known):
        raise errors.IdempotencyKeyReused(
            f"version {version} was set before with other {differs}; changes need a new version",
            field=differs,
            version=version,
        )


async def _list_due(ledger: Ledger, offset: timedelta) -> list[str]:
    async with ledger.engine.connect() as db:
        return await reads.list_tenants_due(db, offset, SETTLE_PAGE)


def _refuse_other_tenants(debits: Sequence[tuple[Debit, str]], group: list[int]) -> None:
    """A group is decided under one tenant's lock."""
    own = debits[group[0]][0].tenant_id
    what = f"must be {own}: a group_id is for debits of one tenant"
    violations = [
        (f"items[{position}].debit.tenant_id", what)
        for position in group
        if debits[position][0].tenant_id != own
    ]
    if violations:
        raise InvalidArgument(f"{violations[0][0]} {what}", violations=violations)


def _view(account: Account, at: datetime) -> BalanceView:
    own = [_left_of(lot, at) for lot in account.lots]
    alive = tuple(lot for lot in own if lot.remaining)
    return BalanceView(lots.totals(account._replace(lots=alive), at), alive)


def _left_of(lot: Lot, at: datetime) -> Lot:
    """The lot without what time and revocations have taken, booked or not."""
    if not lot.live(at):
        return lot._replace(remaining=lot.held)
    return lot._replace(remaining=lot.remaining - min(lot.free, lot.claimed))


async def _require_tenant(db: AsyncConnection, tenant_id: str) -> None:
    """Tells an empty answer from a tenant that is not there."""
    if await reads.find_account(db, tenant_id, timedelta()) is None:
        raise _unknown_tenant(tenant_id)


def _unknown_tenant(tenant_id: str) -> errors.UnknownTenant:
    return errors.UnknownTenant(f"tenant {tenant_id} has no account; provision it first", tenant_id=tenant_id)
