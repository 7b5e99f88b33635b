"""One sandbox: its world, its sender, and the faults it was asked to show."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from sandbox import ids
from sandbox.clockwork import MovableClock
from sandbox.config import SandboxSettings
from sandbox.faults import Faults
from sandbox.state.world import Journal, World
from sandbox.webhooks.delivery import Delivery, Manners, sign
from sandbox.webhooks.outbox import Outbox
from sandbox.webhooks.sender import Sender

Result = TypeVar("Result")


class Till:
    """Where every change is rung up: all of it or nothing, with the events it causes."""

    def __init__(self, settings: SandboxSettings) -> None:
        self.settings = settings
        journal = Journal(settings.sandbox_state) if settings.sandbox_state else None
        account_id = ids.account_id(settings.razorpay_key_id)
        self.clock = MovableClock()
        self.world = World(self.clock, account_id=account_id, journal=journal)
        if moved := self.world.find("clock", "clock"):
            self.clock.ahead = timedelta(seconds=moved.inner["ahead_seconds"])
        self.faults = Faults()
        # Idempotency keys of the refunds whose answer is still to come.
        self.keys_in_progress: set[str] = set()
        url = settings.sandbox_webhook_url
        self.outbox = Outbox(
            self.world,
            url=str(url) if url else None,
            secret=settings.razorpay_webhook_secret.get_secret_value(),
        )
        self.world.compact()
        self.sender = Sender(self.world, self.outbox, scale=settings.sandbox_retry_scale)

    def ring_up(
        self,
        change: Callable[[World], Result],
        *,
        deliver: bool = True,
        manners: Manners | None = None,
        subject: str = "",
    ) -> tuple[Result, list[Delivery]]:
        """Runs the change and keeps it together with its deliveries; a refusal leaves no trace."""
        try:
            result = change(self.world)
            deliveries = self.outbox.build(self.world.events(), deliver=deliver)
            self.world.commit()
        except BaseException:
            self.world.rollback()
            raise
        self.sender.queue(deliveries, manners or Manners(), subject)
        return result, deliveries

    def move_clock(self, by: timedelta) -> None:
        """Leaps forward; a restart does not bring the old time back."""
        self.clock.move(by)
        self.world.add("clock", {"id": "clock"}, ahead_seconds=self.clock.ahead.total_seconds())
        self.world.commit()

    def checkout_signature(
        self, payment_id: str, *, order_id: str | None, subscription_id: str | None
    ) -> str:
        """What Checkout hands to the browser; orders and subscriptions put their fields in opposite orders."""
        text = f"{order_id}|{payment_id}" if order_id else f"{payment_id}|{subscription_id}"
        return sign(self.settings.razorpay_key_secret.get_secret_value(), text.encode())
