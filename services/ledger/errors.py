"""Every refusal of the ledger; the reasons are those of the contract's ErrorReason.

FailedPrecondition
├── InsufficientCredits      remembered under its key
├── ConditionFailed          remembered
├── PlanLimitReached         remembered
├── HoldAlreadyCaptured      remembered
├── HoldAlreadyVoided        remembered
├── HoldExpired              remembered
├── ExceedsHold              remembered
├── ExceedsRefundable        remembered
├── IdempotencyKeyReused
├── AccountFrozen
├── DuplicateReference
├── LotMismatch
└── GroupAborted
NotFound
├── UnknownTenant
├── UnknownTransaction
├── UnknownHold
├── UnknownGrant
├── UnknownFinding
├── UnknownLine
└── UnknownLimit
InvalidArgument ── AlreadyExpired
ResourceExhausted ── LaneFull
"""

from shared import errors


class InsufficientCredits(errors.FailedPrecondition):
    reason = "INSUFFICIENT_CREDITS"


class ConditionFailed(errors.FailedPrecondition):
    reason = "CONDITION_FAILED"


class PlanLimitReached(errors.FailedPrecondition):
    reason = "PLAN_LIMIT_REACHED"


class HoldAlreadyCaptured(errors.FailedPrecondition):
    reason = "HOLD_ALREADY_CAPTURED"


class HoldAlreadyVoided(errors.FailedPrecondition):
    reason = "HOLD_ALREADY_VOIDED"


class HoldExpired(errors.FailedPrecondition):
    reason = "HOLD_EXPIRED"


class ExceedsHold(errors.FailedPrecondition):
    reason = "EXCEEDS_HOLD"


class ExceedsRefundable(errors.FailedPrecondition):
    reason = "EXCEEDS_REFUNDABLE"


class IdempotencyKeyReused(errors.FailedPrecondition):
    reason = "IDEMPOTENCY_KEY_REUSED"


class AccountFrozen(errors.FailedPrecondition):
    reason = "ACCOUNT_FROZEN"


class DuplicateReference(errors.FailedPrecondition):
    reason = "DUPLICATE_REFERENCE"


class LotMismatch(errors.FailedPrecondition):
    reason = "LOT_MISMATCH"


class GroupAborted(errors.FailedPrecondition):
    reason = "GROUP_ABORTED"


class UnknownTenant(errors.NotFound):
    reason = "UNKNOWN_TENANT"


class UnknownTransaction(errors.NotFound):
    reason = "UNKNOWN_TRANSACTION"


class UnknownHold(errors.NotFound):
    reason = "UNKNOWN_HOLD"


class UnknownGrant(errors.NotFound):
    reason = "UNKNOWN_GRANT"


class UnknownFinding(errors.NotFound):
    reason = "UNKNOWN_FINDING"


class UnknownLine(errors.NotFound):
    reason = "UNKNOWN_LINE"


class UnknownLimit(errors.NotFound):
    reason = "UNKNOWN_LIMIT"


class AlreadyExpired(errors.InvalidArgument):
    reason = "ALREADY_EXPIRED"


class LaneFull(errors.ResourceExhausted):
    reason = "LANE_FULL"


# Refusals that are an answer: stored under their key and repeated, so that a retry after a top-up cannot charge
# for work that the caller gave up.
REMEMBERED: tuple[type[errors.FailedPrecondition], ...] = (
    InsufficientCredits,
    ConditionFailed,
    PlanLimitReached,
    HoldAlreadyCaptured,
    HoldAlreadyVoided,
    HoldExpired,
    ExceedsHold,
    ExceedsRefundable,
)
