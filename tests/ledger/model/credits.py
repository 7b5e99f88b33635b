"""Credits of one tenant: lots, holds, what was spent, what is claimed back.

Every method takes the moment at which the operation was decided and changes the model, or raises `Refused` and may
leave it half changed: whoever asks works on a copy. Nothing happens by itself; `settle` does what time did.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

SUBSCRIPTION, PERMANENT = "subscription", "permanent"
EXPIRE_AGAIN, REGRANT_30_DAYS, TO_PERMANENT = "EXPIRE_AGAIN", "REGRANT_30_DAYS", "TO_PERMANENT"
HELD, CAPTURED, VOIDED, EXPIRED = "held", "captured", "voided", "expired"
HOLD_MAX = timedelta(days=7)
SECOND_LIFE = timedelta(days=30)


class Refused(Exception):
    """What the ledger has to answer instead, and what it must say about it."""

    def __init__(self, reason: str, **says: object) -> None:
        super().__init__(reason, says)
        self.reason = reason
        self.says = {name: str(value) for name, value in says.items()}


@dataclass(frozen=True)
class Moved:
    """One line: what happened to one lot."""

    lot: int
    posted: int
    held: int = 0


@dataclass
class Booked:
    """One transaction that has to exist afterwards."""

    kind: str
    lines: list[Moved] = field(default_factory=list)
    hold_id: str = ""

    @property
    def amount(self) -> int:
        return sum(line.posted for line in self.lines)


@dataclass
class Lot:
    number: int
    bucket: str
    granted: int
    expires_at: datetime | None
    reference: str = ""
    posted: int = 0
    held: int = 0

    @property
    def free(self) -> int:
        return self.posted - self.held

    def lives(self, at: datetime) -> bool:
        return self.expires_at is None or at < self.expires_at


@dataclass
class Leg:
    lot: int
    open: int


@dataclass
class Hold:
    id: str
    created_at: datetime
    expires_at: datetime
    reserved: int
    legs: list[Leg]
    captured: int = 0
    released: int = 0
    status: str = HELD

    @property
    def open(self) -> int:
        return sum(leg.open for leg in self.legs)


@dataclass
class Claim:
    """A revocation: what it took, and what it still takes when it returns to the lot."""

    reference: str
    lot: int
    taken: int
    open: int
    restored: bool = False


@dataclass
class Spent:
    """A line of a debit or capture, and how much of it was given back."""

    lot: int
    credits: int
    given_back: int = 0


@dataclass(frozen=True)
class BalanceSeen:
    """What GetBalance has to say."""

    available: int
    held: int
    posted: int
    buckets: dict[str, tuple[int, int]]  # credits, of these held; empty ones left out
    lots: list[tuple[int, str, int, int, int, datetime | None]]  # in burn order, empty ones left out
    next_expires_at: datetime | None


class Credits:
    def __init__(self) -> None:
        self.lots: list[Lot] = []
        self.holds: dict[str, Hold] = {}
        self.claims: list[Claim] = []
        self.spent: dict[str, list[Spent]] = {}
        self.frozen = False

    def copy(self) -> Credits:
        return copy.deepcopy(self)

    def lot(self, number: int) -> Lot:
        return self.lots[number - 1]

    # -- time ---------------------------------------------------------------------------------------------------

    def settle(self, at: datetime) -> list[Booked]:
        """Everything that fell due until `at`, in the order in which it did."""
        booked: list[Booked] = []
        while not self.frozen:
            lapsing = [(h.expires_at, 0, h.id) for h in self.holds.values() if h.status == HELD]
            expiring = [
                (lot.expires_at, 1, str(lot.number)) for lot in self.lots if lot.expires_at and lot.free
            ]
            due = min([*lapsing, *expiring], default=None)
            if due is None or due[0] > at:
                break
            if due[1] == 0:
                hold = self.holds[due[2]]
                hold.status = EXPIRED
                booked += self._free(hold, "lapse", moment=hold.expires_at)
            else:
                booked += self._expire(self.lot(int(due[2])))
        return booked

    def edges(self) -> list[datetime]:
        """When something is still to happen by itself."""
        holds = [hold.expires_at for hold in self.holds.values() if hold.status == HELD]
        return sorted([*holds, *(lot.expires_at for lot in self.lots if lot.expires_at and lot.posted)])

    def balance(self, at: datetime) -> BalanceSeen:
        """What the tenant has at a moment, settled or not, frozen or not."""
        then = self.copy()
        then.frozen = False
        then.settle(at)
        lots = sorted((lot for lot in then.lots if lot.posted), key=_in_order)
        buckets = {}
        for bucket in (SUBSCRIPTION, PERMANENT):
            inside = [lot for lot in lots if lot.bucket == bucket]
            if inside:
                buckets[bucket] = (sum(lot.posted for lot in inside), sum(lot.held for lot in inside))
        return BalanceSeen(
            available=sum(lot.free for lot in lots if lot.lives(at)),
            held=sum(lot.held for lot in lots),
            posted=sum(lot.posted for lot in lots),
            buckets=buckets,
            lots=[(x.number, x.bucket, x.granted, x.posted, x.held, x.expires_at) for x in lots],
            next_expires_at=min((x.expires_at for x in lots if x.expires_at and x.lives(at)), default=None),
        )

    # -- credits in ---------------------------------------------------------------------------------------------

    def grant(
        self, at: datetime, bucket: str, credits: int, expires_at: datetime | None, reference: str
    ) -> list[Booked]:
        if any(lot.reference == reference for lot in self.lots):
            raise Refused("DUPLICATE_REFERENCE", reference_id=reference)
        self._refuse_frozen()
        if expires_at is not None and expires_at <= at:
            raise Refused("ALREADY_EXPIRED")
        lot = self._new_lot(bucket, credits, expires_at, reference)
        return [Booked("grant", [self._move(lot, credits)])]

    def adjust(
        self, at: datetime, credits: int, bucket: str = PERMANENT, expires_at: datetime | None = None
    ) -> list[Booked]:
        self._refuse_frozen()
        if credits < 0:
            return [Booked("adjustment", self._take(at, -credits, -credits))]
        if expires_at is not None and expires_at <= at:
            raise Refused("ALREADY_EXPIRED")
        lot = self._new_lot(bucket, credits, expires_at)
        return [Booked("adjustment", [self._move(lot, credits)])]

    # -- credits out --------------------------------------------------------------------------------------------

    def debit(
        self, at: datetime, credits: int, *, least: int | None = None, transaction_id: str = ""
    ) -> list[Booked]:
        self._refuse_frozen()
        lines = self._take(at, credits, credits if least is None else least)
        self.spent[transaction_id] = [Spent(line.lot, -line.posted) for line in lines]
        return [Booked("debit", lines)]

    def place(self, at: datetime, credits: int, ttl: timedelta, hold_id: str) -> list[Booked]:
        self._refuse_frozen()
        legs = [Leg(lot, part) for lot, part in self._parts(at, credits, credits)]
        self.holds[hold_id] = Hold(hold_id, at, at + ttl, credits, legs)
        return [Booked("hold", [self._move(self.lot(leg.lot), 0, leg.open) for leg in legs], hold_id)]

    def capture(
        self,
        at: datetime,
        hold_id: str,
        credits: int,
        *,
        more_follows: bool = False,
        debit_shortfall: bool = False,
        transaction_id: str = "",
    ) -> list[Booked]:
        hold = self._open_hold(at, hold_id)
        beyond = max(0, credits - hold.open)
        if beyond and not debit_shortfall:
            raise Refused("EXCEEDS_HOLD", hold_id=hold_id, open=hold.open, requested=credits)
        booked = Booked("capture", hold_id=hold_id)
        rest = credits - beyond
        for leg in hold.legs:
            part = min(rest, leg.open)
            if part:
                leg.open -= part
                rest -= part
                hold.captured += part
                booked.lines.append(self._move(self.lot(leg.lot), -part, -part))
        if beyond:
            booked.lines += self._take(at, beyond, beyond)
        self.spent[transaction_id] = [Spent(line.lot, -line.posted) for line in booked.lines]
        if more_follows and hold.open:
            return [booked]
        hold.status = CAPTURED if hold.captured else VOIDED
        freed, *after = self._free(hold, "release", moment=at)
        booked.lines += freed.lines
        return [booked, *after]

    def void(self, at: datetime, hold_id: str) -> list[Booked]:
        hold = self._open_hold(at, hold_id)
        hold.status = VOIDED
        return self._free(hold, "void", moment=at)

    def extend(self, at: datetime, hold_id: str, ttl: timedelta) -> list[Booked]:
        hold = self._open_hold(at, hold_id)
        hold.expires_at = max(hold.expires_at, min(at + ttl, hold.created_at + HOLD_MAX))
        return [Booked("extend", hold_id=hold_id)]

    # -- credits back -------------------------------------------------------------------------------------------

    def refundable(self, transaction_id: str) -> int:
        return sum(line.credits - line.given_back for line in self.spent[transaction_id])

    def refund(self, at: datetime, transaction_id: str, credits: int | None, policy: str) -> list[Booked]:
        self._refuse_frozen()
        if transaction_id not in self.spent:
            raise Refused("UNKNOWN_TRANSACTION", transaction_id=transaction_id)
        left = self.refundable(transaction_id)
        rest = left if credits is None else credits
        if rest > left or left == 0:
            raise Refused("EXCEEDS_REFUNDABLE", refundable=left)
        booked, after = Booked("refund"), []
        second_life: Lot | None = None
        for line in reversed(self.spent[transaction_id]):
            part = min(rest, line.credits - line.given_back)
            if not part:
                continue
            rest -= part
            line.given_back += part
            lot = self.lot(line.lot)
            home = part if lot.lives(at) or policy == EXPIRE_AGAIN else min(part, self._claimed(lot))
            if home:
                booked.lines.append(self._move(lot, home))
                after += self._returned(lot, home, moment=at)
            if part > home:
                if second_life is None:
                    second_life = self._second_life(at, forever=policy == TO_PERMANENT)
                second_life.granted += part - home
                booked.lines.append(self._move(second_life, part - home))
        return [booked, *after]

    def revoke(
        self, at: datetime, grant_reference: str, credits: int, reference: str
    ) -> tuple[list[Booked], int, int, int]:
        """What is booked; taken now, claimed from what is held, spent before."""
        if any(claim.reference == reference for claim in self.claims):
            raise Refused("DUPLICATE_REFERENCE", reference_id=reference)
        self._refuse_frozen()
        lot = next((lot for lot in self.lots if lot.reference == grant_reference), None)
        if lot is None:
            raise Refused("UNKNOWN_GRANT", reference_id=grant_reference)
        if not lot.lives(at):
            again = [
                each
                for each in self.lots
                if each.reference == grant_reference and each.lives(at) and (each.free or each.held)
            ]
            lot = again[-1] if again else lot
        taken = min(credits, lot.free if lot.lives(at) else 0)
        rest = credits - taken
        claimed = min(rest, max(0, lot.held - self._claimed(lot)))
        self.claims.append(Claim(reference, lot.number, taken, rest))
        booked = Booked("revoke", [self._move(lot, -taken)] if taken else [])
        return [booked], taken, claimed, rest - claimed

    def restore(self, at: datetime, revoke_reference: str) -> list[Booked]:
        self._refuse_frozen()
        claim = next((claim for claim in self.claims if claim.reference == revoke_reference), None)
        if claim is None:
            raise Refused("UNKNOWN_GRANT", reference_id=revoke_reference)
        if claim.restored:
            raise Refused("DUPLICATE_REFERENCE")
        claim.restored, claim.open = True, 0
        if not claim.taken:
            return [Booked("restore")]
        lot = self.lot(claim.lot)
        if not lot.lives(at):
            lot = self._new_lot(SUBSCRIPTION, claim.taken, at + SECOND_LIFE, lot.reference)
        booked = Booked("restore", [self._move(lot, claim.taken)])
        return [booked, *self._returned(lot, claim.taken, moment=at)]

    # -- parts --------------------------------------------------------------------------------------------------

    def _refuse_frozen(self) -> None:
        if self.frozen:
            raise Refused("ACCOUNT_FROZEN")

    def _new_lot(self, bucket: str, granted: int, expires_at: datetime | None, reference: str = "") -> Lot:
        lot = Lot(len(self.lots) + 1, bucket, granted, expires_at, reference)
        self.lots.append(lot)
        return lot

    def _second_life(self, at: datetime, *, forever: bool) -> Lot:
        if forever:
            return self._new_lot(PERMANENT, 0, None)
        return self._new_lot(SUBSCRIPTION, 0, at + SECOND_LIFE)

    def _claimed(self, lot: Lot) -> int:
        return sum(claim.open for claim in self.claims if claim.lot == lot.number)

    def _move(self, lot: Lot, posted: int, held: int = 0) -> Moved:
        lot.posted += posted
        lot.held += held
        assert 0 <= lot.held <= lot.posted
        return Moved(lot.number, posted, held)

    def _parts(self, at: datetime, credits: int, least: int) -> list[tuple[int, int]]:
        """From which lots so many come."""
        lots = sorted((lot for lot in self.lots if lot.lives(at) and lot.free), key=_in_order)
        available = sum(lot.free for lot in lots)
        if available < least:
            raise Refused("INSUFFICIENT_CREDITS", available=available)
        parts, rest = [], min(credits, available)
        for lot in lots:
            if rest:
                parts.append((lot.number, min(rest, lot.free)))
                rest -= parts[-1][1]
        return parts

    def _take(self, at: datetime, credits: int, least: int) -> list[Moved]:
        return [self._move(self.lot(lot), -part) for lot, part in self._parts(at, credits, least)]

    def _open_hold(self, at: datetime, hold_id: str) -> Hold:
        self._refuse_frozen()
        hold = self.holds.get(hold_id)
        if hold is None:
            raise Refused("UNKNOWN_HOLD", hold_id=hold_id)
        if hold.status == CAPTURED:
            raise Refused("HOLD_ALREADY_CAPTURED", hold_id=hold_id)
        if hold.status == VOIDED:
            raise Refused("HOLD_ALREADY_VOIDED", hold_id=hold_id)
        if hold.status == EXPIRED or at >= hold.expires_at:
            raise Refused("HOLD_EXPIRED", hold_id=hold_id)
        return hold

    def _free(self, hold: Hold, kind: str, *, moment: datetime) -> list[Booked]:
        """Sets free what the hold still has; then what is claimed or expired of it goes."""
        freed, after = Booked(kind, hold_id=hold.id), []
        for leg in hold.legs:
            if leg.open:
                part, leg.open = leg.open, 0
                hold.released += part
                freed.lines.append(self._move(self.lot(leg.lot), 0, -part))
                after += self._returned(self.lot(leg.lot), part, moment=moment)
        return [freed, *after]

    def _returned(self, lot: Lot, credits: int, *, moment: datetime) -> list[Booked]:
        """What becomes of credits that came back to a lot: claims first, then its expiry."""
        booked = []
        for claim in self.claims:
            part = min(claim.open, credits) if claim.lot == lot.number else 0
            if part:
                claim.open -= part
                claim.taken += part
                credits -= part
                booked.append(Booked("revoke", [self._move(lot, -part)]))
        if credits and not lot.lives(moment):
            booked += self._expire(lot)
        return booked

    def _expire(self, lot: Lot) -> list[Booked]:
        return [Booked("expiry", [self._move(lot, -lot.free)])]


def _in_order(lot: Lot) -> tuple[bool, datetime, int]:
    """Subscription first, then what expires first, then the older."""
    never = datetime.max.replace(tzinfo=UTC)
    return (lot.bucket != SUBSCRIPTION, lot.expires_at or never, lot.number)
