"""What refunds, lost disputes and changes of plan take back of the credits that a payment brought.

A refund takes floor(granted × min(captured, given back) ÷ captured) less what earlier ones took, of each grant of its
payment; never more than was granted. A dispute that is lost takes as a refund does; one that is won gives back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from services.subscriptions.rules.fence import KnownSubscription

PROVIDER = "razorpay"
Cause = Literal["refund", "dispute", "proration"]


@dataclass(frozen=True)
class Granted:
    """Credits that a payment brought, and the time they were paid for."""

    reference_id: str
    credits: int
    period_start: datetime | None = None
    period_end: datetime | None = None


@dataclass(frozen=True)
class Claim:
    """Money that went back: a refund that is processed, or a dispute that is lost."""

    cause: Literal["refund", "dispute"]
    id: str
    amount_paise: int


@dataclass(frozen=True)
class Revocation:
    """Credits to be taken back of one grant, once."""

    reference_id: str
    grant_reference_id: str
    cause: Cause
    cause_id: str
    credits: int


def revocations(
    captured_paise: int, grants: Sequence[Granted], claims: Sequence[Claim], taken: Sequence[Revocation]
) -> list[Revocation]:
    """What is still to be taken; `taken` are the earlier decisions that were not restored."""
    if captured_paise <= 0:  # an old mirror may hold such a payment: there was nothing to give back
        return []
    return [
        new
        for grant in grants
        for new in _of_grant(
            captured_paise, grant, claims, [t for t in taken if t.grant_reference_id == grant.reference_id]
        )
    ]


def _of_grant(
    captured_paise: int, grant: Granted, claims: Sequence[Claim], taken: Sequence[Revocation]
) -> list[Revocation]:
    decided = {t.cause_id for t in taken}
    by_claims = sum(t.credits for t in taken if t.cause != "proration")
    by_all = sum(t.credits for t in taken)
    given_back = sum(c.amount_paise for c in claims if c.id in decided)
    found = []
    for claim in claims:
        if claim.id in decided:
            continue
        given_back += claim.amount_paise
        share = grant.credits * min(captured_paise, given_back) // captured_paise
        credits = min(share - by_claims, grant.credits - by_all)
        if credits <= 0:
            continue
        by_claims, by_all = by_claims + credits, by_all + credits
        reference = f"{PROVIDER}:{claim.id}{month_suffix(grant.reference_id)}"
        found.append(Revocation(reference, grant.reference_id, claim.cause, claim.id, credits))
    # A change of plan had taken its part when these were decided, and has given it back since.
    share = grant.credits * min(captured_paise, given_back) // captured_paise
    rest = min(share - by_claims, grant.credits - by_all)
    if rest > 0 and claims:
        last = claims[-1]
        reference = f"{PROVIDER}:{last.id}{month_suffix(grant.reference_id)}:rest"
        found.append(Revocation(reference, grant.reference_id, last.cause, last.id, rest))
    return found


def month_suffix(grant_reference_id: str) -> str:
    """`:m3` of the third month of a dripping year, empty for all other grants."""
    head, _, tail = grant_reference_id.rpartition(":m")
    return f":m{tail}" if head and tail.isdigit() else ""


@dataclass(frozen=True)
class Paid:
    """A payment of a plan's cycle, as far as giving it back is concerned."""

    id: str
    amount_paise: int
    period_start: datetime
    period_end: datetime
    paid_at: datetime
    # Given back or taken back already, or on its way; and what of that a change of plan gave back.
    given_back_paise: int = 0
    prorated_paise: int = 0

    def refundable(self, at: datetime) -> bool:
        """Whether the provider still refunds it: banks take normal refunds back for six months."""
        return at < self.paid_at + REFUND_WINDOW


SMALLEST_REFUND_PAISE = 100
REFUND_WINDOW = timedelta(days=180)


def was_forfeited(ended: KnownSubscription, taker: KnownSubscription) -> bool:
    """Whether we had ended a subscription before the one that took its place was begun: that gives nothing back."""
    return ended.released and ended.released_at is not None and ended.released_at <= taker.purchased_at


def unused_paise(paid: Paid, since: datetime) -> int:
    """What of a payment is for time after a moment, tax included, rounded down; nothing below the smallest refund."""
    share = _unused(paid.amount_paise, paid.period_start, paid.period_end, since) - paid.prorated_paise
    share = min(share, paid.amount_paise - paid.given_back_paise)
    return share if share >= SMALLEST_REFUND_PAISE else 0


def unused_credits(grant: Granted, taken: int, since: datetime) -> int:
    """What of a grant is for time after a moment, rounded down, less what was taken before."""
    if grant.period_start is None or grant.period_end is None:
        return 0
    share = _unused(grant.credits, grant.period_start, grant.period_end, since)
    return max(0, min(share, grant.credits - taken))


def less_spent(refund_paise: int, amount_paise: int, bought: int, spent: int) -> int:
    """What goes back when credits of the unused time were spent and nothing else made up for them; rounded down.

    Nobody farms credits by changing to and fro: what was bought and used is paid for.
    """
    return max(0, refund_paise - -(-amount_paise * spent // bought)) if spent else refund_paise


def _unused(whole: int, start: datetime, end: datetime, since: datetime) -> int:
    # Whole seconds, as the provider counts.
    length = int((end - start).total_seconds())
    unused = int((end - max(start, min(since, end))).total_seconds())
    return whole * unused // length if length > 0 else 0
