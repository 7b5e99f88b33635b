"""What a change of plan or cycle costs and does: one function, for the preview and for the execution.

An upgrade is charged at once and gives back the unused part of the old period; everything else waits for its end, so
that nobody pays twice and nobody farms credits by changing to and fro.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from services.subscriptions.errors import (
    AlreadySubscribed,
    ChangePending,
    NoSubscription,
    QuoteStale,
    WrongStatus,
)
from services.subscriptions.rules.catalog import FREE, Catalog, Cycle, Plan
from services.subscriptions.rules.claims import (
    SMALLEST_REFUND_PAISE,
    Granted,
    Paid,
    less_spent,
    unused_credits,
    unused_paise,
)
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy

Kind = Literal["upgrade", "downgrade", "cycle_switch", "cancellation"]
# A mandate that starts later must start in the provider's future, and a customer must have time to authorise it.
LEAST_NOTICE = timedelta(hours=1)


@dataclass(frozen=True)
class Situation:
    """Where a tenant stands when a change is asked for."""

    row: Subscription
    live: KnownSubscription | None
    catalog: Catalog
    # The plan that it has, sold or not.
    current: Plan | None = None
    # The payment of the running period with what it brought: (grant, credits taken back before).
    paid: Paid | None = None
    grants: Sequence[tuple[Granted, int]] = ()
    # All credits that it brings, those of months to come too.
    bought: int = 0


@dataclass(frozen=True)
class Quote:
    """What a change costs and does."""

    kind: Kind
    plan_id: str
    billing_cycle: Cycle | None
    amount_paise: int
    tax_paise: int
    refund_paise: int
    credits_granted: int
    credits_revoked: int
    effective_at: datetime | None
    catalog_version: str
    replaces_subscription_id: str
    payment_id: str | None
    quoted_at: datetime
    expires_at: datetime

    @property
    def may_be_spent(self) -> bool:
        """True if more is to come back than the new plan brings: then it matters what of it is spent."""
        return self.credits_revoked > self.credits_granted

    @property
    def total_paise(self) -> int:
        """What is charged now."""
        return self.amount_paise + self.tax_paise

    def as_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Quote":
        """A quote as it was kept with an answer."""
        return cls(
            **stored | {name: _moment(stored[name]) for name in ("effective_at", "quoted_at", "expires_at")}
        )

    def token(self, secret: str) -> str:
        """Names this quote to its execution."""
        told = json.dumps({"quoted_at": self.quoted_at.isoformat(), "digest": self._digest(secret)})
        return base64.urlsafe_b64encode(told.encode()).decode()

    def _digest(self, secret: str) -> str:
        facts = json.dumps(asdict(self), sort_keys=True, default=str)
        return hmac.new(secret.encode(), facts.encode(), hashlib.sha256).hexdigest()

    def assert_is(self, token: str, secret: str) -> None:
        """Refuse when the token names another quote: something changed since."""
        if not hmac.compare_digest(_told(token)["digest"].encode(), self._digest(secret).encode()):
            raise QuoteStale(
                "the quote no longer holds: call PreviewChange again and show the customer the new one",
                cause="the catalogue, the subscription or its credits changed",
            )


def _moment(stored: str | None) -> datetime | None:
    return datetime.fromisoformat(stored) if stored else None


def quoted_at(token: str, now: datetime, policy: Policy) -> datetime:
    """The moment of a quote, while it may be executed."""
    moment = datetime.fromisoformat(_told(token)["quoted_at"])
    if not moment <= now <= moment + policy.quote_valid:
        raise QuoteStale("the quote has expired: call PreviewChange again", cause="expired")
    return moment


def _told(token: str) -> dict[str, Any]:
    try:
        told = json.loads(base64.urlsafe_b64decode(token.encode()))
        # Anybody may have written it: without a zone it cannot be compared, and JSON can hold half a character.
        if datetime.fromisoformat(told["quoted_at"]).tzinfo is None:
            raise TypeError
        told["digest"].encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise QuoteStale(
            "this is not a quote token: pass PreviewChange's unchanged", cause="unknown"
        ) from error
    return dict(told)


def quote(
    situation: Situation,
    plan: Plan,
    cycle: Cycle | None,
    *,
    at: datetime,
    policy: Policy,
    left: int | None = None,
) -> Quote:
    """What changing to this plan and cycle costs and does, seen from a moment; or why it cannot be.

    `left` is what of the old period's credits is not spent; it matters where `Quote.may_be_spent` says so.
    """
    row, live = situation.row, situation.live
    if live is None or row.razorpay_subscription_id is None:
        raise NoSubscription(
            "the tenant has no paid subscription: use Checkout", status=row.status, plan_code=row.plan_id
        )
    if row.has_pending_change:
        raise ChangePending(
            "another change is under way: CancelPendingChange first",
            kind=row.pending_kind or "",
            since=row.pending_since.isoformat() if row.pending_since else "",
        )
    cycle = (cycle or row.billing_cycle) if plan.is_paid else None
    kind = _kind(situation, plan, cycle)
    ends_at = _end_of_what_is_paid(row, live, kind, at)
    upgrade = kind == "upgrade"
    refund = credits = 0
    paid = situation.paid
    if upgrade and paid is not None and policy.upgrade_refund == "prorated" and paid.refundable(at):
        refund = unused_paise(paid, at)
        if refund and policy.upgrade_credits == "delta_prorated":
            credits = sum(unused_credits(grant, taken, at) for grant, taken in situation.grants)
    drips = cycle == "yearly" and plan.credit_cadence == "monthly"
    granted = (plan.base_credits if drips else plan.credits(cycle)) if cycle else 0
    if left is not None and paid is not None and credits:
        refund, credits = _covered(paid, situation.bought, refund, credits, left, granted)
    return Quote(
        kind=kind,
        plan_id=plan.code,
        billing_cycle=cycle,
        amount_paise=plan.price_paise(cycle) if upgrade and cycle else 0,
        tax_paise=plan.tax_paise(cycle) if upgrade and cycle else 0,
        refund_paise=refund,
        credits_granted=granted,
        credits_revoked=credits,
        effective_at=None if upgrade else ends_at,
        catalog_version=situation.catalog.version,
        replaces_subscription_id=live.id,
        payment_id=paid.id if upgrade and paid else None,
        quoted_at=at,
        expires_at=at + policy.quote_valid,
    )


def _covered(paid: Paid, bought: int, refund: int, asked: int, left: int, granted: int) -> tuple[int, int]:
    """(refund, credits taken back): what is spent is taken of the new credits, what these do not cover of the money."""
    spent = max(0, asked - left)
    of_the_new = min(spent, granted)
    refund = less_spent(refund, paid.amount_paise, bought, spent - of_the_new)
    return (refund if refund >= SMALLEST_REFUND_PAISE else 0), asked - spent + of_the_new


def _kind(situation: Situation, plan: Plan, cycle: Cycle | None) -> Kind:
    row = situation.row
    if plan.code == FREE or not plan.is_paid:
        return "cancellation"
    if plan.code == row.plan_id:
        if cycle == row.billing_cycle:
            raise AlreadySubscribed(
                f"the tenant has {plan.code}, {cycle}", plan_code=plan.code, cycle=cycle or ""
            )
        return "cycle_switch"
    current = situation.current
    dearer = current is None or plan.price_monthly_paise > current.price_monthly_paise
    return "upgrade" if dearer else "downgrade"


def _end_of_what_is_paid(
    row: Subscription, live: KnownSubscription, kind: Kind, at: datetime
) -> datetime | None:
    allowed = ("active", "trialing")
    if live.ended:
        raise WrongStatus(
            "the subscription has ended at the provider and runs out: use Checkout for what follows it",
            status="ended",
            allowed=",".join(allowed),
        )
    if row.status not in allowed:
        raise WrongStatus(
            f"a {row.status} subscription cannot be changed: CancelSubscription ends it at once",
            status=row.status,
            allowed=",".join(allowed),
        )
    if (
        kind != "upgrade"
        and kind != "cancellation"
        and (row.ends_at is None or row.ends_at < at + LEAST_NOTICE)
    ):
        raise WrongStatus(
            "the period is ending and its renewal is under way: ask again after it",
            status=row.status,
            allowed="a period that runs for at least an hour more",
        )
    return row.ends_at
