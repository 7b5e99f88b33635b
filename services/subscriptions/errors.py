"""Every refusal of the room; `ErrorReason` in the contract says when each occurs and what to do.

NotFound            UnknownTenant  UnknownPlan  UnknownCreditPack  UnknownTask  UnknownCheckout  UnknownPayment
FailedPrecondition  IdempotencyKeyReused  PlanNotForSale  AlreadySubscribed  SubscriptionExists  PaymentMismatch
                    TaskCompleted  ProviderRefused  ProviderNotConfigured
InvalidArgument     PageTokenInvalid
PermissionDenied    SignatureMismatch
Aborted             Conflict
Unavailable         ProviderUnavailable
"""

from shared.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)


class UnknownTenant(NotFound):
    reason = "UNKNOWN_TENANT"


class UnknownPlan(NotFound):
    reason = "UNKNOWN_PLAN"


class UnknownCreditPack(NotFound):
    reason = "UNKNOWN_CREDIT_PACK"


class UnknownTask(NotFound):
    reason = "UNKNOWN_TASK"


class UnknownCheckout(NotFound):
    reason = "UNKNOWN_CHECKOUT"


class UnknownPayment(NotFound):
    reason = "UNKNOWN_PAYMENT"


class IdempotencyKeyReused(FailedPrecondition):
    reason = "IDEMPOTENCY_KEY_REUSED"


class PlanNotForSale(FailedPrecondition):
    reason = "PLAN_NOT_FOR_SALE"


class AlreadySubscribed(FailedPrecondition):
    reason = "ALREADY_SUBSCRIBED"


class SubscriptionExists(FailedPrecondition):
    reason = "SUBSCRIPTION_EXISTS"


class PaymentMismatch(FailedPrecondition):
    reason = "PAYMENT_MISMATCH"


class TaskCompleted(FailedPrecondition):
    reason = "TASK_COMPLETED"


class ProviderRefused(FailedPrecondition):
    """The provider said no; repeating does not help."""

    reason = "PROVIDER_REFUSED"


class ProviderNotConfigured(FailedPrecondition):
    reason = "PROVIDER_NOT_CONFIGURED"


class PageTokenInvalid(InvalidArgument):
    reason = "PAGE_TOKEN_INVALID"


class SignatureMismatch(PermissionDenied):
    reason = "SIGNATURE_MISMATCH"


class Conflict(Aborted):
    """Another call with the same key is at work; repeating finds its result."""

    reason = "CONFLICT"


class ProviderUnavailable(Unavailable):
    """What the provider did is unknown: ask again with the same key."""

    reason = "PROVIDER_UNAVAILABLE"
