"""The columns of an account that people read and no decision does: written with every change, from the lots."""

from datetime import datetime
from typing import NamedTuple

from services.ledger import errors
from services.ledger.rules import lots
from services.ledger.rules.model import SUBSCRIPTION, Account, Audit, Mirrors, Noted
from services.ledger.rules.requests import RebuildMirrors


class Stored(NamedTuple):
    """What an account's row says, and whether its lots are what its lines came to."""

    mirrors: Mirrors
    sound: bool


def of(account: Account) -> Mirrors:
    """What the account's lots come to."""
    subscription = permanent = held = 0
    ends_at = None
    for lot in account.lots:
        held += lot.held
        if lot.bucket != SUBSCRIPTION:
            permanent += lot.remaining
            continue
        subscription += lot.remaining
        until = lot.usable_until
        if until is not None and (ends_at is None or until > ends_at):
            ends_at = until
    return Mirrors(subscription + permanent, subscription, ends_at, permanent, held)


def rebuild(account: Account, asked: RebuildMirrors, stored: Stored, now: datetime) -> tuple[Account, Noted]:
    """Writes them anew and nothing else, on a frozen account too: it is not about its credits."""
    if not stored.sound:
        raise errors.LotMismatch(
            "the account's lots are not what its lines came to; nothing was written from them",
            tenant_id=account.tenant_id,
        )
    after = account._replace(last_at=now)
    noted = Noted(
        lots.totals(after, now),
        mirrors=(stored.mirrors, of(after)),
        audit=Audit(
            action="rebuild_mirrors",
            actor=asked.actor,
            before=_shown(stored.mirrors),
            after=_shown(of(after)),
            reason=asked.reason,
            request_id=asked.request_id,
        ),
    )
    return after, noted


def _shown(mirrors: Mirrors) -> dict[str, object]:
    ends_at = mirrors.subscription_expires_at
    return {
        "balance": mirrors.balance,
        "subscriptionBalance": mirrors.subscription_balance,
        "subscriptionExpiresAt": None if ends_at is None else ends_at.isoformat(),
        "permanentBalance": mirrors.permanent_balance,
        "held": mirrors.held,
    }
