"""Changes of mind about a plan, and charges that fail."""

from __future__ import annotations

from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.year.customer.buying import CYCLES, PLANS, Buying

LADDER = ("free", *PLANS)


class Changing(Buying):
    """What a customer does with the subscription it has."""

    async def upgrade(self) -> None:
        """To a dearer plan."""
        await self._change(LADDER[LADDER.index(self.current.plan_code) + 1 :])

    async def downgrade(self) -> None:
        """To a cheaper plan that still costs something."""
        await self._change(LADDER[1 : max(1, LADDER.index(self.current.plan_code))])

    async def _change(self, plans: tuple[str, ...]) -> None:
        if not plans:
            return
        plan, cycle = (
            self.rng.choice(plans),
            self.rng.choices((self.current.cycle or CYCLES[0], *CYCLES), (6, 1, 1))[0],
        )
        token = ""
        if self.rng.random() < 0.8:
            preview = pb.PreviewChangeRequest(tenant_id=self.tenant_id, plan_code=plan, cycle=cycle)
            quoted = await self.ask(self.place.product.PreviewChange, preview)
            if quoted is None:
                return
            token = quoted.quote.quote_token
        request = pb.ChangePlanRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("change"),
            plan_code=plan,
            cycle=cycle,
            quote_token=token,
        )
        await self.ask(self.place.product.ChangePlan, request, self.meet_checkout)

    async def switch_cycle(self) -> None:
        """From months to years or back."""
        other = CYCLES[0] if self.current.cycle == catalog_pb2.BILLING_CYCLE_YEARLY else CYCLES[1]
        request = pb.SwitchCycleRequest(
            tenant_id=self.tenant_id, idempotency_key=self.key("switch"), cycle=other
        )
        await self.ask(self.place.product.SwitchCycle, request, self.meet_checkout)

    async def cancel_pending_change(self) -> None:
        """Everything stays as it was."""
        request = pb.CancelPendingChangeRequest(tenant_id=self.tenant_id, idempotency_key=self.key("undo"))
        await self.ask(self.place.product.CancelPendingChange, request)

    async def complete_pending_change(self) -> None:
        """Comes back to the window that was left open."""
        await self.complete_checkout()

    async def cancel_at_period_end(self) -> None:
        """Leaves with the period."""
        await self._cancel(pb.CANCEL_MODE_AT_PERIOD_END)

    async def cancel_now(self) -> None:
        """Leaves at once."""
        await self._cancel(pb.CANCEL_MODE_NOW)

    async def _cancel(self, mode: pb.CancelMode.ValueType) -> None:
        request = pb.CancelSubscriptionRequest(
            tenant_id=self.tenant_id, idempotency_key=self.key("cancel"), mode=mode, reason="enough"
        )
        await self.ask(self.place.product.CancelSubscription, request)

    async def pause(self) -> None:
        """A break, asked for here or in the UPI app."""
        if self.rng.random() < 0.25:
            await self.place.act(f"subscriptions/{self.current.subscription_id}/pause", **self.manners())
            return
        request = pb.PauseSubscriptionRequest(tenant_id=self.tenant_id, idempotency_key=self.key("pause"))
        await self.ask(self.place.product.PauseSubscription, request)

    async def resume(self) -> None:
        """The end of a break."""
        request = pb.ResumeSubscriptionRequest(tenant_id=self.tenant_id, idempotency_key=self.key("resume"))
        if await self.ask(self.place.product.ResumeSubscription, request) is None:
            await self.place.act(f"subscriptions/{self.current.subscription_id}/resume", **self.manners())

    async def customer_cancels(self) -> None:
        """Ends the mandate in the bank's app, where nobody asks us."""
        await self.place.act(
            f"subscriptions/{self.current.subscription_id}/cancel", by="customer", **self.manners()
        )

    async def run_out_of_money(self) -> None:
        """The next charges fail: one to three recover by themselves, four halt it."""
        failures = self.rng.randint(1, 4)
        await self.place.control(
            "POST",
            f"subscriptions/{self.current.subscription_id}/outcomes",
            {"outcomes": ["fail"] * failures},
        )

    async def pay_what_failed(self) -> None:
        """Pays after all, by another card."""
        await self.place.act(
            f"subscriptions/{self.current.subscription_id}/charge", method="card", **self.manners()
        )
