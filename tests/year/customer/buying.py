"""Checkouts and credit packs: paid, failed, abandoned; told by browser, by webhook, late or twice."""

from __future__ import annotations

from typing import Any

from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.year.customer.person import Person

METHODS = ("card", "upi", "netbanking")
PLANS = ("starter", "pro", "business")
CYCLES = (catalog_pb2.BILLING_CYCLE_MONTHLY, catalog_pb2.BILLING_CYCLE_YEARLY)
TOKENS_PAISE = (0, 0, 100, 500)


class Buying(Person):
    """What a customer does to become one that pays."""

    async def checkout(self) -> None:
        """Chooses a plan; most pay at once, some after a failure, some close the window."""
        request = pb.CheckoutRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("checkout"),
            plan_code=self.rng.choices(PLANS, (5, 3, 1))[0],
            cycle=self.rng.choices(CYCLES, (5, 1))[0],
            with_trial=self.rng.random() < 0.4,
        )
        await self.ask(self.place.product.Checkout, request, self.meet_checkout)

    async def meet_checkout(
        self, answer: pb.CheckoutResponse | pb.ChangePlanResponse | pb.SwitchCycleResponse
    ) -> None:
        """What a customer does before the provider's open window."""
        if not answer.HasField("checkout"):
            return
        checkout = answer.checkout
        later = checkout.HasField("first_charge_at")
        self.open_checkout = (checkout.subscription_id, checkout.intent_id, later)
        mood = self.rng.random()
        if mood < 0.15:
            return  # closes the window
        if mood < 0.3 and not later:
            await self.place.act(f"subscriptions/{checkout.subscription_id}/fail", **self.manners())
            if self.rng.random() < 0.3:
                return
        await self.complete_checkout()

    async def complete_checkout(self) -> None:
        """Pays or authorises the window that is open."""
        if self.open_checkout is None:
            return
        subscription_id, intent_id, later = self.open_checkout
        self.open_checkout = None
        body: dict[str, Any] = {"method": self.rng.choice(METHODS)}
        if later:
            body["token_paise"] = self.rng.choice(TOKENS_PAISE)
        act = f"subscriptions/{subscription_id}/{'authenticate' if later else 'pay'}"
        await self._through_the_window(
            act, body, {"subscription_id": subscription_id}, {"intent_id": intent_id}
        )

    async def buy_pack(self) -> None:
        """Orders a pack and mostly pays it."""
        request = pb.BuyCreditsRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("pack"),
            pack_code=self.rng.choice(("small", "medium", "large")),
        )
        await self.ask(self.place.product.BuyCredits, request, self._meet_order)

    async def _meet_order(self, answer: pb.BuyCreditsResponse) -> None:
        if self.rng.random() < 0.15:
            return
        if self.rng.random() < 0.15:
            await self.place.act(
                f"orders/{answer.order_id}/fail", method=self.rng.choice(METHODS), **self.manners()
            )
        await self._through_the_window(
            f"orders/{answer.order_id}/pay",
            {"method": self.rng.choice(METHODS)},
            {"order_id": answer.order_id},
            {"purchase_id": answer.purchase_id},
        )

    async def _through_the_window(
        self, act: str, body: dict[str, Any], signed: dict[str, str], purchase: dict[str, str]
    ) -> None:
        """The money moves; the browser and the webhooks tell of it in any order, or one of them does not."""
        mood = self.rng.random()
        browser_first, held_back = mood < 0.3, 0.3 <= mood < 0.4
        told = await self.place.act(
            act, **body, **({"deliver": False} if browser_first or held_back else self.manners())
        )
        if not told:
            return
        payment_id = next(
            (each["body"]["payload"]["payment"]["entity"]["id"] for each in told if _pays(each)), None
        )
        if payment_id and (browser_first or self.rng.random() < 0.4):
            await self._verify(payment_id, signed, purchase)
        if browser_first:
            await self.place.replay(each["event_id"] for each in told)
        elif held_back:
            self.late.append((self.today + self.rng.randint(1, 4), [each["event_id"] for each in told]))

    async def _verify(self, payment_id: str, signed: dict[str, str], purchase: dict[str, str]) -> None:
        handed = await self.place.control("POST", "checkout_signature", {"payment_id": payment_id, **signed})
        signature = handed["razorpay_signature"]
        if self.rng.random() < 0.03:
            signature = "0" * len(signature)  # somebody tries his luck
        request = pb.VerifyPaymentRequest(
            tenant_id=self.tenant_id,
            idempotency_key=self.key("verify"),
            payment_id=payment_id,
            signature=signature,
            remote_ip="203.0.113.7",
            **purchase,
        )
        await self.ask(self.place.product.VerifyPayment, request)


def _pays(delivery: dict[str, Any]) -> bool:
    return "payment" in delivery["body"]["payload"] and delivery["event"] != "payment.failed"
