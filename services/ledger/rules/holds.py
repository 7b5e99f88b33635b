"""Credits set aside: placed, captured, voided, extended. A hold is resolved once; who comes second is told how."""

from collections.abc import Mapping
from datetime import datetime

from services.ledger import errors
from services.ledger.rules import lots
from services.ledger.rules.booking import (
    Header,
    Line,
    NewId,
    book,
    refuse_frozen,
    refuse_other_seq,
    refuse_shortfall,
)
from services.ledger.rules.model import HOLD_MAX, Account, Hold, Leg, Outcome
from services.ledger.rules.requests import DEBIT_SHORTFALL, CaptureHold, ExtendHold, PlaceHold, VoidHold
from services.ledger.rules.spending import lines_of


def place(account: Account, asked: PlaceHold, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    """Sets slices of lots aside, in burn order; they stay spendable by this hold though their lots expire."""
    refuse_frozen(account)
    refuse_other_seq(account, asked.if_seq)
    refuse_shortfall(account, asked.credits, now)
    transaction_id = new_id()
    hold_id = transaction_id.replace("txn_", "hold_", 1)
    parts = lots.take(account, asked.credits, now)
    header = Header(
        id=transaction_id,
        idempotency_key=asked.idempotency_key,
        kind="hold",
        status="held",
        amount=0,
        reason=asked.reason,
        description=asked.description,
        reference_id=asked.reference_id,
        hold_id=hold_id,
        metadata=asked.metadata,
    )
    account, outcome = book(account, header, [Line("hold", lot.lot, 0, part) for lot, part in parts], now)
    hold = Hold(
        id=hold_id,
        transaction_id=transaction_id,
        status="held",
        reserved=asked.credits,
        captured=0,
        released=0,
        expires_at=now + asked.ttl,
        max_expires_at=now + HOLD_MAX,
        created_at=now,
        reason=asked.reason,
        reference_id=asked.reference_id,
        legs=tuple(Leg(number, lot.lot, part) for number, (lot, part) in enumerate(parts, start=1)),
    )
    return _pin(*_with_hold(account, outcome, hold), hold)


def capture(account: Account, asked: CaptureHold, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    """Spends held credits in the order of the legs; the final capture sets the rest free."""
    refuse_frozen(account)
    hold = _held(account, asked.hold_id)
    shortfall = max(0, asked.credits - hold.open)
    if shortfall and asked.over_capture_policy != DEBIT_SHORTFALL:
        raise errors.ExceedsHold(
            f"the hold has {hold.open} open, {asked.credits} were asked for",
            hold_id=hold.id,
            open=hold.open,
            requested=asked.credits,
        )
    refuse_shortfall(account, shortfall, now)
    spent = _spread(hold, min(asked.credits, hold.open))
    lines = [
        Line("capture", leg.lot, -spent[leg.leg], -spent[leg.leg]) for leg in hold.legs if leg.leg in spent
    ]
    if shortfall:
        lines += lines_of("debit", account, shortfall, now)
    if not asked.more_follows:
        rest = {leg.lot: leg.open - spent.get(leg.leg, 0) for leg in hold.legs}
        lines += [Line("release", lot, 0, -credits) for lot, credits in rest.items() if credits]
    header = _header(asked, hold, new_id, status="captured", amount=-asked.credits)
    account, outcome = book(account, header, lines, now)
    captured = hold.captured + sum(spent.values())
    if asked.more_follows and captured < hold.reserved:
        return _with_hold(account, outcome, _spend(hold, spent))
    return close(account, outcome, hold, spent, "captured" if captured else "voided")


def void(account: Account, asked: VoidHold, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    """Sets everything still held free."""
    refuse_frozen(account)
    hold = _held(account, asked.hold_id)
    header = _header(asked, hold, new_id, status="voided")
    lines = [Line("release", leg.lot, 0, -leg.open) for leg in hold.legs if leg.open]
    account, outcome = book(account, header, lines, now)
    return close(account, outcome, hold, {}, "voided")


def extend(account: Account, asked: ExtendHold, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    """Moves the end to `ttl` from now: never nearer, never beyond the cap."""
    refuse_frozen(account)
    hold = _held(account, asked.hold_id)
    header = _header(asked, hold, new_id, status="held")
    account, outcome = book(account, header, [], now)
    expires_at = min(max(hold.expires_at, now + asked.ttl), hold.max_expires_at)
    longer = hold._replace(expires_at=expires_at)
    return _pin(*_with_hold(account, outcome, longer), longer)


def close(
    account: Account, outcome: Outcome, hold: Hold, spent: Mapping[int, int], status: str
) -> tuple[Account, Outcome]:
    """The hold at its end: what was not captured is released."""
    hold = _spend(hold, spent)
    legs = tuple(leg._replace(released=leg.released + leg.open) for leg in hold.legs)
    ended = hold._replace(status=status, released=hold.released + hold.open, legs=legs)
    return _with_hold(account, outcome, ended)


def _pin(account: Account, outcome: Outcome, hold: Hold) -> tuple[Account, Outcome]:
    """Keeps with each lot until when this hold can capture it."""
    touched = {lot.lot: lot for lot in outcome.touched}
    for leg in hold.legs:
        if not leg.open:
            continue  # its lot may be empty by now, and then it was not loaded
        lot = lots.find(account, leg.lot)
        if lot.pinned_until is None or lot.pinned_until < hold.expires_at:
            touched[lot.lot] = lot._replace(pinned_until=hold.expires_at)
            account = lots.put(account, touched[lot.lot])
    return account, outcome._replace(touched=tuple(touched.values()))


def _header(
    asked: CaptureHold | VoidHold | ExtendHold, hold: Hold, new_id: NewId, *, status: str, amount: int = 0
) -> Header:
    """What is done to a hold is booked for what it was placed for."""
    return Header(
        id=new_id(),
        idempotency_key=asked.idempotency_key,
        kind=asked.kind,
        status=status,
        amount=amount,
        reason=hold.reason,
        description=getattr(asked, "description", ""),
        reference_id=hold.reference_id,
        hold_id=hold.id,
    )


def _held(account: Account, hold_id: str) -> Hold:
    hold = account.holds.get(hold_id)
    if hold is None:
        raise errors.UnknownHold(f"there is no hold {hold_id}", hold_id=hold_id)
    match hold.status:
        case "captured":
            raise errors.HoldAlreadyCaptured("the hold was captured before", hold_id=hold_id)
        case "voided":
            raise errors.HoldAlreadyVoided("the hold was voided before", hold_id=hold_id)
        case "expired":
            expired_at = hold.expires_at.isoformat(timespec="milliseconds")
            raise errors.HoldExpired(
                f"the hold lapsed at {expired_at}", hold_id=hold_id, expired_at=expired_at
            )
    return hold


def _spread(hold: Hold, credits: int) -> dict[int, int]:
    """How much each leg gives, by leg, in their order."""
    parts = {}
    for leg in hold.legs:
        if part := min(leg.open, credits):
            parts[leg.leg] = part
            credits -= part
    return parts


def _spend(hold: Hold, spent: Mapping[int, int]) -> Hold:
    legs = tuple(leg._replace(captured=leg.captured + spent.get(leg.leg, 0)) for leg in hold.legs)
    return hold._replace(captured=hold.captured + sum(spent.values()), legs=legs)


def _with_hold(account: Account, outcome: Outcome, hold: Hold) -> tuple[Account, Outcome]:
    if hold.captured + hold.released + sum(leg.open for leg in hold.legs) != hold.reserved:
        raise AssertionError(f"{hold.id}: captured, released and open do not add up to what was reserved")
    return account._replace(holds={**account.holds, hold.id: hold}), outcome._replace(hold=hold)
