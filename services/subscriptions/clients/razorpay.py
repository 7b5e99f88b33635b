"""Razorpay through its SDK: each call bounded, typed, and made outside of transactions."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import certifi
import razorpay

from services.subscriptions import metrics
from services.subscriptions.clients import entities
from services.subscriptions.clients.session import ApiError, NoAnswer, NotSent, Session
from services.subscriptions.errors import (
    ProviderBusy,
    ProviderNotConfigured,
    ProviderRefused,
    ProviderUnavailable,
)
from services.subscriptions.rules.events import (
    TERMINAL,
    ProviderDispute,
    ProviderInvoice,
    ProviderOrder,
    ProviderPayment,
    ProviderRefund,
    ProviderSubscription,
)
from shared.database import assert_no_transaction
from shared.errors import BillingError

THREADS = 8
PAGE = 100
# A plan list this long is not ours alone; looking further would cost more than a second plan.
PAGES_MAX = 20
# Lists filter by creation time, in seconds and by another clock than ours.
CLOCK_SKEW = timedelta(seconds=60)
_OUTCOMES: Mapping[type[BillingError], metrics.CallOutcome] = {
    ProviderRefused: "refused",
    ProviderNotConfigured: "refused",
    ProviderBusy: "unavailable",
    ProviderUnavailable: "unknown",
}
_ID = re.compile(r"[a-z]+_[A-Za-z0-9]{14,40}")
_PERIOD = {"monthly": "monthly", "yearly": "yearly"}


class Razorpay:
    """One merchant account. Without keys that it accepts every call refuses with ProviderNotConfigured."""

    def __init__(self, *, api_url: str, key_id: str, key_secret: str) -> None:
        self.key_id = key_id
        self.key_secret = key_secret
        self._sdk = razorpay.Client(
            session=Session(threads=THREADS, secret=key_secret),
            auth=(key_id, key_secret),
            base_url=api_url.rstrip("/"),
        )
        self._sdk.cert_path = certifi.where()
        self._sdk.set_app_details({"title": "billing-suite"})
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="razorpay")

    @property
    def configured(self) -> bool:
        """Whether there are keys at all."""
        return bool(self.key_id and self.key_secret)

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def find_plan(
        self, *, cycle: str, amount_paise: int, currency: str, notes: Mapping[str, str]
    ) -> str | None:
        """The plan that we made for this price before: plans can be neither changed nor deleted."""
        async for plan in self._pages(self._sdk.plan.all, {}):
            item = plan.get("item") or {}
            theirs = plan.get("notes")
            if (
                isinstance(theirs, dict)
                and all(theirs.get(name) == value for name, value in notes.items())
                and (plan.get("period"), plan.get("interval")) == (_PERIOD[cycle], 1)
                and (item.get("amount"), item.get("currency")) == (amount_paise, currency)
            ):
                return _valid(plan["id"])
        return None

    async def create_plan(
        self, *, name: str, cycle: str, amount_paise: int, currency: str, notes: Mapping[str, str]
    ) -> str:
        """A plan for this price, tax included."""
        plan = await self._call(
            self._sdk.plan.create,
            {
                "period": _PERIOD[cycle],
                "interval": 1,
                "item": {"name": name, "amount": amount_paise, "currency": currency},
                "notes": dict(notes),
            },
        )
        return _valid(plan["id"])

    async def plan_exists(self, plan_id: str) -> bool:
        """Whether the account has this plan."""
        try:
            await self._call(self._sdk.plan.fetch, _valid(plan_id))
        except ProviderRefused:
            return False
        return True

    async def create_subscription(
        self,
        *,
        plan_id: str,
        total_count: int,
        notes: Mapping[str, str],
        start_at: datetime | None,
        expire_by: datetime,
    ) -> ProviderSubscription:
        """A subscription. The provider has no key for this: look for a lost answer before asking again."""
        request: dict[str, Any] = {
            "plan_id": _valid(plan_id),
            "total_count": total_count,
            "quantity": 1,
            "customer_notify": True,
            "expire_by": int(expire_by.timestamp()),
            "notes": dict(notes),
        }
        if start_at is not None:
            request["start_at"] = int(start_at.timestamp())
        return entities.subscription(await self._call(self._sdk.subscription.create, request))

    async def find_subscription(
        self, *, plan_id: str, since: datetime, notes: Mapping[str, str]
    ) -> ProviderSubscription | None:
        """The subscription that carries these notes of ours, if an earlier call made it."""
        query = {"plan_id": _valid(plan_id), "from": int((since - CLOCK_SKEW).timestamp())}
        async for entity in self._pages(self._sdk.subscription.all, query):
            found = entities.subscription(entity)
            if all(found.notes.get(name) == value for name, value in notes.items()):
                return found
        return None

    async def fetch_subscription(self, subscription_id: str) -> ProviderSubscription:
        """The provider's own word on a subscription."""
        return entities.subscription(await self._call(self._sdk.subscription.fetch, _valid(subscription_id)))

    async def cancel_subscription(
        self, subscription_id: str, *, at_cycle_end: bool = False
    ) -> ProviderSubscription:
        """End a subscription, now or with its cycle; one that has ended is answered as it is."""
        try:
            # JSON true and false: the number 0 has been read as true before.
            await self._call(
                self._sdk.subscription.cancel, _valid(subscription_id), {"cancel_at_cycle_end": at_cycle_end}
            )
        except ProviderRefused:
            found = await self.fetch_subscription(subscription_id)
            if found.status not in TERMINAL:
                raise
            return found
        return await self.fetch_subscription(subscription_id)

    async def pause_subscription(self, subscription_id: str) -> ProviderSubscription:
        """Stop a subscription's charges; one that is paused is answered as it is."""
        return await self._move(self._sdk.subscription.pause, subscription_id, {"pause_at": "now"}, "paused")

    async def resume_subscription(self, subscription_id: str) -> ProviderSubscription:
        """Let a paused subscription charge again; one that is active is answered as it is."""
        return await self._move(
            self._sdk.subscription.resume, subscription_id, {"resume_at": "now"}, "active"
        )

    async def _move(
        self, method: Callable[..., Any], subscription_id: str, body: Mapping[str, str], wanted: str
    ) -> ProviderSubscription:
        try:
            await self._call(method, _valid(subscription_id), dict(body))
        except ProviderRefused:
            found = await self.fetch_subscription(subscription_id)
            if found.status != wanted:
                raise
            return found
        return await self.fetch_subscription(subscription_id)

    async def refund_payment(
        self, payment_id: str, *, amount_paise: int, key: str, notes: Mapping[str, str]
    ) -> ProviderRefund:
        """Give money back, once per key."""
        return entities.refund(
            await self._call(
                partial(self._sdk.payment.refund, headers={"X-Refund-Idempotency": key}),
                _valid(payment_id),
                {"amount": amount_paise, "speed": "normal", "notes": dict(notes), "receipt": key},
            )
        )

    async def list_invoices(self, subscription_id: str) -> list[ProviderInvoice]:
        """The newest invoices of a subscription."""
        query = {"subscription_id": _valid(subscription_id), "count": PAGE}
        answer = await self._call(self._sdk.invoice.all, query)
        return [entities.invoice(entity) for entity in answer.get("items", [])]

    async def create_order(
        self, *, amount_paise: int, currency: str, receipt: str, notes: Mapping[str, str]
    ) -> ProviderOrder:
        """An order; the same receipt brings the same order back, so this may be asked again."""
        return entities.order(
            await self._call(
                self._sdk.order.create,
                {
                    "amount": amount_paise,
                    "currency": currency,
                    "receipt": receipt,
                    "unique_receipt": True,
                    "notes": dict(notes),
                    "payment": {"capture": "automatic", "capture_options": {"refund_speed": "normal"}},
                },
            )
        )

    async def fetch_payment(self, payment_id: str) -> ProviderPayment:
        """The provider's own word on a payment."""
        return entities.payment(await self._call(self._sdk.payment.fetch, _valid(payment_id)))

    async def fetch_order(self, order_id: str) -> ProviderOrder:
        """The provider's own word on an order."""
        return entities.order(await self._call(self._sdk.order.fetch, _valid(order_id)))

    async def fetch_invoice(self, invoice_id: str) -> ProviderInvoice:
        """The provider's own word on an invoice."""
        return entities.invoice(await self._call(self._sdk.invoice.fetch, _valid(invoice_id)))

    async def list_payments(
        self, since: datetime, until: datetime, *, skip: int = 0
    ) -> list[ProviderPayment]:
        """A page of the account's payments created between two moments, of anybody, newest first."""
        query = {**_created(since, until), "count": PAGE, "skip": skip}
        answer = await self._call(self._sdk.payment.all, query)
        return [entities.payment(entity) for entity in answer.get("items", [])]

    async def list_subscriptions(self, since: datetime, until: datetime) -> list[ProviderSubscription]:
        """Subscriptions created between two moments; very new ones may not be listed yet."""
        found = self._pages(self._sdk.subscription.all, _created(since, until), pages_max=None)
        return [entities.subscription(entity) async for entity in found]

    async def list_refunds(self, since: datetime, until: datetime) -> list[ProviderRefund]:
        """Refunds created between two moments, of any payment; very new ones may not be listed yet."""
        found = self._pages(self._sdk.refund.all, _created(since, until), pages_max=None)
        return [entities.refund(entity) async for entity in found]

    async def list_disputes(self, since: datetime, until: datetime) -> list[ProviderDispute]:
        """Disputes opened between two moments, of any payment; very new ones may not be listed yet."""
        found = self._pages(self._sdk.dispute.all, _created(since, until), pages_max=None)
        return [entities.dispute(entity) async for entity in found]

    async def list_order_payments(self, order_id: str) -> list[ProviderPayment]:
        """Every attempt to pay an order."""
        answer = await self._call(self._sdk.order.payments, _valid(order_id))
        return [entities.payment(entity) for entity in answer.get("items", [])]

    async def fetch_refund(self, refund_id: str) -> ProviderRefund:
        """The provider's own word on a refund."""
        return entities.refund(await self._call(self._sdk.refund.fetch, _valid(refund_id)))

    async def fetch_dispute(self, dispute_id: str) -> ProviderDispute:
        """The provider's own word on a dispute."""
        return entities.dispute(await self._call(self._sdk.dispute.fetch, _valid(dispute_id)))

    async def _pages(
        self, method: Callable[..., Any], query: Mapping[str, Any], *, pages_max: int | None = PAGES_MAX
    ) -> AsyncIterator[Mapping[str, Any]]:
        for page in count() if pages_max is None else range(pages_max):
            answer = await self._call(method, {**query, "count": PAGE, "skip": page * PAGE})
            items = answer.get("items", [])
            for item in items:
                yield item
            if len(items) < PAGE:
                return

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        assert_no_transaction("a call to Razorpay")
        if not self.configured:
            raise ProviderNotConfigured("RAZORPAY_KEY_ID and RAZORPAY_KEY_SECRET are not set")
        loop = asyncio.get_running_loop()
        with metrics.provider_call(_operation(method)) as call:
            try:
                answer = await loop.run_in_executor(self._pool, partial(method, *args))
            except (ApiError, NoAnswer) as error:
                refusal = _refusal(error)
                call.outcome = _OUTCOMES[type(refusal)]
                raise refusal from error
            call.outcome = "ok"
            return answer


