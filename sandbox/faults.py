"""What goes wrong with the REST API on demand."""

import re
from dataclasses import dataclass, field
from typing import Any

from sandbox.errors import Refusal

KINDS = ("status", "refuse", "drop", "delay")
STATUSES = (429, 500, 502, 503, 504)
_ONE_ID = r"[^/]+"


@dataclass(slots=True)
class Fault:
    """Something that goes wrong with the next answers of the REST API."""

    kind: str
    times: int = 1
    skip: int = 0
    status: int = 500
    seconds: float = 0.0
    method: str | None = None
    path: str = "/v1"
    exact: bool = False
    # Whether the work was done when the trouble shows; unset, only a lost answer comes after the work.
    work_done: bool | None = None
    description: str = "Request failed because another subscription operation is in progress"
    code: str = "BAD_REQUEST_ERROR"
    field: str | None = None

    def __post_init__(self) -> None:
        if self.kind == "status" and self.status not in STATUSES:
            raise Refusal(f"status must be one of {', '.join(map(str, STATUSES))}", field="status")
        self.times, self.skip, self.seconds = int(self.times), int(self.skip), float(self.seconds)
        if self.times < 1 or self.skip < 0 or self.seconds < 0:
            raise Refusal("times counts from 1; skip and seconds from 0", field="times")
        if not isinstance(self.path, str) or not isinstance(self.description, str):
            raise Refusal("path and description are texts", field="path")
        if self.work_done is None:
            self.work_done = self.kind == "drop"

    def concerns(self, method: str, path: str) -> bool:
        """Whether it waits for this request; `*` in its path stands for one id."""
        pattern = re.escape(self.path).replace(r"\*", _ONE_ID)
        whole = self.exact or "*" in self.path
        found = re.fullmatch(pattern, path) if whole else re.match(pattern, path)
        return found is not None and self.method in (None, method)

    def shown(self) -> dict[str, Any]:
        """What is still to come of it."""
        return {name: getattr(self, name) for name in ("kind", "times", "skip", "method", "path")}


@dataclass(slots=True)
class Faults:
    """The faults still to come, first come first shown, and the lasting habits."""

    waiting: list[Fault] = field(default_factory=list)
    list_lag_seconds: int = 0
    hold_refunds: bool = False

    def add(self, request: dict[str, Any]) -> None:
        """Takes one up, or says what is wrong with it."""
        kind = request.get("kind")
        if kind == "list_lag":
            self.list_lag_seconds = int(request.get("seconds", 0))
        elif kind == "hold_refunds":
            self.hold_refunds = bool(request.get("on", True))
        elif kind in KINDS:
            try:
                self.waiting.append(Fault(**request))
            except TypeError as error:
                names = ", ".join(Fault.__dataclass_fields__)
                raise Refusal(f"a fault has {names}: {error}") from error
        else:
            raise Refusal(f"kind must be one of {', '.join(KINDS)}, list_lag, hold_refunds", field="kind")

    def clear(self) -> None:
        """Back to good behaviour."""
        self.waiting.clear()
        self.list_lag_seconds, self.hold_refunds = 0, False

    def take(self, method: str, path: str) -> Fault | None:
        """The fault this request meets, counted down."""
        for fault in self.waiting:
            if not fault.concerns(method, path):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if fault.times <= 0:
                self.waiting.remove(fault)
            return fault
        return None

    def shown(self) -> dict[str, Any]:
        """All of it, for the control API."""
        return {
            "waiting": [fault.shown() for fault in self.waiting],
            "list_lag_seconds": self.list_lag_seconds,
            "hold_refunds": self.hold_refunds,
        }
