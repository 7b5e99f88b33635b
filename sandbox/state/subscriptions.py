"""Subscriptions as merchants see them: create, cancel, pause, resume."""

from sandbox import cycles, entities
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import addons, checks
from sandbox.state.world import Record, World

ENDED = ("cancelled", "completed", "expired")
_YEARS_100 = {"daily": 36_500, "weekly": 5_200, "monthly": 1_200, "quarterly": 400, "yearly": 100}


def create(world: World, request: Entity) -> Record:
    """A subscription that waits for its customer. There is no idempotency here: asked twice, made twice."""
    checks.only(
        request,
        "plan_id total_count quantity start_at expire_by customer_notify addons offer_id notes notify_info customer_id",
    )
    plan = world.get("plan", str(checks.required(request, "plan_id")))
    total_count = checks.whole(request, "total_count", least=1)
    refuse_too_long(plan, total_count)
    checked: Entity = {
        "total_count": total_count,
        "notes": checks.notes(request),
        "offer_id": checks.text(request, "offer_id"),
        "customer_notify": checks.truth(request.get("customer_notify", True)),
    }
    if "quantity" in request:
        checked["quantity"] = checks.whole(request, "quantity", least=1)
    now = world.now()
    if request.get("start_at") is not None:
        checked["start_at"] = checks.moment(request, "start_at")
        if checked["start_at"] < now:
            raise Refusal("start_at cannot be lesser than the current time", field="start_at")
    if request.get("expire_by") is not None:
        checked["expire_by"] = checks.moment(request, "expire_by")
        if checked["expire_by"] < now:
            raise Refusal("Link expire by cannot be lesser than the current time.", field="expire_by")
    if request.get("customer_id") is not None:
        world.get("customer", str(request["customer_id"]))
    subscription = world.add(
        "subscription",
        entities.subscription(request | checked, now=now),
        cycles=0,
        number=world.count("subscription"),
        addons=addons.upfront(request, now),
    )
    if start_at := subscription.entity["start_at"]:
        subscription.entity["end_at"] = cycle_end(world, subscription, start_at, total_count)
    return subscription


def refuse_too_long(plan: Record, total_count: int) -> None:
    """No subscription lasts for more than a hundred years."""
    most = _YEARS_100[plan.entity["period"]] // plan.entity["interval"]
    if total_count > most:
        raise Refusal(
            f"Exceeds the maximum total_count ({most}) allowed for the given period and interval",
            field="total_count",
        )


def cycle_end(world: World, subscription: Record, start: int, count: int) -> int:
    """Midnight IST after so many of this subscription's cycles."""
    plan = world.get("plan", subscription.entity["plan_id"]).entity
    return cycles.boundary(start, plan["period"], plan["interval"], count)


def cancel(world: World, subscription_id: str, *, at_cycle_end: bool, by: str = "self") -> Record:
    """Ends it now, or remembers to: the wish for the cycle's end shows nowhere in the entity."""
    subscription = world.edit("subscription", subscription_id)
    status = subscription.entity["status"]
    if status in ENDED:
        raise Refusal(f"Subscription is not cancellable in {status} status.", field="status")
    if at_cycle_end:
        if status in ("created", "authenticated"):
            raise Refusal("Subscription cannot be cancelled since no billing cycle is going on")
        if not subscription.entity["remaining_count"]:
            raise Refusal("The subscription is in its final cycle and cannot be cancelled now.")
        subscription.inner["cancel_at_cycle_end"] = True
        return subscription
    end(world, subscription, by=by)
    return subscription


def end(world: World, subscription: Record, *, by: str) -> None:
    """Cancels and tells so."""
    subscription.entity.update(status="cancelled", ended_at=world.now(), charge_at=None)
    subscription.inner.update(cancel_at_cycle_end=False, cancelled_by=by)
    announce(world, "cancelled", subscription)


def pause(world: World, subscription_id: str, *, by: str = "self") -> Record:
    """Pauses an active subscription; a trial that is paused is cancelled instead."""
    subscription = world.edit("subscription", subscription_id)
    status = subscription.entity["status"]
    if status == "authenticated":
        end(world, subscription, by=by)
        return subscription
    if status != "active":
        raise Refusal(f"Subscription cannot be paused in {status} status.", field="status")
    subscription.entity.update(status="paused", charge_at=None)
    subscription.inner.update(paused_by=by, paused_at=world.now())
    announce(world, "paused", subscription)
    return subscription


def resume(world: World, subscription_id: str, *, by: str = "self") -> Record:
    """Resumes what was paused; a mandate that its customer paused only the customer resumes."""
    subscription = world.edit("subscription", subscription_id)
    status = subscription.entity["status"]
    if status != "paused":
        raise Refusal(f"Subscription cannot be resumed in {status} status.", field="status")
    if subscription.inner.get("paused_by") == "customer" and by != "customer":
        raise Refusal(
            "Subscription paused by the customer can only be resumed by the customer", field="status"
        )
    subscription.inner.update(paused_by=None, paused_at=None)
    subscription.entity.update(status="active", charge_at=_next_boundary(world, subscription))
    announce(world, "resumed", subscription)
    if subscription.inner["cycles"] >= subscription.entity["total_count"]:
        subscription.entity.update(status="completed", ended_at=world.now(), charge_at=None)
        announce(world, "completed", subscription)
    return subscription


def _next_boundary(world: World, subscription: Record) -> int:
    """The end of the cycle that runs now: those that began during a pause are neither billed nor made up for."""
    entity, boundary = subscription.entity, int(subscription.entity["current_end"])
    while boundary <= world.now() and subscription.inner["cycles"] < entity["total_count"]:
        subscription.inner["cycles"] += 1
        boundary = cycle_end(world, subscription, entity["start_at"], subscription.inner["cycles"])
    entity["remaining_count"] = entity["total_count"] - subscription.inner["cycles"]
    return boundary


def announce(world: World, what: str, subscription: Record) -> None:
    """A subscription event without a payment."""
    world.emit(f"subscription.{what}", ["subscription"], subscription=in_event(subscription, what))


def in_event(subscription: Record, what: str) -> Entity:
    """The entity as events show it; three of them say who did it."""
    entity = dict(subscription.entity)
    if what in ("paused", "resumed", "cancelled"):
        entity["pause_initiated_by"] = subscription.inner.get("paused_by")
        entity["cancel_initiated_by"] = subscription.inner.get("cancelled_by")
    return entity


def in_api(subscription: Record, checkout_url: str) -> Entity:
    """The entity as the API answers it."""
    entity = subscription.entity | {"short_url": f"{checkout_url}/{subscription.entity['id']}"}
    if subscription.entity["status"] == "paused":
        entity |= {
            "paused_at": subscription.inner["paused_at"],
            "pause_initiated_by": subscription.inner["paused_by"],
        }
    return entity