def _refusal(error: ApiError | NoAnswer) -> BillingError:
    """What the provider said, or did not say, in our words."""
    if isinstance(error, NotSent):
        return ProviderBusy(f"the provider was not reached: {error}")
    if isinstance(error, NoAnswer):
        return ProviderUnavailable(f"the provider did not answer: {error}")
    if error.locked_out:  # about us and not about what we ask for, which may be right once the keys are
        return ProviderNotConfigured(
            f"the provider does not let these keys in ({error.status}): set RAZORPAY_KEY_ID and "
            "RAZORPAY_KEY_SECRET to a pair that is valid"
        )
    if error.definite:
        return ProviderRefused(
            f"the provider refused: {error.description or error.status}",
            provider_code=error.code,
            provider_field=error.field,
            provider_reason=error.reason,
        )
    told = f"the provider answered {error.status}"
    return ProviderBusy(told) if error.busy else ProviderUnavailable(told)


def _operation(method: Callable[..., Any]) -> str:
    """`subscription.cancel`: how the SDK, and hence a dashboard, calls what is asked."""
    bound: Any = method.func if isinstance(method, partial) else method
    return f"{type(bound.__self__).__name__.lower()}.{bound.__name__}"


def _created(since: datetime, until: datetime) -> dict[str, Any]:
    return {"from": int(since.timestamp()), "to": int(until.timestamp())}


def _valid(entity_id: Any) -> str:
    """The SDK puts ids into paths as they are, so nothing but an id may pass."""
    if not isinstance(entity_id, str) or not _ID.fullmatch(entity_id):
        raise ProviderRefused("this is not an id of the provider")
    return entity_id
