"""Which lots are spent, in which order, and what a tenant has."""

from collections.abc import Iterable
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
        return account._replace(lots=rest, emptied={**account.emptied, after.lot: after})
    if after.lot in account.emptied:
        emptied = {number: lot for number, lot in account.emptied.items() if number != after.lot}
        return account._replace(lots=in_burn_order((*account.lots, after)), emptied=emptied)
    return account._replace(lots=tuple([after if lot.lot == after.lot else lot for lot in account.lots]))


def due(account: Account, now: datetime) -> list[Lot]:
    """Lots whose end has come and that still hold something free, in the order of their ends."""
    ended = [
        lot
        for lot in account.lots
        if lot.expires_at is not None and lot.expires_at <= now and lot.remaining > lot.held
    ]
    return sorted(ended, key=lambda lot: (lot.expires_at or _NEVER, lot.lot)) if ended else ended


def totals(account: Account, now: datetime) -> Totals:
    """What the tenant has at `now`; due lots count as expired whether settled or not."""
    subscription = permanent = held_subscription = held_permanent = available = 0
    first_end = None  # permanent lots have no end
    for lot in account.lots:
        live = lot.expires_at is None or now < lot.expires_at
        # Of a lot that has ended only what a hold has pinned is left.
        credits = lot.remaining if live else lot.held
        if lot.bucket == SUBSCRIPTION:
            subscription, held_subscription = subscription + credits, held_subscription + lot.held
        else:
            permanent, held_permanent = permanent + credits, held_permanent + lot.held
        if live:
            available += lot.remaining - lot.held
            if lot.expires_at is not None and (first_end is None or lot.expires_at < first_end):
                first_end = lot.expires_at
    return Totals(
        available,
        held_subscription + held_permanent,
        subscription + permanent,
        (
            BucketTotals(SUBSCRIPTION, subscription, held_subscription, first_end),
            BucketTotals(PERMANENT, permanent, held_permanent, None),
        ),
        first_end,
        account.seq,
        now,
    )
