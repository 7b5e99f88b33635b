"""One tenant of the year: what it does on a day is drawn from a generator of its own."""

from __future__ import annotations

from tests.year.customer.changing import Changing
from tests.year.customer.operating import Operating
from tests.year.customer.spending import Spending

__all__ = ["Customer"]

# What is drawn, by where the tenant stands: (weight, what it does). Names are methods of Customer.
ALWAYS = (
    (22, "debit"),
    (8, "hold"),
    (6, "end_hold"),
    (5, "refund_debit"),
    (10, "use_limits"),
    (5, "buy_pack"),
    (2, "adjust"),
    (2, "override"),
    (1, "remove_override"),
    (2, "refund_payment"),
    (2, "dispute"),
    (1, "rebuild"),
    (1, "say_who_pays"),
)
ON_FREE = ((26, "checkout"),)
PAID = (
    (7, "buy_addon"),
    (3, "cancel_addon"),
    (3, "resume_addon"),
    (6, "upgrade"),
    (4, "downgrade"),
    (3, "switch_cycle"),
    (3, "cancel_at_period_end"),
    (1, "cancel_now"),
    (2, "pause"),
    (7, "run_out_of_money"),
    (1, "customer_cancels"),
    (1, "checkout"),
)
PENDING = ((2, "promote"), (12, "cancel_pending_change"), (4, "complete_pending_change"))
PAUSED = ((22, "resume"), (2, "cancel_now"))
PAST_DUE = ((18, "pay_what_failed"), (2, "cancel_now"), (2, "upgrade"))
ADDONS = ((4, "cancel_addon"), (4, "resume_addon"))


class Customer(Changing, Spending, Operating):
    """Buys, changes its mind, spends, is refunded, disputes; and remembers only what a customer would."""

    async def day(self, day: int, activity: float) -> None:
        """One day: mostly nothing, sometimes a thing or two."""
        self.today = day
        await self.receive_late()
        await self.take_up()
        if self.rng.random() > activity:
            return
        if not self.provisioned:
            await self.provision()
        await self.look()
        for _ in range(1 + (self.rng.random() < 0.3)):
            await self._one_thing()

    async def _one_thing(self) -> None:
        menu = [*ALWAYS]
        match self.standing:
            case "free":
                menu += ON_FREE + ADDONS
            case "paused":
                menu += PAUSED
            case "past_due":
                menu += PAST_DUE + ADDONS
            case _:
                menu += PAID
        if self.current.HasField("pending_change"):
            menu += PENDING
        (what,) = self.rng.choices([name for _, name in menu], [weight for weight, _ in menu])
        self.place.tally.acts[f"customer/{what}"] += 1
        await getattr(self, what)()
