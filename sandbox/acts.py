"""What customers, banks and time do, each as one change of the world."""

from collections.abc import Callable
from functools import partial
from typing import Any

from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import charges, disputes, due, payments, refunds, subscriptions
from sandbox.state.world import Record, World
from sandbox.till import Till
from sandbox.webhooks.delivery import Delivery, Manners

MOST_STEPS = 10_000

Act = Callable[[World, str, Entity], Any]


def _pay(world: World, subscription_id: str, body: Entity) -> Record:
    # A second click on "pay" must not take the next cycle's money: that is what `charge` is for.
    if world.get("subscription", subscription_id).entity["status"] == "active":
        raise Refusal("This cycle is paid already; charge makes the next one happen")
    return _charge(world, subscription_id, body)


def _charge(world: World, subscription_id: str, body: Entity) -> Record:
    return charges.pay(
        world,
        subscription_id,
        method=body.get("method"),
        international=bool(body.get("international")),
        anonymous=bool(body.get("anonymous")),
    )


def _authenticate(world: World, subscription_id: str, body: Entity) -> Record:
    return charges.authenticate(
        world,
        subscription_id,
        method=body.get("method", "card"),
        international=bool(body.get("international")),
        anonymous=bool(body.get("anonymous")),
        token_paise=int(body.get("token_paise", 0)),
    )


def _cancel(world: World, subscription_id: str, body: Entity) -> None:
    at_cycle_end = bool(body.get("cancel_at_cycle_end"))
    subscriptions.cancel(world, subscription_id, at_cycle_end=at_cycle_end, by=body.get("by", "customer"))


def _pay_order(world: World, order_id: str, body: Entity) -> Record:
    return payments.pay_order(
        world,
        order_id,
        method=body.get("method", "card"),
        description=body.get("description"),
        payment_id=body.get("payment_id"),
    )


def _refund(world: World, payment_id: str, body: Entity) -> None:
    names = ("amount", "notes", "receipt", "speed")
    details: Entity = {name: body[name] for name in names if name in body}
    refunds.create_refund(world, payment_id, details)


def _settle(outcome: str) -> Act:
    return lambda world, dispute_id, body: disputes.settle(world, dispute_id, outcome)


# What happens in the world outside: each answers the deliveries that it caused.
ACTS: dict[str, Act] = {
    "subscriptions/{id}/pay": _pay,
    "subscriptions/{id}/charge": _charge,
    "subscriptions/{id}/fail": lambda world, subscription_id, body: charges.fail(world, subscription_id),
    "subscriptions/{id}/authenticate": _authenticate,
    "subscriptions/{id}/pause": lambda world, subscription_id, body: subscriptions.pause(
        world, subscription_id, by=body.get("by", "customer")
    ),
    "subscriptions/{id}/resume": lambda world, subscription_id, body: subscriptions.resume(
        world, subscription_id, by=body.get("by", "customer")
    ),
    "subscriptions/{id}/cancel": _cancel,
    "subscriptions/{id}/outcomes": lambda world, subscription_id, body: due.plan_outcomes(
        world, subscription_id, body.get("outcomes", [])
    ),
    "orders/{id}/pay": _pay_order,
    "orders/{id}/fail": lambda world, order_id, body: payments.fail_order(
        world, order_id, method=body.get("method", "upi")
    ),
    "payments/{id}/refund": _refund,
    "payments/{id}/dispute": disputes.open_dispute,
    "refunds/{id}/process": lambda world, refund_id, body: refunds.process_refund(world, refund_id),
    "refunds/{id}/fail": lambda world, refund_id, body: refunds.fail_refund(world, refund_id),
    "refunds/{id}/speed_changed": lambda world, refund_id, body: refunds.slow_down(world, refund_id),
    "disputes/{id}/lost": _settle("lost"),
    "disputes/{id}/won": _settle("won"),
    "disputes/{id}/closed": _settle("closed"),
    "disputes/{id}/under_review": _settle("under_review"),
    "disputes/{id}/action_required": lambda world, dispute_id, body: disputes.ask_for_more(world, dispute_id),
}


def tell(world: World, body: Entity) -> None:
    """Any other event of Razorpay's, as the caller wrote its entities: tokens, payment links, downtimes."""
    name, payload = body.get("event"), body.get("payload", {})
    if not isinstance(name, str) or not name:
        raise Refusal("Name the event", field="event")
    if not isinstance(payload, dict) or not all(isinstance(entity, dict) for entity in payload.values()):
        raise Refusal("The payload is an object of entities by name", field="payload")
    world.emit(name, body.get("contains", list(payload)), beside=body.get("beside"), **payload)


def manners(body: Entity) -> Manners:
    """How rudely the deliveries of an act leave."""
    return Manners(
        duplicates=int(body.get("duplicates", 0)), shuffle=bool(body.get("shuffle")), seed=body.get("seed")
    )


def perform(till: Till, act: Act, subject: str, body: Entity) -> list[Delivery]:
    """One act with all that it causes."""
    _, deliveries = till.ring_up(
        lambda world: act(world, subject, body),
        deliver=body.get("deliver", True),
        manners=manners(body),
        subject=subject,
    )
    return deliveries


def tick(till: Till, body: Entity) -> list[Delivery]:
    """Lets time do everything that is due by now, oldest first; a long leap makes many cycles."""
    done: list[Delivery] = []
    for _ in range(MOST_STEPS):
        waiting = due.due(till.world)
        if not waiting:
            break
        for subscription_id in waiting:
            _, deliveries = till.ring_up(
                partial(due.step, subscription_id=subscription_id),
                deliver=body.get("deliver", True),
                manners=manners(body),
                subject=subscription_id,
            )
            done += deliveries
    return done
