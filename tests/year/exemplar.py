"""Tenants whose lives are written down, so that a short year has one of everything that the checks look at."""

from __future__ import annotations

from typing import Any

from billing.ledger.v1 import ledger_admin_pb2 as ledger_admin_pb
from billing.ledger.v1 import ledger_pb2 as ledger_pb
from billing.ledger.v1 import types_pb2 as types
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.year.customer import Customer

ACTOR, REASON = "support", "as it is written"


class Sleeper(Customer):
    """Signs up and is never seen again."""

    async def day(self, day: int, activity: float) -> None:
        """Nothing, but for the first."""
        if day == 0:
            await self.provision()


class Exemplar(Customer):
    """Buys, is refunded, disputes, upgrades, and keeps an add-on and an override to the end."""

    payments: dict[str, str]

    async def day(self, day: int, activity: float) -> None:
        """What is written for this day."""
        self.today = day
        match day:
            case 0:
                await self.provision()
                self.payments = {
                    "plan": await self._subscribe("starter"),
                    "pack": await self._buy_medium_pack(),
                }
            case 1:
                await self._spend()
            case 2:
                await self._give_back()
            case 6:
                await self._upgrade()

    async def _subscribe(self, plan: str) -> str:
        request = pb.CheckoutRequest(
            tenant_id=self.tenant_id,
            idempotency_key="plan",
            plan_code=plan,
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
        answer = await self.place.product.Checkout(request)
        return await self._pay(f"subscriptions/{answer.checkout.subscription_id}/pay")

    async def _buy_medium_pack(self) -> str:
        request = pb.BuyCreditsRequest(tenant_id=self.tenant_id, idempotency_key="pack", pack_code="medium")
        return await self._pay(f"orders/{(await self.place.product.BuyCredits(request)).order_id}/pay")

    async def _pay(self, act: str) -> str:
        told: list[dict[str, Any]] = await self.place.act(act, method="card") or []
        await self.place.drain()
        return str(told[0]["body"]["payload"]["payment"]["entity"]["id"])

    async def _spend(self) -> None:
        debit = ledger_pb.DebitRequest(
            tenant_id=self.tenant_id, idempotency_key="spend", credits=10, reason="blog.publish"
        )
        await self.place.ledger.Debit(debit)
        self.place.tally.debits[self.tenant_id, "spend"] = 10
        gift = ledger_admin_pb.AdjustCreditsRequest(
            tenant_id=self.tenant_id,
            idempotency_key="gift",
            credits=50,
            bucket=types.BUCKET_PERMANENT,
            reason="admin.adjustment",
            description="for the trouble",
            actor="support",
        )
        await self.place.ledger_admin.AdjustCredits(gift)
        self.place.tally.adjustments[self.tenant_id, "gift"] = 50
        addon = pb.BuyAddonRequest(
            tenant_id=self.tenant_id, idempotency_key="seat", addon_code="seat", units=1
        )
        await self.place.product.BuyAddon(addon)
        override = admin_pb.SetOverrideRequest(
            tenant_id=self.tenant_id,
            idempotency_key="posts",
            service_code="blog",
            limit=catalog_pb2.Limit(key="posts", value=77),
            actor=ACTOR,
            reason=REASON,
        )
        await self.place.admin.SetOverride(override)

    async def _give_back(self) -> None:
        refund = admin_pb.RefundPaymentRequest(
            tenant_id=self.tenant_id,
            idempotency_key="some",
            payment_id=self.payments["pack"],
            amount_paise=66_400,
            actor=ACTOR,
            reason=REASON,
        )
        await self.place.admin.RefundPayment(refund)
        told = await self.place.act(f"payments/{self.payments['pack']}/dispute", amount=20_000) or []
        dispute = told[0]["body"]["payload"]["dispute"]["entity"]["id"]
        await self.place.act(f"disputes/{dispute}/lost")

    async def _upgrade(self) -> None:
        request = pb.ChangePlanRequest(
            tenant_id=self.tenant_id,
            idempotency_key="pro",
            plan_code="pro",
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
        answer = await self.place.product.ChangePlan(request)
        await self._pay(f"subscriptions/{answer.checkout.subscription_id}/pay")
