"""What time and revocations take by themselves, booked in the order in which it happened.

It runs before and after every operation, so that history does not depend on whether a job or a caller came first.
"""

from datetime import UTC, datetime

from services.ledger.rules import lots
from services.ledger.rules.booking import Header, Line, NewId, book
from services.ledger.rules.holds import close
from services.ledger.rules.model import FROZEN, Account, Hold, Outcome
from services.ledger.rules.revocations import take_claims

_NEVER = datetime.max.replace(tzinfo=UTC)


def settle(account: Account, now: datetime, new_id: NewId) -> tuple[Account, list[Outcome]]:
    """Books the claims, lapses and expiries that are due, one transaction each; nothing on a frozen account."""
    if account.state == FROZEN:
        return account, []
    booked: list[Outcome] = []
    if any(lot.claimed for lot in account.lots):
        for lot in account.lots:
            if lot.claimed and lot.free:
                account = take_claims(account, lot.lot, now, new_id, booked)
    for _, lot_number, hold_id in _ends(account, now):
        if hold_id:
            account = _lapse(account, account.holds[hold_id], now, new_id, booked)
        else:
            account = _expire(account, lot_number, now, new_id, booked)
    return account, booked


def _ends(account: Account, now: datetime) -> list[tuple[datetime, int, str]]:
    """(when, lot, hold) of everything whose end has come, the earliest first; at one moment lots before holds."""
    ends = [(lot.expires_at or _NEVER, lot.lot, "") for lot in lots.due(account, now)]
    ends += [
        (hold.expires_at, 0, hold.id)
        for hold in account.holds.values()
        if hold.status == "held" and hold.expires_at <= now
    ]
    return sorted(ends, key=lambda end: (end[0], end[2], end[1])) if len(ends) > 1 else ends


def _lapse(account: Account, hold: Hold, now: datetime, new_id: NewId, booked: list[Outcome]) -> Account:
    transaction_id = new_id()
    header = Header(
        id=transaction_id,
        # Nobody asked under a key; the lock makes it happen once, since a hold that lapsed is no longer held.
        idempotency_key=transaction_id,
        kind="lapse",
        status="expired",
        amount=0,
        reason=hold.reason,
        reference_id=hold.reference_id,
        hold_id=hold.id,
        metadata={"due_at": hold.expires_at.isoformat()},
    )
    releases = [Line("release", leg.lot, 0, -leg.open) for leg in hold.legs if leg.open]
    account, outcome = book(account, header, releases, now)
    account, outcome = close(account, outcome, hold, {}, "expired")
    booked.append(outcome)
    for line in releases:
        account = take_claims(account, line.lot, now, new_id, booked)
        account = _expire(account, line.lot, now, new_id, booked)
    return account


def _expire(account: Account, number: int, now: datetime, new_id: NewId, booked: list[Outcome]) -> Account:
    lot = lots.find(account, number)
    if lot.expires_at is None or lot.live(now) or not lot.free:
        return account
    transaction_id = new_id()
    header = Header(
        id=transaction_id,
        # Nobody asked under a key; the lock makes it happen once, since a settled lot has nothing free.
        idempotency_key=transaction_id,
        kind="expiry",
        status="expired",
        amount=-lot.free,
        reason="lot.expired",
        reference_id=lot.reference_id,
        metadata={"due_at": lot.expires_at.isoformat()},
    )
    account, outcome = book(account, header, [Line("expiry", number, -lot.free)], now)
    booked.append(outcome)
    return account
