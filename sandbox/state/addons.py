"""Amounts billed once beside the plan: Razorpay calls them add-ons."""

from typing import Any

from sandbox import entities
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import checks
from sandbox.state.world import Record, World


def upfront(request: Entity, now: int) -> list[Entity]:
    """What a new subscription charges with its first payment."""
    given = request.get("addons") or []
    if not isinstance(given, list):
        raise Refusal("The addons must be an array.", field="addons")
    return [_checked(addon, now) for addon in given]


def create(world: World, subscription_id: str, request: Entity) -> Record:
    """An amount on the next invoice; refused where the mandate knows only one amount."""
    addon = _checked(request, world.now())
    subscription = world.edit("subscription", subscription_id)
    status, paid_with = subscription.entity["status"], subscription.inner.get("instrument")
    if status not in ("authenticated", "active") or paid_with is None:
        raise Refusal(f"Addon cannot be created in {status} status.", field="status")
    if paid_with["method"] != "card" or not paid_with["international"]:
        raise Refusal("Addons cannot be created for subscriptions when payment mode is UPI or domestic card")
    addon["subscription_id"] = subscription_id
    subscription.inner["addons"] = [*subscription.inner.get("addons", []), addon]
    return world.add("addon", addon)


def amount(addons: list[Entity]) -> int:
    """What they come to."""
    return sum(addon["item"]["amount"] * addon["quantity"] for addon in addons)


def take(subscription: Record) -> list[Entity]:
    """Those that wait for an invoice; they are on it now."""
    waiting: list[Entity] = subscription.inner.get("addons", [])
    subscription.inner["addons"] = []
    return waiting


def _checked(request: Any, now: int) -> Entity:
    if not isinstance(request, dict):
        raise Refusal("An addon must be an array.", field="addons")
    checks.only(request, "item quantity")
    price = checks.item(request)
    quantity = checks.whole(request | {"quantity": request.get("quantity", 1)}, "quantity", least=1)
    return entities.addon(item=price, quantity=quantity, now=now)
