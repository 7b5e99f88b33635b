"""Every refusal of the room; `ErrorReason` in the contract says when each occurs and what to do.

NotFound            UnknownTenant  UnknownPlan  UnknownCreditPack  UnknownTask  UnknownCheckout  UnknownPayment
                    UnknownInvoice  UnknownAddon  UnknownOverride  UnknownFinding
FailedPrecondition  IdempotencyKeyReused  PlanNotForSale  AlreadySubscribed  SubscriptionExists  ChangePending
                    NoPendingChange  NoSubscription  WrongStatus  QuoteStale  PaymentMismatch  RefundExceedsPayment
                    TaskCompleted  NotAnOrphan  CheckoutClosed  ProviderRefused  ProviderNotConfigured  AddonExists
                    AddonWithoutEffect  InsufficientCredits  AccountFrozen  CatalogInvalid  FindingResolved
InvalidArgument     PageTokenInvalid  GstinInvalid
PermissionDenied    SignatureMismatch
Aborted             Conflict
Unavailable         ProviderUnavailable  LedgerUnavailable
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


class UnknownAddon(NotFound):
    reason = "UNKNOWN_ADDON"


class UnknownOverride(NotFound):
    reason = "UNKNOWN_OVERRIDE"


class UnknownTask(NotFound):
    reason = "UNKNOWN_TASK"


class UnknownCheckout(NotFound):
    reason = "UNKNOWN_CHECKOUT"


class UnknownPayment(NotFound):
    reason = "UNKNOWN_PAYMENT"


class UnknownInvoice(NotFound):
    reason = "UNKNOWN_INVOICE"


class UnknownFinding(NotFound):
    reason = "UNKNOWN_FINDING"


class IdempotencyKeyReused(FailedPrecondition):
    reason = "IDEMPOTENCY_KEY_REUSED"


class PlanNotForSale(FailedPrecondition):
    reason = "PLAN_NOT_FOR_SALE"


class AlreadySubscribed(FailedPrecondition):
    reason = "ALREADY_SUBSCRIBED"


class SubscriptionExists(FailedPrecondition):
    reason = "SUBSCRIPTION_EXISTS"


class ChangePending(FailedPrecondition):
    reason = "CHANGE_PENDING"


class NoPendingChange(FailedPrecondition):
    reason = "NO_PENDING_CHANGE"


class NoSubscription(FailedPrecondition):
    reason = "NO_SUBSCRIPTION"


class WrongStatus(FailedPrecondition):
    reason = "WRONG_STATUS"


class QuoteStale(FailedPrecondition):
    reason = "QUOTE_STALE"


class RefundExceedsPayment(FailedPrecondition):
    reason = "REFUND_EXCEEDS_PAYMENT"


class CheckoutClosed(FailedPrecondition):
    reason = "CHECKOUT_CLOSED"


class AddonExists(FailedPrecondition):
    reason = "ADDON_EXISTS"


class AddonWithoutEffect(FailedPrecondition):
    reason = "ADDON_WITHOUT_EFFECT"


class InsufficientCredits(FailedPrecondition):
    reason = "INSUFFICIENT_CREDITS"


class AccountFrozen(FailedPrecondition):
    reason = "ACCOUNT_FROZEN"


class CatalogInvalid(FailedPrecondition):
    reason = "CATALOG_INVALID"


class PaymentMismatch(FailedPrecondition):
    reason = "PAYMENT_MISMATCH"


class NotAnOrphan(FailedPrecondition):
    reason = "NOT_AN_ORPHAN"


class TaskCompleted(FailedPrecondition):
    reason = "TASK_COMPLETED"


class FindingResolved(FailedPrecondition):
    reason = "FINDING_RESOLVED"


class ProviderRefused(FailedPrecondition):
    """The provider said no; repeating does not help."""

    reason = "PROVIDER_REFUSED"


class ProviderNotConfigured(FailedPrecondition):
    reason = "PROVIDER_NOT_CONFIGURED"


class PageTokenInvalid(InvalidArgument):
    reason = "PAGE_TOKEN_INVALID"


class GstinInvalid(InvalidArgument):
    reason = "GSTIN_INVALID"


class SignatureMismatch(PermissionDenied):
    reason = "SIGNATURE_MISMATCH"


class Conflict(Aborted):
    """Another call with the same key is at work; repeating finds its result."""

    reason = "CONFLICT"


class ProviderUnavailable(Unavailable):
    """What the provider did is unknown: ask again with the same key."""

    reason = "PROVIDER_UNAVAILABLE"


class LedgerUnavailable(Unavailable):
    """What the ledger did is unknown: ask again with the same key."""

    reason = "LEDGER_UNAVAILABLE"


class ProviderBusy(ProviderUnavailable):
    """The provider did nothing: it was not reached, or asked to be left alone for a while."""
