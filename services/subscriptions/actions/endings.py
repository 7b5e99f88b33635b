"""CancelSubscription, PauseSubscription, ResumeSubscription."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import changes, intents, standing
from services.subscriptions.actions.payment_events import apply_event
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import ChangePending, NoSubscription, WrongStatus
from services.subscriptions.rules import tasks
from services.subscriptions.rules.events import look
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import keys
from services.subscriptions.store import subscriptions as store
from services.subscriptions.store import tasks as task_store
from shared.clock import Clock
from shared.database import transaction

Mode = Literal["at_period_end", "now"]
Move = Literal["pause", "resume"]
_ALLOWED = {"pause": "active", "resume": "paused"}


@dataclass(frozen=True)
class Ended:
    """Where the tenant stands after it, and when free begins."""

    status: str
    effective_at: datetime
    replayed: bool


async def cancel_subscription(
    engine: AsyncEngine,
    *,
    tenant_id: str,
    idempotency_key: str,
    mode: Mode,
    reason: str,
    now: datetime,
    policy: Policy,
) -> Ended:
    """End the paid subscription. What is not paid for has nothing to run out: that ends now in either mode."""
    key: dict[str, Any] = {
        "tenant_id": tenant_id,
        "method": "CancelSubscription",
        "key": idempotency_key,
        "request": {"mode": mode, "reason": reason},
    }
    async with transaction(engine) as db:
        row = await store.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(db, **key)
        if answer is not None:
            return Ended(answer["status"], datetime.fromisoformat(answer["effective_at"]), replayed=True)
        live = await _live(db, row)
        why = reason or "the product asked for it"
        if mode == "now" or row.status in ("past_due", "paused"):
            row, effective_at = await _end_now(db, row, live, now, policy, why), now
        else:
            row, effective_at = await _end_later(db, row, now, policy, why)
        told = {"status": row.status, "effective_at": effective_at.isoformat()}
        await keys.insert_answer(db, **key, answer=told)
    return Ended(row.status, effective_at, replayed=False)


async def _live(db: AsyncConnection, row: Subscription) -> KnownSubscription:
    live = await store.find_known(db, row.razorpay_subscription_id or "")
    if live is None:
        raise NoSubscription("the tenant has no paid subscription", status=row.status, plan_code=row.plan_id)
    return live


async def _end_later(
    db: AsyncConnection, row: Subscription, now: datetime, policy: Policy, why: str
) -> tuple[Subscription, datetime]:
    if row.cancel_at_period_end and row.pending_kind in (None, "cancellation"):
        return row, row.ends_at or now  # that is how it stands already
    if row.has_pending_change:
        raise ChangePending(
            "another change is under way: CancelPendingChange first",
            kind=row.pending_kind or "",
            since=row.pending_since.isoformat() if row.pending_since else "",
        )
    row = await changes.schedule_end(db, row, now, policy, reason=why)
    return row, row.ends_at or now


async def _end_now(
    db: AsyncConnection,
    row: Subscription,
    live: KnownSubscription,
    now: datetime,
    policy: Policy,
    why: str,
) -> Subscription:
    await intents.drop_pending(db, row, now, "the subscription was cancelled")
    await store.save_known(
        db,
        replace(live, released_at=now, released_paid_count=live.paid_count, released_by="cancellation"),
    )
    if not live.ended:
        await task_store.insert_task(db, tasks.cancel_subscription(live, why), now)
    return await standing.settle(
        db,
        row,
        now,
        policy,
        changed=row.without_pending(),
        actor_type="service",
        actor_id="product",
        reason=why,
    )


async def move(
    engine: AsyncEngine,
    razorpay: Razorpay,
    what: Move,
    *,
    tenant_id: str,
    idempotency_key: str,
    mode: str,
    clock: Clock,
    policy: Policy,
) -> tuple[str, bool]:
    """Pause or resume at the provider, then take its word; answers the status and whether an earlier call did it.

    Asking the provider twice does nothing twice, so a repeat after a lost answer asks again.
    """
    key: dict[str, Any] = {"tenant_id": tenant_id, "method": what, "key": idempotency_key, "request": {}}
    async with transaction(engine) as db:
        row = await store.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(db, **key)
        if answer is not None:
            return answer["status"], True
        live = await _live(db, row)
        # After a lost answer the provider's event may have come first: then the wanted status is there already.
        # And pausing what was not charged yet cancels it there.
        if live.status not in ("active", "paused") or row.status not in ("active", "paused"):
            raise WrongStatus(
                f"only {_ALLOWED[what]} subscriptions can be {what}d",
                status="ended" if live.ended else row.status,
                allowed=_ALLOWED[what],
            )
    ask = razorpay.pause_subscription if what == "pause" else razorpay.resume_subscription
    snapshot = await ask(live.id)
    now = clock()
    async with transaction(engine) as db:
        seen = look(f"subscription.{what}d", mode, now, subscription=snapshot)
        await apply_event(db, seen, idempotency_key="", mode=mode, now=now, policy=policy)
        row = await store.lock_subscription(db, tenant_id)
        if await keys.find_answer(db, **key) is None:
            await standing.record_change(
                db,
                tenant_id,
                f"subscription.{what}d",
                {},
                {"status": row.status, "razorpay_subscription_id": live.id},
                actor_type="service",
                actor_id="product",
                reason=f"the product asked to {what}",
            )
            await keys.insert_answer(db, **key, answer={"status": row.status})
    return row.status, False
