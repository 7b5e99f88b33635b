"""Editing a live subscription: what Razorpay allows depends on how it is paid."""

from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import charges, checks, refunds, subscriptions
from sandbox.state.world import Record, World

_LEAST_DIFFERENCE = 50


def update(world: World, subscription_id: str, request: Entity) -> Record:
    """Changes plan, quantity or length now or at the cycle's end, or refuses by payment method."""
    checks.only(
        request,
        "plan_id quantity remaining_count start_at schedule_change_at offer_id customer_notify",
    )
    subscription = world.edit("subscription", subscription_id)
    if subscription.entity["status"] not in ("authenticated", "active"):
        raise Refusal("Can't update subscription when subscription is not in Authenticated or Active state")
    _refuse_by_method(subscription, request)
    when = request.get("schedule_change_at", "now")
    if when not in ("now", "cycle_end"):
        raise Refusal("The selected schedule change at is invalid.", field="schedule_change_at")
    change = _checked(world, subscription, request)
    if when == "cycle_end" and subscription.entity["status"] == "active":
        subscription.inner["scheduled_change"] = change
        subscription.entity["has_scheduled_changes"] = True
        subscription.entity["change_scheduled_at"] = subscription.entity["current_end"]
    else:
        _apply_now(world, subscription, change)
    subscriptions.announce(world, "updated", subscription)
    return subscription


def _refuse_by_method(subscription: Record, request: Entity) -> None:
    paid_with = subscription.inner["instrument"]
    if paid_with["method"] == "upi":
        raise Refusal("subscriptions cannot be updated when payment mode is UPI")
    if paid_with["method"] == "netbanking":
        raise Refusal("subscriptions cannot be updated when payment mode is emandate")
    if not paid_with["international"] and set(request) - {
        "offer_id",
        "customer_notify",
        "schedule_change_at",
    }:
        raise Refusal(
            "Only offers can be updated for subscriptions when payment mode is domestic card",
            field="offer_id",
        )


def _checked(world: World, subscription: Record, request: Entity) -> Entity:
    change: Entity = {}
    if "offer_id" in request:
        change["offer_id"] = checks.text(request, "offer_id")
    if "customer_notify" in request:
        change["customer_notify"] = checks.truth(request["customer_notify"])
    if "plan_id" in request:
        change["plan_id"] = world.get("plan", str(request["plan_id"])).entity["id"]
    if "quantity" in request:
        change["quantity"] = checks.whole(request, "quantity", least=1)
    if "remaining_count" in request:
        change["remaining_count"] = checks.whole(request, "remaining_count", least=1)
        change["total_count"] = subscription.inner["cycles"] + change["remaining_count"]
        plan_id = str(change.get("plan_id", subscription.entity["plan_id"]))
        subscriptions.refuse_too_long(world.get("plan", plan_id), change["total_count"])
    if "start_at" in request:
        if subscription.entity["status"] != "authenticated":
            raise Refusal("start_at can be changed only before the subscription starts", field="start_at")
        change["start_at"] = change["charge_at"] = checks.moment(request, "start_at")
        if change["start_at"] <= world.now():
            raise Refusal("start_at cannot be lesser than the current time", field="start_at")
    return change


def _apply_now(world: World, subscription: Record, change: Entity) -> None:
    before = _price(world, subscription.entity)
    subscription.entity |= change
    if subscription.entity["status"] != "active":
        return
    entity, now = subscription.entity, world.now()
    length = entity["current_end"] - entity["current_start"]
    left = min(max(entity["current_end"] - now, 0), length)
    difference = (_price(world, entity) - before) * left // length
    if difference >= _LEAST_DIFFERENCE:
        charges.collect_extra(world, subscription, difference)
    elif difference <= -checks.SMALLEST_AMOUNT:
        refunds.create_refund(world, subscription.inner["last_payment_id"], {"amount": -difference})


def _price(world: World, entity: Entity) -> int:
    amount: int = world.get("plan", entity["plan_id"]).entity["item"]["amount"]
    return amount * int(entity["quantity"])


def scheduled(world: World, subscription_id: str) -> Record:
    """The subscription as it will be after its scheduled change."""
    subscription = world.get("subscription", subscription_id)
    change = _scheduled_change(subscription)
    return Record(subscription.kind, subscription.entity | change, subscription.inner)


def forget_scheduled(world: World, subscription_id: str) -> Record:
    """Undoes a scheduled change; `change_scheduled_at` stays, as it does at Razorpay."""
    subscription = world.edit("subscription", subscription_id)
    _scheduled_change(subscription)
    subscription.inner.pop("scheduled_change")
    subscription.entity["has_scheduled_changes"] = False
    return subscription


def forget_offer(world: World, subscription_id: str, offer_id: str) -> Record:
    """Takes an offer off a subscription."""
    subscription = world.edit("subscription", subscription_id)
    if subscription.entity["offer_id"] != offer_id:
        raise Refusal("The offer is not linked to the subscription", field="offer_id")
    subscription.entity["offer_id"] = None
    return subscription


def _scheduled_change(subscription: Record) -> Entity:
    change: Entity | None = subscription.inner.get("scheduled_change")
    if change is None:
        raise Refusal("No Pending update for this subscription")
    return change
