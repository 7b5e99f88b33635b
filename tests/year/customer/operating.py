"""What operators and banks do to a tenant: refunds, disputes, overrides, adjustments."""

from __future__ import annotations

from datetime import timedelta

from billing.ledger.v1 import ledger_admin_pb2 as ledger_admin_pb
from billing.ledger.v1 import types_pb2 as types
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from tests.year.customer.person import Person

ACTOR, REASON = "support", "the customer wrote to us"
REFUNDABLE = """
SELECT id, amount_paise - amount_refunded_paise AS left_paise FROM subscriptions.payments
WHERE tenant_id = %s ORDER BY received_at DESC, id LIMIT 6"""
OVERRIDES = "SELECT id FROM subscriptions.tenant_overrides WHERE tenant_id = %s AND removed_at IS NULL ORDER BY id LIMIT 3"
OVERRIDABLE = (
    ("blog", "posts"),
    ("platform", "seats"),
    ("comms", "email_sends"),
    ("platform", "custom_roles"),
)


class Operating(Person):
    """What others do with a customer."""

    async def refund_payment(self) -> None:
        """Some or all of a payment goes back."""
        payments = await self.place.rows(REFUNDABLE, self.tenant_id)
        if not payments:
            return
        payment = self.rng.choice(payments)
        request = admin_pb.RefundPaymentRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("refund"),
            payment_id=payment["id"],
            actor=ACTOR,
            reason=REASON,
        )
        if self.rng.random() < 0.6:
            request.amount_paise = self.rng.randint(100, max(100, payment["left_paise"]))
        await self.ask(self.place.admin.RefundPayment, request)

    async def dispute(self) -> None:
        """The customer asks the bank for the money; the bank decides weeks later."""
        if self.disputes and self.rng.random() < 0.6:
            await self.settle_dispute()
            return
        payments = await self.place.rows(REFUNDABLE, self.tenant_id)
        if not payments:
            return
        told = await self.place.act(f"payments/{self.rng.choice(payments)['id']}/dispute", **self.manners())
        if told:
            self.disputes.append(told[0]["body"]["payload"]["dispute"]["entity"]["id"])

    async def settle_dispute(self) -> None:
        """Won, lost, or closed."""
        if self.disputes:
            outcome = self.rng.choices(("won", "lost", "closed"), (3, 3, 1))[0]
            await self.place.act(f"disputes/{self.disputes.pop(0)}/{outcome}", **self.manners())

    async def override(self) -> None:
        """A limit of its own, for a while or for ever."""
        service, key = self.rng.choice(OVERRIDABLE)
        request = admin_pb.SetOverrideRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("override"),
            service_code=service,
            limit=catalog_pb2.Limit(key=key, value=self.rng.randint(0, 200)),
            actor=ACTOR,
            reason=REASON,
        )
        if self.rng.random() < 0.7:
            ends_at = Timestamp()
            ends_at.FromDatetime(self.place.now() + timedelta(days=self.rng.randint(1, 40)))
            request.expires_at.CopyFrom(ends_at)
        await self.ask(self.place.admin.SetOverride, request)

    async def remove_override(self) -> None:
        """Back to the plan's."""
        found = await self.place.rows(OVERRIDES, self.tenant_id)
        if found:
            request = admin_pb.RemoveOverrideRequest(
                tenant_id=self.tenant_id,
                idempotency_key=self.key("remove"),
                override_id=self.rng.choice(found)["id"],
                actor=ACTOR,
                reason=REASON,
            )
            await self.ask(self.place.admin.RemoveOverride, request)

    async def adjust(self) -> None:
        """A gift, or a correction."""
        credits = self.rng.choice((50, 120, -30))
        request = ledger_admin_pb.AdjustCreditsRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("adjust"),
            credits=credits,
            bucket=types.BUCKET_PERMANENT if credits > 0 else types.BUCKET_UNSPECIFIED,
            reason="admin.adjustment",
            description="for the trouble",
            actor="support",
        )
        if await self.ask(self.place.ledger_admin.AdjustCredits, request) is not None:
            self.place.tally.adjustments[self.tenant_id, request.idempotency_key] = credits

    async def rebuild(self) -> None:
        """Somebody doubts the limits; nothing must change by it."""
        request = admin_pb.RebuildEntitlementsRequest(
            tenant_id=self.tenant_id, idempotency_key=self.key("rebuild"), actor=ACTOR, reason=REASON
        )
        await self.ask(self.place.admin.RebuildEntitlements, request)

    async def promote(self) -> None:
        """Somebody believes that a change is paid; the provider decides."""
        request = admin_pb.PromotePendingChangeRequest(
            tenant_id=self.tenant_id, idempotency_key=self.key("promote"), actor=ACTOR, reason=REASON
        )
        await self.ask(self.place.admin.PromotePendingChange, request)

    async def say_who_pays(self) -> None:
        """Invoices from now on go to another address."""
        request = pb.UpdateBillingInfoRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("info"),
            billing_info=pb.BillingInfo(
                company_name=f"Company {self.rng.randint(1, 9)}",
                state_code=self.rng.choice(("27", "29", "07")),
                city="Pune",
                country="IN",
            ),
        )
        await self.ask(self.place.product.UpdateBillingInfo, request)
