"""Performs one reconciliation task: the other side is asked with no transaction open."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import claims
from services.subscriptions.actions.payment_events import apply_event, count_charge
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import ProviderRefused
from services.subscriptions.rules.entitlements import from_json
from services.subscriptions.rules.events import ProviderInvoice, ProviderSubscription, look
from services.subscriptions.rules.policy import Policy
from services.subscriptions.rules.tasks import Task
from services.subscriptions.store import events as event_store
from services.subscriptions.store.money import lock_payment
from services.subscriptions.store.subscriptions import lock_subscription
from shared.clock import Clock
from shared.database import transaction
from shared.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument

Note = str | None


class Performer:
    """Knows for each type of task whom to ask and what; answers a note for people, or None."""

    def __init__(
        self,
        engine: AsyncEngine,
        ledger: Ledger,
        razorpay: Razorpay,
        *,
        mode: str,
        clock: Clock,
        policy: Policy,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._razorpay = razorpay
        self._mode = mode
        self._clock = clock
        self._policy = policy
        self._kinds: dict[str, Callable[[Task], Awaitable[Note]]] = {
            "grant_credits": self._grant,
            "revoke_grant": self._revoke,
            "restore_grant": self._restore,
            "push_entitlements": self._push,
            "cancel_provider_subscription": self._cancel,
            "fetch_and_apply": self._fetch,
            "refund_payment": self._refund,
        }

    async def perform(self, task: Task) -> Note:
        """Do what is owed; a repeat does nothing twice, whatever was lost before."""
        kind = self._kinds.get(task.task_type)
        if kind is None:
            raise Internal(f"this release cannot perform {task.task_type}")
        return await kind(task)

    async def look_at(self, subscription_id: str) -> ProviderSubscription:
        """Take the provider's own word on a subscription, and on what was paid for it."""
        snapshot = await self._razorpay.fetch_subscription(subscription_id)
        for invoice in await self._razorpay.list_invoices(subscription_id):
            if invoice.status == "paid" and invoice.payment_id:
                await self._apply_charge(snapshot, invoice)
        await self._apply(snapshot)
        return snapshot

    async def _grant(self, task: Task) -> Note:
        told = task.payload["expiresAt"]
        expires_at = datetime.fromisoformat(told) if told else None
        try:
            return await self._grant_until(task, expires_at, task.idempotency_key)
        except InvalidArgument as refusal:
            if refusal.reason != "ALREADY_EXPIRED":
                raise
        # It waited longer than its credits were to live: what was paid for is never dead on arrival.
        late = task.payload.get("lateSeconds")
        if late is None:
            return "its time was over before the ledger could be told; nothing was paid for it"
        # The reference makes it one grant; the key must not meet an earlier attempt with another date.
        key = f"{task.idempotency_key}:late:{task.attempts}"
        await self._grant_until(task, self._clock() + timedelta(seconds=late), key)
        return "its time was over before the ledger could be told: it lives as long from now"

    async def _grant_until(self, task: Task, expires_at: datetime | None, key: str) -> Note:
        return await _once(
            self._ledger.grant_credits(
                tenant_id=task.tenant_id,
                idempotency_key=key,
                bucket=task.payload["bucket"],
                credits=task.payload["credits"],
                expires_at=expires_at,
                reference_id=task.payload["referenceId"],
                reason=task.payload["reason"],
                description=task.payload["description"],
            ),
            "the ledger was funded with this reference before",
        )

    async def _revoke(self, task: Task) -> Note:
        told: list[tuple[int, int, int]] = []

        async def revoke() -> None:
            told.append(
                await self._ledger.revoke_grant(
                    tenant_id=task.tenant_id,
                    idempotency_key=task.idempotency_key,
                    grant_reference_id=task.payload["grantReferenceId"],
                    credits=task.payload["credits"],
                    reference_id=task.payload["referenceId"],
                    reason=task.payload["reason"],
                    description=task.payload["causeId"],
                )
            )

        note = await _once(revoke(), "the ledger revoked under this reference before")
        taken, claimed, spent = told[0] if told else (0, 0, 0)
        if task.payload["reason"] == "payment.proration":
            async with transaction(self._engine) as db:
                await lock_subscription(db, task.tenant_id)
                await claims.take_note(db, task.tenant_id, task.payload["referenceId"], spent, self._clock())
        return note or f"{taken} taken, {claimed} claimed when they return, {spent} spent before"

    async def _restore(self, task: Task) -> Note:
        return await _once(
            self._ledger.restore_grant(
                tenant_id=task.tenant_id,
                idempotency_key=task.idempotency_key,
                revoke_reference_id=task.payload["revocationReferenceId"],
                reference_id=task.payload["referenceId"],
            ),
            "the ledger restored this before",
        )

    async def _push(self, task: Task) -> Note:
        applied = await self._ledger.set_entitlements(
            tenant_id=task.tenant_id,
            idempotency_key=task.idempotency_key,
            version=task.payload["version"],
            plan_code=task.payload["planCode"],
            services=from_json(task.payload["services"]),
        )
        return None if applied else "superseded by a newer version"

    async def _cancel(self, task: Task) -> Note:
        subscription_id = task.payload["razorpaySubscriptionId"]
        if task.payload.get("unlessPaid"):
            found = await self.look_at(subscription_id)
            if found.paid_count > 0:
                return "it was paid meanwhile and stays"
        at_cycle_end = bool(task.payload.get("atCycleEnd"))
        try:
            found = await self._razorpay.cancel_subscription(subscription_id, at_cycle_end=at_cycle_end)
        except ProviderRefused:
            found = await self._razorpay.fetch_subscription(subscription_id)
            if not at_cycle_end or found.paid_count < found.total_count:
                raise
            return "its last cycle runs: it ends by itself"
        await self._apply(found)
        return None

    async def _fetch(self, task: Task) -> Note:
        await self.look_at(task.payload["razorpaySubscriptionId"])
        return None

    async def _refund(self, task: Task) -> Note:
        refund_id = task.payload["refundId"]
        try:
            refund = await self._razorpay.refund_payment(
                task.payload["paymentId"],
                amount_paise=task.payload["amountPaise"],
                key=refund_id,
                notes=task.payload["notes"],
            )
        except ProviderRefused as refusal:
            # Money that is not there yet may be there tomorrow; any other refusal stays one.
            if "balance" in refusal.message:
                raise
            async with transaction(self._engine) as db:
                await lock_subscription(db, task.tenant_id)
                now, payment_id = self._clock(), task.payload["paymentId"]
                await lock_payment(db, payment_id)
                await claims.fail_refund(db, task.tenant_id, refund_id, refusal.message, now)
                await claims.settle_claims(db, payment_id, now, self._policy)
            return f"failed: {refusal.message}"
        await self._apply_event("refund.fetched", refund=refund)
        return f"{refund.id} is {refund.status}"

    async def _apply_charge(self, snapshot: ProviderSubscription, invoice: ProviderInvoice) -> None:
        async with transaction(self._engine) as db:
            if await event_store.find_payment_tenant(db, invoice.payment_id):
                return
        payment = await self._razorpay.fetch_payment(invoice.payment_id)
        await self._apply(snapshot, "subscription.charged", payment=payment, invoice=invoice)

    async def _apply(
        self, snapshot: ProviderSubscription, event_type: str = "subscription.fetched", **more: Any
    ) -> None:
        await self._apply_event(event_type, subscription=snapshot, **more)

    async def _apply_event(self, event_type: str, **entities: Any) -> None:
        now = self._clock()
        seen = look(event_type, self._mode, now, **entities)
        async with transaction(self._engine) as db:
            applied = await apply_event(
                db, seen, idempotency_key="", mode=self._mode, now=now, policy=self._policy
            )
        count_charge(applied)


async def _once(asked: Awaitable[Any], before: str) -> Note:
    """A reference that the ledger knows is one that an earlier attempt, or another path, has done."""
    try:
        await asked
    except (FailedPrecondition, AlreadyExists) as refusal:
        if refusal.reason not in ("DUPLICATE_REFERENCE", "ALREADY_RESTORED"):
            raise
        return before
    return None
