"""What time alone does: charges that are due, cancellations at the cycle's end, links that expire."""

from sandbox.errors import Refusal
from sandbox.state import charges, subscriptions
from sandbox.state.world import Record, World


def plan_outcomes(world: World, subscription_id: str, outcomes: list[str]) -> Record:
    """Sets how the coming due charges end, first to last: "succeed" or "fail"; after them all succeed."""
    if bad := [outcome for outcome in outcomes if outcome not in ("succeed", "fail")]:
        raise Refusal(f'outcomes are "succeed" or "fail", not {bad[0]!r}', field="outcomes")
    subscription = world.edit("subscription", subscription_id)
    subscription.inner["outcomes"] = list(outcomes)
    return subscription


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
    return at


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
    elif _next_outcome(subscription) == "fail":
        charges.fail(world, subscription_id)
    else:
        charges.pay(world, subscription_id)


def _cycle_is_over(world: World, subscription: Record) -> bool:
    current_end: int = subscription.entity["current_end"]
    return current_end <= world.now()


def _next_outcome(subscription: Record) -> str:
    outcomes: list[str] = subscription.inner.get("outcomes", [])
    return outcomes.pop(0) if outcomes else "succeed"
