"""One sandbox: its world, its sender, and the faults it was asked to show."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sandbox import ids
from sandbox.config import SandboxSettings
from sandbox.errors import Refusal
from sandbox.state.world import Journal, World
from sandbox.webhooks import Delivery, Manners, Sender, sign
from shared import clock

Result = TypeVar("Result")
KINDS = ("status", "drop", "delay")


@dataclass(slots=True)
class Fault:
    """Something that goes wrong with the next answers of the REST API."""

    kind: str
    times: int = 1
    status: int = 500
    seconds: float = 0.0
    method: str | None = None
    path: str = "/v1"

    def concerns(self, method: str, path: str) -> bool:
        """Whether it waits for this request."""
        return path.startswith(self.path) and self.method in (None, method)


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
                fault = Fault(**request)
            except TypeError as error:
                raise Refusal(f"a fault has kind, times, status, seconds, method, path: {error}") from error
            if fault.kind == "status" and fault.status not in (429, 500, 502):
                raise Refusal("status must be 429, 500 or 502", field="status")
            self.waiting.append(fault)
        else:
            raise Refusal(f"kind must be one of {', '.join(KINDS)}, list_lag, hold_refunds", field="kind")

    def clear(self) -> None:
        """Back to good behaviour."""
        self.waiting.clear()
        self.list_lag_seconds, self.hold_refunds = 0, False

    def take(self, method: str, path: str) -> Fault | None:
        """The fault this request meets, counted down."""
        for fault in self.waiting:
            if fault.concerns(method, path):
                fault.times -= 1
                if fault.times <= 0:
                    self.waiting.remove(fault)
                return fault
        return None


class Till:
    """Where every change is rung up: all of it or nothing, with the events it causes."""

    def __init__(self, settings: SandboxSettings) -> None:
        self.settings = settings
        journal = Journal(settings.sandbox_state) if settings.sandbox_state else None
        account_id = ids.account_id(settings.razorpay_key_id)
        self.world = World(clock.now, account_id=account_id, journal=journal)
        self.faults = Faults()
        url = settings.sandbox_webhook_url
        self.sender = Sender(
            self.world,
            url=str(url) if url else None,
            secret=settings.razorpay_webhook_secret.get_secret_value(),
            scale=settings.sandbox_retry_scale,
        )

    def ring_up(
        self, change: Callable[[World], Result], *, deliver: bool = True, manners: Manners | None = None
    ) -> tuple[Result, list[Delivery]]:
        """Runs the change and keeps it together with its deliveries; a refusal leaves no trace."""
        try:
            result = change(self.world)
            deliveries = self.sender.build(self.world.events(), deliver=deliver)
            self.world.commit()
        except BaseException:
            self.world.rollback()
            raise
        self.sender.queue(deliveries, manners or Manners())
        return result, deliveries

    def checkout_signature(
        self, payment_id: str, *, order_id: str | None, subscription_id: str | None
    ) -> str:
        """What Checkout hands to the browser; orders and subscriptions put their fields in opposite orders."""
        text = f"{order_id}|{payment_id}" if order_id else f"{payment_id}|{subscription_id}"
        return sign(self.settings.razorpay_key_secret.get_secret_value(), text.encode())
