"""Limits of one tenant: entitlements, usage, grace periods."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tests.ledger.model.credits import Refused


@dataclass(frozen=True)
class Ceiling:
    """One limit as it was pushed; `value` None: unlimited."""

    value: int | None
    soft: bool = False
    grace_seconds: int = 0
    addon: str = ""


@dataclass(frozen=True)
class Decision:
    """What a limit has to say."""

    key: str
    allowed: bool
    reason: str
    limit: int | None
    used: int
    grace_expires_at: datetime | None = None
    addon: str = ""

    @property
    def remaining(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - self.used)


class Limits:
    def __init__(self) -> None:
        self.version = 0
        self.services: dict[str, dict[str, Ceiling]] = {}  # only the enabled ones
        self.usage: dict[str, int] = {}
        self.grace: dict[str, datetime] = {}

    def copy(self) -> Limits:
        return copy.deepcopy(self)

    def push(self, version: int, services: dict[str, dict[str, Ceiling]]) -> bool:
        """Whether it was applied; an older version is not."""
        if version < self.version:
            return False
        self.version, self.services = version, services
        return True

    def decide(self, at: datetime, key: str, requested: int, *, used: int | None = None) -> Decision:
        """May so many more be used? Opens nothing."""
        counted = self.usage.get(key, 0) if used is None else used
        service, name = key.split(".")
        if service not in self.services:
            return Decision(key, False, "SERVICE_DISABLED", 0, counted)
        if name not in self.services[service]:
            raise Refused("UNKNOWN_LIMIT", limit_key=key)
        ceiling = self.services[service][name]
        if ceiling.value is None:
            return Decision(key, True, "UNLIMITED", None, counted, addon=ceiling.addon)
        said = (ceiling.value, counted, self.grace.get(key), ceiling.addon)
        if counted + requested <= ceiling.value:
            return Decision(key, True, "WITHIN_LIMIT", *said)
        if ceiling.soft:
            return Decision(key, True, "SOFT_LIMIT_EXCEEDED", *said)
        # One that was opened lasts until its end, whatever later plans say.
        if at < self.grace[key] if key in self.grace else ceiling.grace_seconds:
            return Decision(key, True, "GRACE_PERIOD", *said)
        return Decision(key, False, "PLAN_LIMIT_REACHED", *said)

    def consume(self, at: datetime, amounts: Sequence[tuple[str, int]]) -> list[Decision]:
        """What each says before it is counted; all or nothing."""
        before = []
        for key, amount in amounts:
            decision = self.decide(at, key, amount)
            if not decision.allowed:
                raise Refused("PLAN_LIMIT_REACHED", limit_key=key, used=decision.used, requested=amount)
            self._open_grace(at, decision)
            self.usage[key] = self.usage.get(key, 0) + amount
            before.append(decision)
        return before

    def release(self, at: datetime, amounts: Sequence[tuple[str, int]]) -> None:
        for key, amount in amounts:
            self._known_or_counted(at, key)
            self.usage[key] = max(0, self.usage.get(key, 0) - amount)

    def set(self, at: datetime, key: str, used: int) -> None:
        self._known_or_counted(at, key)
        self.usage[key] = used
        self._open_grace(at, *self.after(at, [key]))

    def after(self, at: datetime, keys: Sequence[str]) -> list[Decision]:
        """What each limit says once the operation is over."""
        said = []
        for key in keys:
            try:
                said.append(self.decide(at, key, 0))
            except Refused:  # usage is a fact, also where the plan has no such limit any more
                used = self.usage[key]
                reason = "PLAN_LIMIT_REACHED" if used else "WITHIN_LIMIT"
                said.append(Decision(key, not used, reason, 0, used))
        return said

    def edges(self) -> list[datetime]:
        return sorted(self.grace.values())

    def _known_or_counted(self, at: datetime, key: str) -> None:
        if key not in self.usage:
            self.decide(at, key, 0)

    def _open_grace(self, at: datetime, decision: Decision) -> None:
        if decision.reason == "GRACE_PERIOD" and decision.key not in self.grace:
            service, name = decision.key.split(".")
            self.grace[decision.key] = at + timedelta(seconds=self.services[service][name].grace_seconds)
