"""Freezing an account and ending it: reads, repeats and limits go on, credits stand still."""

from datetime import datetime

from services.ledger.rules import lots
from services.ledger.rules.model import ACTIVE, FROZEN, Account, Audit, Noted
from services.ledger.rules.requests import Freeze, Unfreeze


def freeze(account: Account, asked: Freeze, now: datetime) -> tuple[Account, Noted]:
    """Frozen from now on, or still since the first freeze; the reason given last is what callers see."""
    frozen_at = account.frozen_at or now
    after = account._replace(state=FROZEN, frozen_reason=asked.reason, frozen_at=frozen_at, last_at=now)
    return after, Noted(
        lots.totals(after, now), frozen_at=frozen_at, audit=_audit("freeze_account", account, after, asked)
    )


def unfreeze(account: Account, asked: Unfreeze, now: datetime) -> tuple[Account, Noted]:
    """Active again."""
    after = account._replace(state=ACTIVE, frozen_reason="", frozen_at=None, last_at=now)
    return after, Noted(lots.totals(after, now), audit=_audit("unfreeze_account", account, after, asked))


def _audit(action: str, before: Account, after: Account, asked: Freeze | Unfreeze) -> Audit:
    return Audit(
        action=action,
        actor=asked.actor,
        before={"state": before.state, "frozenReason": before.frozen_reason},
        after={"state": after.state, "frozenReason": after.frozen_reason},
        reason=asked.reason,
        request_id=asked.request_id,
    )
