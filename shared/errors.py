"""Every category of refusal. Servicers raise these; one interceptor maps them to a status, another maps it back.

BillingError
├── InvalidArgument      malformed; names every field         never remembered
├── Unauthenticated      no or a wrong key
├── PermissionDenied     a key that may not call this service
├── NotFound
├── AlreadyExists
├── FailedPrecondition   the state refuses; `reason` says which rule
├── ResourceExhausted    shed: nothing was done, try again later
│   └── RateLimited      more calls than allowed: nothing was done, try again when it says
├── Unimplemented        declared in the contract, left out by this release
├── Aborted              lost a race: nothing was done, try again
├── Unavailable          ─┐
├── DeadlineExceeded      ├ unknown outcome: ask again with the same idempotency key
└── Internal             ─┘
"""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

Value: TypeAlias = str | int


class BillingError(Exception):
    """A refusal that a caller can act on: a stable `reason`, a sentence for a person, values as metadata."""

    code: ClassVar[str] = "INTERNAL"
    reason: str = "INTERNAL"
    # False: the effect may or may not have happened, so the caller asks again with the same key.
    definite: ClassVar[bool] = True

    def __init__(self, message: str, *, reason: str | None = None, **metadata: Value) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {name: str(value) for name, value in metadata.items()}
        # Protobuf messages that travel in the status beside its reason; on the caller's side those of other types
        # than google.rpc's come back here, packed.
        self.details: Sequence[Any] = ()
        if reason is not None:
            self.reason = reason


class InvalidArgument(BillingError):
    """Malformed input. `violations` lists (field, what is wrong and the fix) for every field at once."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[tuple[str, str]] = (),
        reason: str | None = None,
        **metadata: Value,
    ) -> None:
        super().__init__(message, reason=reason, **metadata)
        self.violations = tuple(violations)


class Unauthenticated(BillingError):
    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class PermissionDenied(BillingError):
    code = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"


class NotFound(BillingError):
    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class AlreadyExists(BillingError):
    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class FailedPrecondition(BillingError):
    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class ResourceExhausted(BillingError):
    """Refused before anything was done; the answer carries RetryInfo."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float = 1.0,
        reason: str | None = None,
        **metadata: Value,
    ) -> None:
        super().__init__(message, reason=reason, **metadata)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(ResourceExhausted):
    """More calls than the limit allows; `retry_after_seconds` says when the next one may come."""

    reason = "RATE_LIMITED"


class Aborted(BillingError):
    code = "ABORTED"
    reason = "ABORTED"


class Unimplemented(BillingError):
    code = "UNIMPLEMENTED"
    reason = "UNIMPLEMENTED"


class Unavailable(BillingError):
    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"
    definite = False


class DeadlineExceeded(BillingError):
    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"
    definite = False


class Internal(BillingError):
    code = "INTERNAL"
    reason = "INTERNAL"
    definite = False


BY_CODE: dict[str, type[BillingError]] = {
    category.code: category
    for category in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Aborted,
        Unimplemented,
        Unavailable,
        DeadlineExceeded,
        Internal,
    )
}
