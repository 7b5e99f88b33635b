"""Credits and limits: what the product's services ask of the ledger, and add-ons paid with credits."""

from __future__ import annotations

from billing.ledger.v1 import ledger_pb2 as ledger_pb
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from tests.year.customer.person import Person

ADDONS = ("storage", "seat", "email_sends", "blog_posts", "custom_domain")
LIMITS = ("blog.posts", "media.storage_mb", "platform.seats", "comms.email_sends")


class Spending(Person):
    """What a customer does with what it has."""

    async def debit(self) -> None:
        """Spends some; now and then more than there is."""
        credits = self._some_credits()
        request = ledger_pb.DebitRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("debit"),
            credits=credits,
            reason="blog.publish",
        )
        answer = await self.ask(self.place.ledger.Debit, request)
        if answer is not None:
            self.place.tally.debits[self.tenant_id, request.idempotency_key] = credits
            self.debits.append((answer.transaction.id, credits))

    def _some_credits(self) -> int:
        available = max(1, self.current.credits.available)
        if self.rng.random() < 0.1:
            return available + self.rng.randint(1, 50)
        return max(1, int(available * self.rng.random() * self.rng.random()))

    async def hold(self) -> None:
        """Sets credits aside for work that takes hours or days."""
        credits = self._some_credits()
        request = ledger_pb.PlaceHoldRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("hold"),
            credits=credits,
            ttl=Duration(seconds=self.rng.choice((3600, 86_400 * 2, 86_400 * 7))),
            reason="media.generate",
        )
        answer = await self.ask(self.place.ledger.PlaceHold, request)
        if answer is not None:
            self.holds.append((answer.hold.id, credits))
            if self.rng.random() < 0.5:
                await self.end_hold()

    async def end_hold(self) -> None:
        """The work is done, or was in vain; holds that nobody ends lapse."""
        if not self.holds:
            return
        hold_id, credits = self.holds.pop(self.rng.randrange(len(self.holds)))
        if self.rng.random() < 0.6:
            capture = ledger_pb.CaptureHoldRequest(
                tenant_id=self.tenant_id,
                idempotency_key=self.key("capture"),
                hold_id=hold_id,
                credits=self.rng.randint(0, credits),
            )
            await self.ask(self.place.ledger.CaptureHold, capture)
        else:
            void = ledger_pb.VoidHoldRequest(
                tenant_id=self.tenant_id, idempotency_key=self.key("void"), hold_id=hold_id
            )
            await self.ask(self.place.ledger.VoidHold, void)

    async def refund_debit(self) -> None:
        """The work was no good: credits come back, all or some."""
        if not self.debits:
            return
        transaction_id, credits = self.debits[self.rng.randrange(len(self.debits))]
        request = ledger_pb.RefundDebitRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("refund-debit"),
            transaction_id=transaction_id,
            credits=self.rng.randint(1, credits),
            reason="blog.publish",
        )
        await self.ask(self.place.ledger.RefundDebit, request)

    async def use_limits(self) -> None:
        """Publishes, uploads, invites, sends."""
        limits = [
            ledger_pb.LimitAmount(limit_key=key, amount=self.rng.randint(1, 5))
            for key in self.rng.sample(LIMITS, self.rng.randint(1, 2))
        ]
        request = ledger_pb.ConsumeLimitsRequest(
            tenant_id=self.tenant_id, idempotency_key=self.key("use"), limits=limits
        )
        await self.ask(self.place.ledger.ConsumeLimits, request)

    async def buy_addon(self) -> None:
        """More of one thing, paid with credits."""
        request = pb.BuyAddonRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("addon"),
            addon_code=self.rng.choice(ADDONS),
            units=self.rng.randint(1, 2),
        )
        await self.ask(self.place.product.BuyAddon, request)

    async def cancel_addon(self) -> None:
        """Less of it."""
        if (addon_id := await self._any_addon()) is not None:
            request = pb.CancelAddonRequest(
                tenant_id=self.tenant_id, idempotency_key=self.key("cancel-addon"), tenant_addon_id=addon_id
            )
            await self.ask(self.place.product.CancelAddon, request)

    async def resume_addon(self) -> None:
        """After all."""
        if (addon_id := await self._any_addon()) is not None:
            request = pb.ResumeAddonRequest(
                tenant_id=self.tenant_id, idempotency_key=self.key("resume-addon"), tenant_addon_id=addon_id
            )
            await self.ask(self.place.product.ResumeAddon, request)

    async def _any_addon(self) -> str | None:
        request = pb.ListTenantAddonsRequest(tenant_id=self.tenant_id)
        answer = await self.ask(self.place.product.ListTenantAddons, request)
        if answer is None or not answer.addons:
            return None
        return str(self.rng.choice(answer.addons).tenant_addon_id)
