"""Taking grants back, and giving back what was taken.

A revocation takes the lot's free remainder now. What is held, or comes back by a refund, it takes when it returns:
until then that is its claim on the lot.
"""

from datetime import datetime

from services.ledger import errors
from services.ledger.rules import lots
from services.ledger.rules.booking import Header, Line, NewId, book, open_lot, refuse_frozen
from services.ledger.rules.model import REGRANT, Account, Lot, Outcome, Revocation, Revoked
from services.ledger.rules.requests import Restore, Revoke


def revoke(
    account: Account, asked: Revoke, lot_number: int | None, now: datetime, new_id: NewId
) -> tuple[Account, Outcome]:
    """Takes what is free of the grant's lot and claims the rest. `lot_number` None: there is no such grant."""
    refuse_frozen(account)
    if lot_number is None:
        raise errors.UnknownGrant(
            f"there is no grant {asked.grant_reference_id}", reference_id=asked.grant_reference_id
        )
    lot = _held_by(account, lots.find(account, lot_number), now)
    taken = min(asked.credits, lot.free)
    rest = asked.credits - taken
    claimed = min(rest, max(0, lot.held - lot.claimed))
    header = Header(
        id=new_id(),
        idempotency_key=asked.idempotency_key,
        kind="revoke",
        status="posted",
        amount=-taken,
        reason=asked.reason,
        description=asked.description,
        reference_id=asked.reference_id,
    )
    account, outcome = book(account, header, [Line("revoke", lot.lot, -taken)] if taken else [], now)
    revocation = Revocation(
        reference_id=asked.reference_id,
        transaction_id=header.id,
        grant_reference_id=asked.grant_reference_id,
        lot=lot.lot,
        asked=asked.credits,
        taken=taken,
        claimed=rest,
        restored_transaction_id="",
        created_at=now,
    )
    account, outcome = _with_claim(account, outcome, revocation, rest)
    return account, outcome._replace(revoked=Revoked(taken, claimed, rest - claimed))


def restore(account: Account, asked: Restore, now: datetime, new_id: NewId) -> tuple[Account, Outcome]:
    """Gives back all that the revocation took so far, and ends its claim; an ended lot's credits live 30 days."""
    refuse_frozen(account)
    revocation = account.revocations.get(asked.revoke_reference_id)
    if revocation is None:
        raise errors.UnknownGrant(
            f"nothing was revoked under {asked.revoke_reference_id}", reference_id=asked.revoke_reference_id
        )
    if revocation.restored_transaction_id:
        raise errors.DuplicateReference(
            f"{asked.revoke_reference_id} was restored before",
            reference_id=asked.revoke_reference_id,
            transaction_id=revocation.restored_transaction_id,
        )
    header = Header(
        id=new_id(),
        idempotency_key=asked.idempotency_key,
        kind="restore",
        status="posted",
        amount=revocation.taken,
        reason="revocation.restored",
        description=asked.description,
        reference_id=asked.reference_id,
    )
    lot = lots.find(account, revocation.lot)
    account, back = _home_of(account, lot, revocation.taken, header.id, now)
    lines = [Line("restore", back.lot, revocation.taken)] if revocation.taken else []
    account, outcome = book(account, header, lines, now)
    ended = revocation._replace(claimed=0, restored_transaction_id=header.id)
    return _with_claim(account, outcome, ended, -revocation.claimed)


def take_claims(
    account: Account, number: int, now: datetime, new_id: NewId, booked: list[Outcome]
) -> Account:
    """Takes what revocations claim of a lot and is free now, the oldest claim first."""
    claims = [each for each in account.revocations.values() if each.lot == number and each.claimed]
    for revocation in sorted(claims, key=lambda each: each.transaction_id):
        taken = min(lots.find(account, number).free, revocation.claimed)
        if not taken:
            break
        transaction_id = new_id()
        header = Header(
            id=transaction_id,
            # Nobody asked under a key; the claim shrinks with what it takes.
            idempotency_key=transaction_id,
            kind="revoke",
            status="posted",
            amount=-taken,
            reason="revocation.claimed",
            reference_id=f"{revocation.reference_id}:{transaction_id}",
        )
        account, outcome = book(account, header, [Line("revoke", number, -taken)], now)
        smaller = revocation._replace(taken=revocation.taken + taken, claimed=revocation.claimed - taken)
        account, outcome = _with_claim(account, outcome, smaller, -taken)
        booked.append(outcome)
    return account


def _held_by(account: Account, lot: Lot, now: datetime) -> Lot:
    """Where the grant's credits are: of a lot that has ended, a won dispute may have given them back elsewhere."""
    if lot.live(now):
        return lot
    others = [
        each
        for each in account.lots
        if each.reference_id == lot.reference_id and each.lot != lot.lot and each.live(now)
    ]
    return others[-1] if others else lot


def _home_of(
    account: Account, lot: Lot, credits: int, transaction_id: str, now: datetime
) -> tuple[Account, Lot]:
    if lot.live(now) or not credits:
        return account, lot
    return open_lot(
        account,
        bucket=lot.bucket,
        priority=lot.priority,
        credits=credits,
        expires_at=now + REGRANT,
        reference_id=lot.reference_id,
        transaction_id=transaction_id,
        now=now,
    )


def _with_claim(
    account: Account, outcome: Outcome, revocation: Revocation, d_claimed: int
) -> tuple[Account, Outcome]:
    before = lots.find(account, revocation.lot)
    lot = before._replace(claimed=before.claimed + d_claimed)
    touched = (*(each for each in outcome.touched if each.lot != lot.lot), lot)
    account = lots.put(account, lot)
    account = account._replace(revocations={**account.revocations, revocation.reference_id: revocation})
    return account, outcome._replace(touched=touched, revocations=(revocation,))
