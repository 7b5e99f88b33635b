"""One tenant's life with its provider: what customers, operators and time do, and what then stands where."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from billing.ledger.v1 import ledger_pb2
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.subscriptions.actions.catalog import apply_catalog
from services.subscriptions.catalogue import load_catalog
from services.subscriptions.rules.catalog import Catalog
from shared.errors import BillingError
from tests.ledger.conftest import Travel, available
from tests.subscriptions.conftest import Room

POSTS = {"free": 10, "starter": 50, "pro": 500}
PRO_PAISE, STARTER_PAISE, BUSINESS_PAISE = 235_882, 58_882, 589_882
ENDED = frozenset({"cancelled", "completed", "expired"})


def cycle_of(word: str) -> Any:
    return catalog_pb2.BillingCycle.Value(f"BILLING_CYCLE_{word.upper()}")


def moment(stamp: Any) -> datetime:
    told: datetime = stamp.ToDatetime(tzinfo=UTC)
    return told


@asynccontextmanager
async def refused(reason: str, **metadata: str) -> AsyncIterator[None]:
    """The call inside is refused with this reason."""
    with pytest.raises(BillingError) as caught:
        yield
    assert caught.value.reason == reason, caught.value
    assert metadata.items() <= {name: str(value) for name, value in caught.value.metadata.items()}.items()


@asynccontextmanager
async def selling(room: Room, catalog: Catalog) -> AsyncIterator[None]:
    """Another catalogue is for sale until the block ends."""
    await apply_catalog(room.engine, catalog, actor="a test", dry_run=False)
    try:
        yield
    finally:
        await apply_catalog(room.engine, load_catalog(), actor="a test", dry_run=False)


def with_plan(code: str, **of: Any) -> Catalog:
    """What is for sale, with one plan changed."""
    catalog = load_catalog()
    return replace(catalog, plans={**catalog.plans, code: replace(catalog.plans[code], **of)})


@dataclass
class Life:
    """Its calls, its customer's acts, and the books of all sides."""

    room: Room
    tenant: str
    travel: Travel | None = None

    # What customers do

    async def subscribe(
        self, plan: str = "pro", cycle: str = "monthly", *, trial: bool = False, key: str = "buy", **how: Any
    ) -> str:
        """A new tenant with a paid plan, or in its trial; answers the provider's subscription."""
        await self.room.provision(self.tenant)
        return await self.buy(plan, cycle, trial=trial, key=key, **how)

    async def buy(
        self, plan: str = "pro", cycle: str = "monthly", *, trial: bool = False, key: str, **how: Any
    ) -> str:
        begun = await self.room.checkout(self.tenant, plan=plan, cycle=cycle, key=key, trial=trial)
        subscription_id = begun.checkout.subscription_id
        later = begun.checkout.HasField("first_charge_at")
        await self.act(subscription_id, "authenticate" if later else "pay", **({"method": "card"} | how))
        return subscription_id

    async def act(self, subscription_id: str, what: str, **body: Any) -> list[dict[str, Any]]:
        """Something happens to a subscription at the provider, and we are told."""
        told = self.room.sandbox.act(f"subscriptions/{subscription_id}/{what}", **body)
        await self.tell(told)
        return told

    async def tell(self, deliveries: list[dict[str, Any]]) -> None:
        for delivery in deliveries:
            await self.room.deliver(delivery)

    async def pass_time(self, *, days: float = 0, hours: float = 0, tick: bool = True) -> None:
        """Time passes; the provider does what is due, tells us, and the reconcile job runs."""
        assert self.travel is not None
        self.travel.forward(days=days, hours=hours)
        if tick:
            await self.tick()
        await self.reconcile()

    async def pass_until(self, end: datetime, *, hours: float = 0.0, tick: bool = True) -> None:
        seconds = (end - self.room.clock()).total_seconds()
        await self.pass_time(hours=seconds / 3600 + hours, tick=tick)

    async def tick(self) -> None:
        told = self.room.sandbox.act("tick", deliver=False)
        await self.tell([delivery for delivery in told if self._is_ours(delivery)])

    async def reconcile(self) -> None:
        await self.room.reconcile()

    def _is_ours(self, delivery: dict[str, Any]) -> bool:
        entity = delivery["parsed"]["payload"].get("subscription", {}).get("entity", {})
        notes = entity.get("notes") or {}
        return bool(notes) and notes.get("tenant_id") == self.tenant

    async def hear(self, event: str = "refund.processed") -> None:
        """Webhooks about our own calls to the provider arrive: those of payments and subscriptions that we know."""
        ours = {payment["id"] for payment in self.payments()} | set(self.at_provider())
        for told in self.room.sandbox.http.get("/_sandbox/deliveries", params={"event": event}).json():
            told["body"] = base64.b64decode(told["body_base64"])
            payload = json.loads(told["body"])["payload"]
            if ours & {part["entity"]["id"] for part in payload.values()}:
                await self.room.deliver(told)

    # What the product asks

    async def preview(self, plan: str, cycle: str = "monthly") -> pb.ChangeQuote:
        answer = await self.room.product.PreviewChange(
            pb.PreviewChangeRequest(tenant_id=self.tenant, plan_code=plan, cycle=cycle_of(cycle))
        )
        quote: pb.ChangeQuote = answer.quote
        return quote

    async def change(
        self, plan: str, cycle: str = "monthly", *, key: str = "change", token: str = ""
    ) -> pb.ChangePlanResponse:
        answer: pb.ChangePlanResponse = await self.room.product.ChangePlan(
            pb.ChangePlanRequest(
                tenant_id=self.tenant,
                idempotency_key=key,
                plan_code=plan,
                cycle=cycle_of(cycle),
                quote_token=token,
            )
        )
        return answer

    async def switch(self, cycle: str, *, key: str = "switch", token: str = "") -> pb.SwitchCycleResponse:
        answer: pb.SwitchCycleResponse = await self.room.product.SwitchCycle(
            pb.SwitchCycleRequest(
                tenant_id=self.tenant, idempotency_key=key, cycle=cycle_of(cycle), quote_token=token
            )
        )
        return answer

    async def undo(self, key: str = "undo") -> pb.CancelPendingChangeResponse:
        answer: pb.CancelPendingChangeResponse = await self.room.product.CancelPendingChange(
            pb.CancelPendingChangeRequest(tenant_id=self.tenant, idempotency_key=key)
        )
        return answer

    async def cancel(
        self, mode: str = "now", *, key: str = "cancel", reason: str = "too dear"
    ) -> pb.CancelSubscriptionResponse:
        answer: pb.CancelSubscriptionResponse = await self.room.product.CancelSubscription(
            pb.CancelSubscriptionRequest(
                tenant_id=self.tenant,
                idempotency_key=key,
                mode=pb.CANCEL_MODE_NOW if mode == "now" else pb.CANCEL_MODE_AT_PERIOD_END,
                reason=reason,
            )
        )
        return answer

    async def pause(self, key: str = "pause") -> pb.PauseSubscriptionResponse:
        answer: pb.PauseSubscriptionResponse = await self.room.product.PauseSubscription(
            pb.PauseSubscriptionRequest(tenant_id=self.tenant, idempotency_key=key)
        )
        return answer

    async def resume(self, key: str = "resume") -> pb.ResumeSubscriptionResponse:
        answer: pb.ResumeSubscriptionResponse = await self.room.product.ResumeSubscription(
            pb.ResumeSubscriptionRequest(tenant_id=self.tenant, idempotency_key=key)
        )
        return answer

    async def spend(self, credits: int, key: str = "spend") -> None:
        await self.room.ledger.service.Debit(
            ledger_pb2.DebitRequest(
                tenant_id=self.tenant, idempotency_key=key, credits=credits, reason="blog.publish"
            )
        )

    # What operators ask

    async def refund(
        self, payment_id: str, amount: int | None = None, *, key: str = "refund", tenant: str = ""
    ) -> admin_pb.RefundPaymentResponse:
        asked = admin_pb.RefundPaymentRequest(
            tenant_id=tenant or self.tenant,
            idempotency_key=key,
            actor="asha@example.com",
            reason="goodwill",
            payment_id=payment_id,
        )
        if amount is not None:
            asked.amount_paise = amount
        answer: admin_pb.RefundPaymentResponse = await self.room.admin.RefundPayment(asked)
        return answer

    async def promote(self, key: str = "promote") -> admin_pb.PromotePendingChangeResponse:
        answer: admin_pb.PromotePendingChangeResponse = await self.room.admin.PromotePendingChange(
            admin_pb.PromotePendingChangeRequest(
                tenant_id=self.tenant, idempotency_key=key, actor="asha@example.com", reason="webhooks lost"
            )
        )
        return answer

    # What stands where

    async def current(self) -> pb.GetCurrentResponse:
        return await self.room.current(self.tenant)

    async def posts(self) -> int:
        """How many posts the ledger allows now."""
        checked = await self.room.ledger.service.CheckLimit(
            ledger_pb2.CheckLimitRequest(tenant_id=self.tenant, limit_key="blog.posts")
        )
        return int(checked.decision.limit)

    async def credits(self) -> int:
        """What it can spend now, of both buckets."""
        return await available(self.room.ledger, self.tenant)

    async def assert_stands(self, plan: str, status: str = "active", **of: Any) -> pb.GetCurrentResponse:
        """Our row, the ledger's limit and the plan agree, and nothing is owed."""
        row, now = self.row(), await self.current()
        assert (row["plan_id"], row["status"]) == (plan, status), row
        assert now.status == pb.SubscriptionStatus.Value(f"SUBSCRIPTION_STATUS_{status.upper()}")
        entitling = plan if status in ("trialing", "active", "past_due") else "free"
        if entitling in POSTS:
            assert await self.posts() == POSTS[entitling]
        assert self.open_tasks() == []
        assert {name: row[name] for name in of} == of
        return now

    async def assert_cancel_is_owed(self, subscription_id: str) -> None:
        [owed] = [task for task in self.open_tasks() if task["task_type"] == "cancel_provider_subscription"]
        assert owed["payload"]["razorpaySubscriptionId"] == subscription_id

    async def undo_is_possible(self) -> None:
        """Nothing was told to the provider: our own note of it is empty."""
        [known] = self.room.rows(
            "SELECT end_requested_at FROM provider_subscriptions WHERE id = %s",
            self.row()["razorpay_subscription_id"],
        )
        assert known["end_requested_at"] is None

    def row(self) -> dict[str, Any]:
        [row] = self.room.rows("SELECT * FROM subscriptions WHERE tenant_id = %s", self.tenant)
        return row

    def open_tasks(self) -> list[dict[str, Any]]:
        return self.room.rows(
            "SELECT task_type, payload, attempts, last_error FROM billing_reconciliation_queue"
            " WHERE tenant_id = %s AND completed_at IS NULL ORDER BY position",
            self.tenant,
        )

    def payments(self) -> list[dict[str, Any]]:
        return self.room.rows(
            "SELECT * FROM payments WHERE tenant_id = %s ORDER BY period_start NULLS LAST, received_at",
            self.tenant,
        )

    def refunds(self) -> list[dict[str, Any]]:
        return self.room.rows(
            "SELECT * FROM billing_refunds WHERE tenant_id = %s ORDER BY created_at, id", self.tenant
        )

    def revocations(self) -> list[dict[str, Any]]:
        return self.room.rows(
            "SELECT * FROM grant_revocations WHERE tenant_id = %s ORDER BY created_at, reference_id",
            self.tenant,
        )

    def findings(self) -> list[str]:
        found = self.room.rows(
            "SELECT check_type FROM billing_integrity_reports WHERE tenant_id = %s ORDER BY check_type",
            self.tenant,
        )
        return [row["check_type"] for row in found]

    def audits(self, action: str) -> list[dict[str, Any]]:
        return self.room.rows(
            "SELECT * FROM billing_audit_log WHERE tenant_id = %s AND action = %s ORDER BY created_at",
            self.tenant,
            action,
        )

    def credit_notes(self) -> list[int]:
        found = self.room.rows(
            "SELECT total_paise FROM invoices WHERE tenant_id = %s AND kind = 'credit_note' ORDER BY number",
            self.tenant,
        )
        return [row["total_paise"] for row in found]

    def at_provider(self) -> dict[str, str]:
        """Every subscription that the provider made for this tenant, and its status."""
        made = self.room.sandbox.sdk.subscription.all({"count": 100})["items"]
        page = 1
        while len(made) == 100 * page:
            made += self.room.sandbox.sdk.subscription.all({"count": 100, "skip": 100 * page})["items"]
            page += 1
        return {
            each["id"]: each["status"]
            for each in made
            if each["notes"] and each["notes"].get("tenant_id") == self.tenant
        }

    def living(self) -> list[str]:
        """Those that may still charge, or be paid."""
        return [each for each, status in self.at_provider().items() if status not in ENDED]

    def provider(self, subscription_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.room.sandbox.sdk.subscription.fetch(subscription_id)
        return found

    def refunded(self, payment_id: str) -> list[int]:
        """What the provider gave back of a payment, refund by refund, failed ones left out."""
        found = self.room.sandbox.sdk.payment.fetch_multiple_refund(payment_id)["items"]
        return sorted(each["amount"] for each in found if each["status"] != "failed")

    def captured(self) -> int:
        """Payments that the provider captured for this tenant's subscriptions."""
        invoices = [
            invoice
            for subscription_id in self.at_provider()
            for invoice in self.room.sandbox.sdk.invoice.all(
                {"subscription_id": subscription_id, "count": 100}
            )["items"]
        ]
        return sum(invoice["status"] == "paid" for invoice in invoices)
