"""What a tenant has and had: answered from committed rows."""

from dataclasses import dataclass
from datetime import datetime

from services.ledger import errors
from services.ledger.actions import Ledger, unknown_tenant
from services.ledger.rules import lots
from services.ledger.rules.model import Account, Entry, Lot, Totals, Transaction
from services.ledger.store import reads
from shared import clock


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


async def get_balance(
    ledger: Ledger, tenant_id: str, *, as_of_seq: int | None = None, as_of: datetime | None = None
) -> BalanceView:
    """What the tenant has now, or had after a line or at a moment; expiries due by then are already subtracted."""
    async with ledger.engine.connect() as db:
        found = await reads.find_account(db, tenant_id, clock.offset())
        if found is None:
            raise unknown_tenant(tenant_id)
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
        if seq == account.seq:
            # What is claimed now takes what has lapsed since that line, booked or not.
            claimed = {lot.lot: lot.claimed for lot in account.lots}
            then = tuple(lot._replace(claimed=claimed.get(lot.lot, 0)) for lot in then)
        return _view(account._replace(seq=seq, lots=then), as_of or at)


async def list_transactions(
    ledger: Ledger, tenant_id: str, *, before: str | None, reason_prefix: str, rejected: bool, page: int
) -> tuple[list[Booked], str | None]:
    """(transactions, newest first, with their lines; where the next page begins, None at the end)."""
    async with ledger.engine.connect() as db:
        found, following = await reads.list_transactions(
            db, tenant_id, before=before, reason=reason_prefix or None, rejected=rejected, page=page
        )
        if not found and not await reads.has_account(db, tenant_id):
            raise unknown_tenant(tenant_id)
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
        if not found and not await reads.has_account(db, tenant_id):
            raise unknown_tenant(tenant_id)
    return found


def _view(account: Account, at: datetime) -> BalanceView:
    own = [_left_of(lot, at) for lot in account.lots]
    alive = tuple(lot for lot in own if lot.remaining)
    return BalanceView(lots.totals(account._replace(lots=alive), at), alive)


def _left_of(lot: Lot, at: datetime) -> Lot:
    """The lot without what time and revocations have taken, booked or not."""
    if not lot.live(at):
        return lot._replace(remaining=lot.held)
    return lot._replace(remaining=lot.remaining - min(lot.free, lot.claimed))
