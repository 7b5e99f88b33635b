"""Subscriptions."""

from collections.abc import Callable

from sandbox import entities
from sandbox.entities import Entity
from sandbox.rest.call import Call
from sandbox.state import addons, changes, checks, subscriptions
from sandbox.state.world import Record


def _subscription(call: Call) -> Callable[[Record], Entity]:
    return lambda record: subscriptions.in_api(record, call.checkout_url)


def create_subscription(call: Call) -> Entity:
    return call.change(lambda world: subscriptions.create(world, call.body), _subscription(call))


def fetch_subscription(call: Call) -> Entity:
    return _subscription(call)(call.till.world.get("subscription", call.entity_id("sub")))


def list_subscriptions(call: Call) -> Entity:
    plan_id = call.query.get("plan_id")
    found = call.page(
        "subscription", also="plan_id", keep=lambda entity: plan_id in (None, entity["plan_id"])
    )
    return entities.collection([_subscription(call)(record) for record in found])


def update_subscription(call: Call) -> Entity:
    subscription_id = call.entity_id("sub")
    return call.change(lambda world: changes.update(world, subscription_id, call.body), _subscription(call))


def cancel_subscription(call: Call) -> Entity:
    subscription_id = call.entity_id("sub")
    checks.only(call.body, "cancel_at_cycle_end")
    at_cycle_end = checks.truth(call.body.get("cancel_at_cycle_end"))
    return call.change(
        lambda world: subscriptions.cancel(world, subscription_id, at_cycle_end=at_cycle_end),
        _subscription(call),
    )


def pause_subscription(call: Call) -> Entity:
    subscription_id = call.entity_id("sub")
    checks.only(call.body, "pause_at")
    checks.now_only(call.body, "pause_at")
    return call.change(lambda world: subscriptions.pause(world, subscription_id), _subscription(call))


def resume_subscription(call: Call) -> Entity:
    subscription_id = call.entity_id("sub")
    checks.only(call.body, "resume_at")
    checks.now_only(call.body, "resume_at")
    return call.change(lambda world: subscriptions.resume(world, subscription_id), _subscription(call))


def fetch_scheduled_changes(call: Call) -> Entity:
    return _subscription(call)(changes.scheduled(call.till.world, call.entity_id("sub")))


def cancel_scheduled_changes(call: Call) -> Entity:
    subscription_id = call.entity_id("sub")
    return call.change(lambda world: changes.forget_scheduled(world, subscription_id), _subscription(call))


def create_addon(call: Call) -> Entity:
    subscription_id = call.entity_id("sub")
    return call.change(lambda world: addons.create(world, subscription_id, call.body))


def delete_offer(call: Call) -> Entity:
    subscription_id, offer_id = call.entity_id("sub"), call.entity_id("offer", "offer_id")
    return call.change(
        lambda world: changes.forget_offer(world, subscription_id, offer_id), _subscription(call)
    )
