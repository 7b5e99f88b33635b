"""What operators settle by their word: a task that was done elsewhere, a subscription that nobody relies on."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import claims
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import NotAnOrphan, TaskCompleted, UnknownTask
from services.subscriptions.rules.events import ProviderSubscription
from services.subscriptions.rules.purchases import was_begun_by
from services.subscriptions.rules.tasks import cancel_orphan as cancel_task
from services.subscriptions.store import keys, purchases
from services.subscriptions.store import subscriptions as subscription_store
from services.subscriptions.store import tasks as store
from shared import logs
from shared.clock import Clock
from shared.database import transaction
from shared.ops import store as ops

RESOLVE = "ResolveReconciliationTask"
CANCEL = "CancelOrphanSubscription"


@dataclass(frozen=True)
class Word:
    """Who asks, why, and under which key."""

    idempotency_key: str
    actor: str
    reason: str

    def about(self, **what: str) -> dict[str, str]:
        """The whole of a request, as a repeat must say it again."""
        return {**what, "actor": self.actor, "reason": self.reason}


async def resolve_task(engine: AsyncEngine, word: Word, *, task_id: str, clock: Clock) -> bool:
    """Close a task that a person settled elsewhere; True if an earlier call did so."""
    request = word.about(task_id=task_id)
    async with transaction(engine) as db:
        task = await store.find_task(db, task_id, lock=True)
        if task is None:
            raise UnknownTask(f"there is no task {task_id}", task_id=task_id)
        key = {"tenant_id": task.tenant_id, "method": RESOLVE, "key": word.idempotency_key}
        if await keys.find_answer(db, **key, request=request) is not None:
            return True
        if task.completed_at is not None:
            raise TaskCompleted(f"task {task_id} is done", task_id=task_id)
        await store.close_task(db, task.id, clock(), f"resolved by {word.actor}: {word.reason}"[:500])
        if task.task_type == "revoke_grant" and task.payload["reason"] == "payment.proration":
            await subscription_store.lock_subscription(db, task.tenant_id)
            await claims.go_on(db, task.tenant_id, task.payload["causeId"], clock())
        before = {
            "attempts": task.attempts,
            "abandoned": task.abandoned_at is not None,
            "last_error": task.last_error,
        }
        await _record(db, word, "task.resolved", task.tenant_id, "task", task.id, before, {"resolved": True})
        await keys.insert_answer(db, **key, request=request, answer={"task_id": task.id})
    return False


async def cancel_orphan(
    engine: AsyncEngine,
    razorpay: Razorpay,
    word: Word,
    *,
    tenant_id: str,
    subscription_id: str,
    clock: Clock,
) -> tuple[str, bool]:
    """(the task that ends it, whether an earlier call wrote it); refuses what we rely on or what is not the tenant's."""
    request = word.about(subscription_id=subscription_id)
    key = {"tenant_id": tenant_id, "method": CANCEL, "key": word.idempotency_key}
    async with transaction(engine) as db:
        answer = await keys.find_answer(db, **key, request=request)
        if answer is not None:
            return answer["task_id"], True
        held = await _assert_orphan(db, tenant_id, subscription_id)
    if not held:
        await _assert_theirs(engine, await razorpay.fetch_subscription(subscription_id), tenant_id)
    async with transaction(engine) as db:
        await _assert_orphan(db, tenant_id, subscription_id)
        answer = await keys.find_answer(db, **key, request=request)
        if answer is not None:
            return answer["task_id"], True
        task_id, before = await _owe_cancellation(db, word, tenant_id, subscription_id, clock())
        after = {"task_id": task_id}
        await _record(
            db, word, "orphan.cancelled", tenant_id, "provider_subscription", subscription_id, before, after
        )
        await keys.insert_answer(db, **key, request=request, answer=after)
    return task_id, False


async def _owe_cancellation(
    db: AsyncConnection, word: Word, tenant_id: str, subscription_id: str, now: datetime
) -> tuple[str, Mapping[str, Any] | None]:
    """(the task that ends it, how it stood before): one that is owed already, given up or not, gets new attempts."""
    task = cancel_task(tenant_id, subscription_id, f"an orphan, says {word.actor}")
    task_id = await store.insert_task(db, task, now)
    if task_id is not None:
        return task_id, None
    for owed in await store.list_cancellations(db, tenant_id, subscription_id, lock=True):
        await store.reset_task(db, owed.id, now)
        return owed.id, {
            "task_id": owed.id,
            "attempts": owed.attempts,
            "abandoned": owed.abandoned_at is not None,
            "last_error": owed.last_error,
        }
    # The earlier one is done, and was done in vain: this one is another.
    again = hashlib.sha256(word.idempotency_key.encode()).hexdigest()[:16]
    task = cancel_task(tenant_id, subscription_id, f"an orphan, says {word.actor}", suffix=f":{again}")
    task_id = await store.insert_task(db, task, now)
    if task_id is None:
        raise LookupError("a key of this call's own is taken, and its answer is not there")
    return task_id, None


async def _assert_orphan(db: AsyncConnection, tenant_id: str, subscription_id: str) -> bool:
    """Whether we hold it at all; refuses one that some tenant relies on."""
    row = await subscription_store.lock_subscription(db, tenant_id)
    if subscription_id in (row.razorpay_subscription_id, row.pending_razorpay_subscription_id):
        raise NotAnOrphan(
            "the tenant relies on this subscription: cancel it as the customer would",
            subscription_id=subscription_id,
        )
    known = await subscription_store.find_known(db, subscription_id)
    if known is not None and known.tenant_id != tenant_id:
        raise NotAnOrphan("this subscription is another tenant's", subscription_id=subscription_id)
    return known is not None


async def _assert_theirs(engine: AsyncEngine, found: ProviderSubscription, tenant_id: str) -> None:
    """An id may be mistyped: what names nobody, or somebody else, is not ended on this tenant's account."""
    if found.notes.get("tenant_id") != tenant_id:
        raise NotAnOrphan(
            "this subscription does not name the tenant: cancel it in the provider's dashboard",
            subscription_id=found.id,
        )
    async with transaction(engine) as db:
        intent = await purchases.find_intent(db, found.notes.get("intent_id", ""))
    if intent is not None and was_begun_by(intent, found):
        raise NotAnOrphan(
            "this is a purchase of the tenant's whose answer was lost: SyncWithProvider adopts it once it is paid",
            subscription_id=found.id,
        )


async def _record(
    db: AsyncConnection,
    word: Word,
    action: str,
    tenant_id: str,
    resource_type: str,
    resource_id: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
) -> None:
    await ops.record_audit(
        db,
        room="subscriptions",
        action=action,
        actor_type="operator",
        actor_id=word.actor,
        tenant_id=tenant_id,
        resource_type=resource_type,
        resource_id=resource_id,
        before=before,
        after=after,
        reason=word.reason,
        request_id=logs.request_id.get(),
    )
