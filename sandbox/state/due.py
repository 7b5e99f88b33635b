"""What time alone does: charges that are due, cancellations at the cycle's end, links that expire."""

import hashlib

from sandbox.errors import Refusal
from sandbox.state import charges, subscriptions
from sandbox.state.world import Record, World

OUTCOMES = ("succeed", "fail", "late")
_DAY = 86_400


def plan_outcomes(world: World, subscription_id: str, outcomes: list[str]) -> Record:
    """Sets how the coming due charges end, first to last; after them it is as the habits say."""
    if bad := [outcome for outcome in outcomes if outcome not in OUTCOMES]:
        raise Refusal(f"outcomes are {', '.join(OUTCOMES)}, not {bad[0]!r}", field="outcomes")
    subscription = world.edit("subscription", subscription_id)
    subscription.inner["outcomes"] = list(outcomes)
    return subscription


def set_habits(world: World, *, fail_share: float, seed: int) -> Record:
    """How due charges end that nobody planned: this share of them fails, the same ones for the same seed."""
    if not 0 <= fail_share <= 1:
        raise Refusal("fail_share lies between 0 and 1", field="fail_share")
    return world.add("habits", {"id": "habits"}, fail_share=fail_share, seed=seed)


def due(world: World) -> list[str]:
    """The subscriptions that time has something to do for, the longest due first."""
    now = world.now()
    found = [
        (at, record.entity["id"])
        for record in world.all("subscription")
        if (at := _due_at(record)) is not None
    ]
    return [subscription_id for at, subscription_id in sorted(found) if at <= now]


def _due_at(subscription: Record) -> int | None:
    entity = subscription.entity
    at: int | None = None
    match entity["status"]:
        case "created":
            at = min((at for at in (entity["start_at"], entity["expire_by"]) if at), default=None)
        case "authenticated" | "pending":
            at = entity["charge_at"]
        case "active" | "halted" | "paused":
            ends = subscription.inner.get("cancel_at_cycle_end") or entity["status"] == "halted"
            at = entity["current_end"] if ends else entity["charge_at"]
    # A bank that takes its time is waited for.
    return at if at is None else max(at, subscription.inner.get("late_until", 0))


def step(world: World, subscription_id: str) -> None:
    """Does the one thing that is due for this subscription."""
    subscription = world.edit("subscription", subscription_id)
    status = subscription.entity["status"]
    if status == "created":
        # Expiry has no webhook at Razorpay: merchants find out by asking.
        subscription.entity.update(status="expired", ended_at=world.now(), charge_at=None)
    elif subscription.inner.get("cancel_at_cycle_end") and _cycle_is_over(world, subscription):
        subscriptions.end(world, subscription, by="self")
    elif status == "halted":
        charges.bill_without_charging(world, subscription)
    else:
        _charge(world, subscription)


def _charge(world: World, subscription: Record) -> None:
    match _next_outcome(world, subscription):
        case "fail":
            charges.fail(world, subscription.entity["id"])
        case "late":
            subscription.inner["late_until"] = world.now() + _DAY
        case _:
            charges.pay(world, subscription.entity["id"])


def _cycle_is_over(world: World, subscription: Record) -> bool:
    current_end, charge_at = subscription.entity["current_end"], subscription.entity["charge_at"]
    # After a long leap, retries that were due before the cycle's end come first.
    return bool(current_end <= world.now() and (charge_at is None or charge_at >= current_end))


def _next_outcome(world: World, subscription: Record) -> str:
    outcomes: list[str] = subscription.inner.get("outcomes", [])
    if outcomes:
        return outcomes.pop(0)
    habits = world.find("habits", "habits")
    if habits is None or not habits.inner["fail_share"]:
        return "succeed"
    entity = subscription.entity
    # Drawn from what is being charged, so that neither a restart nor the order of charges changes it.
    charge = (subscription.inner.get("number"), subscription.inner["cycles"], entity["auth_attempts"])
    turn = f"{habits.inner['seed']} {charge}"
    drawn = int.from_bytes(hashlib.sha256(turn.encode()).digest()[:4], "big") / 2**32
    return "fail" if drawn < habits.inner["fail_share"] else "succeed"
