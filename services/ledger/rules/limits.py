"""What a limit says about one more use, and what counting does to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.ledger import errors

WITHIN_LIMIT = "within_limit"
UNLIMITED = "unlimited"
SOFT_LIMIT_EXCEEDED = "soft_limit_exceeded"
GRACE_PERIOD = "grace_period"
PLAN_LIMIT_REACHED = "plan_limit_reached"
SERVICE_DISABLED = "service_disabled"

HARD = "hard"
SOFT = "soft"

# Where a bigint ends. Counting stops here whatever the plan says, since the next one could not be stored.
USED_MAX = 2**63 - 1


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
    """Everything that a decision about one limit is made from."""

    limit_key: str
    enabled: bool
    limit: Limit | None  # None: the plan has no such limit
    used: int
    counted: bool  # whether usage was ever stored, be it 0
    grace_expires_at: (
        datetime | None
    )  # None: never opened; one that is over stays, so that it opens only once
    entitlements_version: int

    @property
    def known(self) -> bool:
        """Whether there is anything to decide by: a service that the plan lacks refuses, a limit is unknown."""
        return self.limit is not None or not self.enabled


@dataclass(frozen=True, slots=True)
class LimitDecision:
    """What the limit says about `requested` more, and why."""

    limit_key: str
    allowed: bool
    reason: str
    limit: int | None
    used: int
    remaining: int | None
    kind: str
    grace_expires_at: datetime | None  # None: none is open
    addon: str
    requested: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """What counting did, or why it did nothing."""

    # One for each limit asked, in the order asked: as it stands afterwards, or, where one refuses, as before.
    decisions: tuple[LimitDecision, ...]
    refused: LimitDecision | None  # the first that refuses; then nothing changes
    changed: tuple[LimitState, ...]


def meaning(services: Iterable[ServiceEntitlement]) -> dict[str, tuple[bool, frozenset[Limit]]]:
    """What the services amount to, whatever their order; one that is disabled and bare is as good as absent."""
    return {
        each.service_code: (each.enabled, frozenset(each.limits))
        for each in services
        if each.enabled or each.limits
    }


def decide(
    state: LimitState, requested: int, now: datetime, *, current_usage: int | None = None
) -> LimitDecision:
    """Whether `requested` more fits. The caller's own count, when it has one, takes the place of ours.

    A grace period that nothing opened yet allows without an end: counting would begin it.
    """
    limit = _limit_of(state)
    used = state.used if current_usage is None else current_usage
    allowed, reason = _verdict(state, limit, used + requested, now)
    open_until = state.grace_expires_at
    return LimitDecision(
        limit_key=state.limit_key,
        allowed=allowed,
        reason=reason,
        limit=limit.value,
        used=used,
        remaining=None if limit.value is None else max(0, limit.value - used),
        kind=limit.kind,
        grace_expires_at=open_until if open_until is not None and now < open_until else None,
        addon=limit.addon,
        requested=requested,
    )


def consume(states: Mapping[str, LimitState], amounts: Sequence[tuple[str, int]], now: datetime) -> Counted:
    """Counts all amounts or none. A limit named twice is asked for the sum; UnknownLimit before any decision."""
    found = {key: states.get(key) for key, _ in amounts}
    before = {key: _required(key, state, counted_suffices=False) for key, state in found.items()}
    asked = dict.fromkeys(before, 0)
    decisions = []
    for key, amount in amounts:
        asked[key] += amount
        decisions.append(decide(before[key], asked[key], now))
    refused = next((each for each in decisions if not each.allowed), None)
    if refused is not None:
        return Counted(tuple(decisions), refused, ())
    after = {key: _with_usage(state, state.used + asked[key], now) for key, state in before.items()}
    return _answer(before, after, [key for key, _ in amounts], now)


def release(states: Mapping[str, LimitState], amounts: Sequence[tuple[str, int]], now: datetime) -> Counted:
    """Gives usage back, down to zero; never refused."""
    found = {key: states.get(key) for key, _ in amounts}
    before = {key: _required(key, state, counted_suffices=True) for key, state in found.items()}
    after = dict(before)
    for key, amount in amounts:
        after[key] = replace(after[key], used=max(0, after[key].used - amount))
    return _answer(before, after, [key for key, _ in amounts], now)


def set_usage(states: Mapping[str, LimitState], limit_key: str, used: int, now: datetime) -> Counted:
    """Takes over what was counted elsewhere; never refused, since usage is a fact."""
    before = {limit_key: _required(limit_key, states.get(limit_key), counted_suffices=True)}
    after = {limit_key: _with_usage(before[limit_key], min(used, USED_MAX), now)}
    return _answer(before, after, [limit_key], now)


def limit_reached(refused: LimitDecision) -> errors.PlanLimitReached:
    """The refusal that a decision amounts to."""
    values = {
        "limit_key": refused.limit_key,
        "limit": refused.limit,
        "used": refused.used,
        "requested": refused.requested,
        "addon": refused.addon or None,
    }
    metadata = {name: str(value) for name, value in values.items() if value is not None}
    if refused.reason == SERVICE_DISABLED:
        service = refused.limit_key.partition(".")[0]
        return errors.PlanLimitReached(
            f"{service} is not part of the tenant's plan", **metadata, why=SERVICE_DISABLED
        )
    ceiling = USED_MAX if refused.limit is None else refused.limit
    return errors.PlanLimitReached(
        f"{refused.limit_key}: {refused.used} of {ceiling} are used, {refused.requested} more were asked for",
        **metadata,
    )


def unknown_limit(limit_key: str) -> errors.UnknownLimit:
    """The refusal for a limit that the plan does not have."""
    return errors.UnknownLimit(f"the tenant's plan has no limit {limit_key}", limit_key=limit_key)


def _limit_of(state: LimitState) -> Limit:
    return state.limit or Limit(key=state.limit_key.partition(".")[2], value=0)


def _verdict(state: LimitState, limit: Limit, used: int, now: datetime) -> tuple[bool, str]:
    if not state.enabled:
        return False, SERVICE_DISABLED
    if used > USED_MAX:
        return False, PLAN_LIMIT_REACHED
    if limit.value is None:
        return True, UNLIMITED
    if used <= limit.value:
        return True, WITHIN_LIMIT
    if limit.kind == SOFT:
        return True, SOFT_LIMIT_EXCEEDED
    if _in_grace(state, limit, now):
        return True, GRACE_PERIOD
    return False, PLAN_LIMIT_REACHED


def _in_grace(state: LimitState, limit: Limit, now: datetime) -> bool:
    if state.grace_expires_at is None:
        return limit.grace_seconds > 0
    return now < state.grace_expires_at


def _required(limit_key: str, state: LimitState | None, *, counted_suffices: bool) -> LimitState:
    if state is None or not (state.known or (counted_suffices and state.counted)):
        raise unknown_limit(limit_key)
    return state


def _with_usage(state: LimitState, used: int, now: datetime) -> LimitState:
    """The state with this usage; the first time that it exceeds a limit with grace begins the grace period."""
    grace_expires_at = state.grace_expires_at
    limit = _limit_of(state)
    exceeded = state.enabled and limit.kind == HARD and limit.value is not None and used > limit.value
    if exceeded and grace_expires_at is None and limit.grace_seconds:
        grace_expires_at = now + timedelta(seconds=limit.grace_seconds)
    return replace(state, used=used, counted=True, grace_expires_at=grace_expires_at)


def _answer(
    before: Mapping[str, LimitState], after: Mapping[str, LimitState], asked: Sequence[str], now: datetime
) -> Counted:
    return Counted(
        decisions=tuple(decide(after[key], 0, now) for key in asked),
        refused=None,
        changed=tuple(state for key, state in after.items() if state != before[key]),
    )
