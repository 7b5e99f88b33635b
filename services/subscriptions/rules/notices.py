"""What tenants are told, and when a notice that did not arrive is tried again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from services.subscriptions.rules.alerts import Over
from services.subscriptions.rules.amounts import with_gst
from services.subscriptions.rules.catalog import Catalog
from services.subscriptions.rules.ladder import DOWNGRADE, DueStep, downgrade_at
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Step
from shared.backoff import delay

TRIAL_ENDING_KIND = "trial_ending"
BACKOFF_BASE_SECONDS = 30
BACKOFF_MAX_SECONDS = 4 * 3600
# After so many attempts a person is told, and only one more is made each day: none is given up.
ATTEMPTS_EAGER = 10
DAILY = timedelta(days=1)
# Longer than any attempt: until then nobody else sends the notice.
LEASE = timedelta(seconds=60)


@dataclass(frozen=True)
class Notice:
    """A notice as it stands."""

    id: str
    tenant_id: str
    kind: str
    cycle_ref: str
    payload: Mapping[str, Any]
    attempts: int
    next_attempt_at: datetime
    sent_at: datetime | None
    skipped_at: datetime | None
    created_at: datetime

    @property
    def body(self) -> dict[str, Any]:
        """What the receiver reads."""
        return {
            "id": self.id,
            "kind": self.kind,
            "tenant_id": self.tenant_id,
            "cycle_ref": self.cycle_ref,
            "created_at": self.created_at.isoformat(),
            "payload": dict(self.payload),
        }


def wait_after(attempts: int) -> timedelta:
    """How long to leave a notice alone that did not arrive so many times."""
    if attempts >= ATTEMPTS_EAGER:
        return DAILY
    return delay(attempts, base_seconds=BACKOFF_BASE_SECONDS, max_seconds=BACKOFF_MAX_SECONDS)


def past_due_payload(
    row: Subscription,
    catalog: Catalog,
    ladder: Sequence[Step],
    step: DueStep,
    latest: str,
    over_limit: Sequence[Over] | None,
) -> dict[str, Any]:
    """What a step of the ladder tells: the row is that of before it."""
    since = row.past_due_since
    ends_at = downgrade_at(ladder, since) if since else None
    plan = catalog.plans.get(row.plan_id)
    payload: dict[str, Any] = {
        "planCode": row.plan_id,
        "billingCycle": row.billing_cycle,
        "razorpaySubscriptionId": row.razorpay_subscription_id,
        "amountPaise": with_gst(plan.price_paise(row.billing_cycle)) if plan and row.billing_cycle else None,
        "pastDueSince": since.isoformat() if since else None,
        "downgradeAt": ends_at.isoformat() if ends_at else None,
    }
    if step.skipped:
        payload["skippedFor"] = latest
    if step.kind == DOWNGRADE and over_limit is not None:
        payload["overLimit"] = [
            {"limit": over.path, "used": over.used, "allowed": over.allowed} for over in over_limit
        ]
    return payload


def trial_payload(row: Subscription) -> dict[str, Any]:
    """What a tenant is told of a trial that ends."""
    return {
        "planCode": row.plan_id,
        "billingCycle": row.billing_cycle,
        "razorpaySubscriptionId": row.razorpay_subscription_id,
        "trialEndAt": row.trial_end.isoformat() if row.trial_end else None,
        "cancelAtPeriodEnd": row.cancel_at_period_end,
    }
