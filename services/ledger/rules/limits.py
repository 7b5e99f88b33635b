"""What a limit says about one more use."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

WITHIN_LIMIT = "within_limit"
UNLIMITED = "unlimited"
SOFT_LIMIT_EXCEEDED = "soft_limit_exceeded"
GRACE_PERIOD = "grace_period"
PLAN_LIMIT_REACHED = "plan_limit_reached"
SERVICE_DISABLED = "service_disabled"

HARD = "hard"
SOFT = "soft"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a tenant. `value` None: there is no ceiling."""

    key: str
    value: int | None
    kind: str = HARD
    grace_seconds: int = 0
    addon: str = ""


@dataclass(frozen=True, slots=True)
class ServiceEntitlement:
    """What a tenant may use of one service."""

    service_code: str
    enabled: bool
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class LimitState:
    """Everything that a decision about one limit is made from, read at one moment."""

    limit_key: str
    enabled: bool
    limit: Limit | None  # None: the plan has no such limit
    used: int
    grace_expires_at: datetime | None
    entitlements_version: int
    as_of: datetime


@dataclass(frozen=True, slots=True)
class LimitDecision:
    """What the limit says, and why."""

    limit_key: str
    allowed: bool
    reason: str
    limit: int | None
    used: int
    remaining: int | None
    kind: str
    grace_expires_at: datetime | None
    addon: str


def meaning(services: Iterable[ServiceEntitlement]) -> dict[str, tuple[bool, frozenset[Limit]]]:
    """What the services amount to, whatever their order; one that is disabled and bare is as good as absent."""
    return {
        each.service_code: (each.enabled, frozenset(each.limits))
        for each in services
        if each.enabled or each.limits
    }


def decide(state: LimitState, requested: int, current_usage: int | None) -> LimitDecision:
    """Whether `requested` more fits. The caller's own count, when it has one, takes the place of ours."""
    limit = state.limit or Limit(key=state.limit_key, value=0)
    used = state.used if current_usage is None else current_usage
    ceiling = limit.value
    if not state.enabled:
        allowed, reason = False, SERVICE_DISABLED
    elif ceiling is None:
        allowed, reason = True, UNLIMITED
    elif used + requested <= ceiling:
        allowed, reason = True, WITHIN_LIMIT
    elif limit.kind == SOFT:
        allowed, reason = True, SOFT_LIMIT_EXCEEDED
    elif state.grace_expires_at is not None and state.as_of < state.grace_expires_at:
        allowed, reason = True, GRACE_PERIOD
    else:
        allowed, reason = False, PLAN_LIMIT_REACHED
    return LimitDecision(
        limit_key=state.limit_key,
        allowed=allowed,
        reason=reason,
        limit=ceiling,
        used=used,
        remaining=None if ceiling is None else max(0, ceiling - used),
        kind=limit.kind,
        grace_expires_at=state.grace_expires_at,
        addon=limit.addon,
    )
