"""What is owed to the ledger or the provider, keyed by the fact that caused it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from services.subscriptions.rules.claims import Revocation
from services.subscriptions.rules.entitlements import ServiceEntitlement, as_json
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.funding import Grant, Refund

ATTEMPTS_MAX = 10
BACKOFF_BASE_SECONDS = 30
BACKOFF_MAX_SECONDS = 4 * 3600
# Longer than any attempt: until then nobody else takes the task.
LEASE = timedelta(seconds=45)

Counterpart = Literal["ledger", "provider"]


@dataclass(frozen=True)
class NewTask:
    """A task to be written; a second one with the same key is the same task."""

    tenant_id: str
    task_type: str
    counterpart: Counterpart
    idempotency_key: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A task as it stands."""

    id: str
    position: int
    tenant_id: str
    task_type: str
    counterpart: Counterpart
    idempotency_key: str
    payload: Mapping[str, Any]
    attempts: int
    last_error: str | None
    next_attempt_at: datetime
    completed_at: datetime | None
    abandoned_at: datetime | None
    created_at: datetime


def grant_credits(grant: Grant) -> NewTask:
    """Owes the ledger a grant."""
    about = {"razorpaySubscriptionId": grant.razorpay_subscription_id}
    return NewTask(
        grant.tenant_id,
        "grant_credits",
        "ledger",
        f"grant:{grant.reference_id}",
        {
            "referenceId": grant.reference_id,
            "bucket": grant.bucket,
            "credits": grant.credits,
            "expiresAt": grant.expires_at.isoformat() if grant.expires_at else None,
            "lateSeconds": _late_seconds(grant),
            "reason": grant.kind,
            "description": grant.description,
            "paymentId": grant.payment_id,
        }
        | (about if grant.razorpay_subscription_id else {}),
    )


def _late_seconds(grant: Grant) -> int | None:
    """How long credits live that were paid for and reach the ledger after their end; None: they are not owed then."""
    if grant.payment_id is None or grant.period_start is None or grant.period_end is None:
        return None
    return int((grant.period_end - grant.period_start).total_seconds())


def push_entitlements(
    tenant_id: str, version: int, plan_id: str, services: Sequence[ServiceEntitlement]
) -> NewTask:
    """Owes the ledger a tenant's limits."""
    return NewTask(
        tenant_id,
        "push_entitlements",
        "ledger",
        f"entitlements:{version}",
        {"version": version, "planCode": plan_id, "services": as_json(services)},
    )


def cancel_subscription(known: KnownSubscription, why: str) -> NewTask:
    """Owes the provider the end of a subscription, so that it never charges again."""
    return NewTask(
        known.tenant_id,
        "cancel_provider_subscription",
        "provider",
        f"cancel:{known.id}",
        {"razorpaySubscriptionId": known.id, "why": why},
    )


def cancel_orphan(tenant_id: str, subscription_id: str, why: str, *, suffix: str = "") -> NewTask:
    """Owes the provider the end of a subscription that we may not hold; a suffix makes it another cancellation."""
    return NewTask(
        tenant_id,
        "cancel_provider_subscription",
        "provider",
        f"cancel:{subscription_id}{suffix}",
        {"razorpaySubscriptionId": subscription_id, "why": why},
    )


def drop_subscription(known: KnownSubscription, why: str) -> NewTask:
    """Owes the provider the end of a purchase that nobody paid; one that was paid meanwhile stays."""
    return NewTask(
        known.tenant_id,
        "cancel_provider_subscription",
        "provider",
        f"drop:{known.id}",
        {"razorpaySubscriptionId": known.id, "why": why, "unlessPaid": True},
    )


def end_subscription(known: KnownSubscription, *, at_cycle_end: bool, since: datetime) -> NewTask:
    """Owes the provider a scheduled end: no charge follows the cycle that is paid."""
    return NewTask(
        known.tenant_id,
        "cancel_provider_subscription",
        "provider",
        f"end:{known.id}:{int(since.timestamp())}",
        {
            "razorpaySubscriptionId": known.id,
            "why": "its scheduled end has come",
            "atCycleEnd": at_cycle_end,
        },
    )


def refund_key(refund: Refund) -> str:
    """The key of the task that gives a refund."""
    return f"refund:{refund.id}"


def refund_payment(tenant_id: str, refund: Refund, *, notes: Mapping[str, str]) -> NewTask:
    """Owes the customer money; the refund's id is the provider's idempotency key."""
    return NewTask(
        tenant_id,
        "refund_payment",
        "provider",
        refund_key(refund),
        {
            "refundId": refund.id,
            "paymentId": refund.payment_id,
            "amountPaise": refund.amount_paise,
            "notes": {"refund_id": refund.id, "kind": refund.kind, **notes},
        },
    )


def revoke_grant(tenant_id: str, revocation: Revocation) -> NewTask:
    """Owes the ledger that credits are taken back."""
    return NewTask(
        tenant_id,
        "revoke_grant",
        "ledger",
        f"revoke:{revocation.reference_id}",
        {
            "referenceId": revocation.reference_id,
            "grantReferenceId": revocation.grant_reference_id,
            "credits": revocation.credits,
            "reason": f"payment.{revocation.cause}",
            "causeId": revocation.cause_id,
        },
    )


def restore_grant(tenant_id: str, revocation: Revocation) -> NewTask:
    """Owes the ledger that credits come back, since the dispute that took them was won."""
    return NewTask(
        tenant_id,
        "restore_grant",
        "ledger",
        f"restore:{revocation.reference_id}",
        {
            "referenceId": f"restore:{revocation.reference_id}",
            "revocationReferenceId": revocation.reference_id,
            "causeId": revocation.cause_id,
        },
    )


def fetch_and_apply(known: KnownSubscription, cause: str) -> NewTask:
    """Owes ourselves the provider's own word on a subscription; `cause` names the event that left it open."""
    return NewTask(
        known.tenant_id,
        "fetch_and_apply",
        "provider",
        f"fetch:{known.id}:{cause}",
        {"razorpaySubscriptionId": known.id, "cause": cause},
    )
