"""Which lots are spent, in which order, and what a tenant has."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from services.ledger.rules.model import PERMANENT, SUBSCRIPTION, Account, BucketTotals, Lot, Totals

_NEVER = datetime.max.replace(tzinfo=UTC)


def burn_order(lot: Lot) -> tuple[int, datetime, int]:
    """A total order: subscription before permanent, what expires first, then the older lot."""
    return lot.priority, lot.expires_at or _NEVER, lot.lot


def in_burn_order(lots: Iterable[Lot]) -> tuple[Lot, ...]:
    """The lots as they will be spent."""
    return tuple(sorted(lots, key=burn_order))


def take(account: Account, credits: int, now: datetime) -> list[tuple[Lot, int]]:
    """How much each live lot gives, in burn order; together `credits`, which must be available."""
    parts, missing = [], credits
    for lot in account.lots:
        if missing == 0:
            break
        if lot.live(now) and (part := min(lot.free, missing)):
            parts.append((lot, part))
            missing -= part
    if missing:
        raise AssertionError(f"{account.tenant_id}: {missing} of {credits} credits are not there")
    return parts


def find(account: Account, number: int) -> Lot:
    """The lot of this number, be it empty."""
    for lot in account.lots:
        if lot.lot == number:
            return lot
    return account.emptied[number]


def put(account: Account, after: Lot) -> Account:
    """The account with one of its lots changed; what is empty is out of the order, what is filled back in it."""
    if after.remaining == 0:
        rest = tuple(lot for lot in account.lots if lot.lot != after.lot)
        return replace(account, lots=rest, emptied={**account.emptied, after.lot: after})
    if after.lot in account.emptied:
        emptied = {number: lot for number, lot in account.emptied.items() if number != after.lot}
        return replace(account, lots=in_burn_order((*account.lots, after)), emptied=emptied)
    return replace(account, lots=tuple(after if lot.lot == after.lot else lot for lot in account.lots))


def due(account: Account, now: datetime) -> list[Lot]:
    """Lots whose end has come and that still hold something free, in the order of their ends."""
    ended = [lot for lot in account.lots if not lot.live(now) and lot.free]
    return sorted(ended, key=lambda lot: (lot.expires_at or _NEVER, lot.lot))


def totals(account: Account, now: datetime) -> Totals:
    """What the tenant has at `now`; due lots count as expired whether settled or not."""
    alive = [lot for lot in account.lots if lot.live(now)]
    pinned = [lot for lot in account.lots if not lot.live(now) and lot.held]
    buckets = []
    for bucket in (SUBSCRIPTION, PERMANENT):
        own = [lot for lot in alive if lot.bucket == bucket]
        held_past_end = sum(lot.held for lot in pinned if lot.bucket == bucket)
        buckets.append(
            BucketTotals(
                bucket=bucket,
                credits=sum(lot.remaining for lot in own) + held_past_end,
                held=sum(lot.held for lot in own) + held_past_end,
                next_expires_at=_first_expiry(own),
            )
        )
    return Totals(
        available=sum(lot.free for lot in alive),
        held=sum(bucket.held for bucket in buckets),
        posted=sum(bucket.credits for bucket in buckets),
        buckets=tuple(buckets),
        next_expires_at=_first_expiry(alive),
        as_of_seq=account.seq,
        as_of=now,
    )


def _first_expiry(lots: Iterable[Lot]) -> datetime | None:
    return min((lot.expires_at for lot in lots if lot.expires_at is not None), default=None)
