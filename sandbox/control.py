"""The control API under /_sandbox: what customers, banks and time do, and what goes wrong."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import rest
from sandbox.entities import Entity
from sandbox.errors import Refusal, WrongKey
from sandbox.state import charges, checks, due, payments, refunds, subscriptions
from sandbox.state.world import Record, World
from sandbox.till import Till
from sandbox.webhooks import Delivery, Manners

LOOPBACK = ("127.0.0.1", "::1", None)
MOST_STEPS = 10_000

Act = Callable[[World, str, Entity], Any]


def _pay(world: World, subscription_id: str, body: Entity) -> Record:
    # A second click on "pay" must not take the next cycle's money: that is what `charge` is for.
    if world.get("subscription", subscription_id).entity["status"] == "active":
        raise Refusal("This cycle is paid already; charge makes the next one happen")
    return _charge(world, subscription_id, body)


def _charge(world: World, subscription_id: str, body: Entity) -> Record:
    international = bool(body.get("international"))
    return charges.pay(world, subscription_id, method=body.get("method"), international=international)


def _authenticate(world: World, subscription_id: str, body: Entity) -> None:
    charges.authenticate(
        world,
        subscription_id,
        method=body.get("method", "card"),
        international=bool(body.get("international")),
        token_paise=int(body.get("token_paise", 0)),
    )


def _cancel(world: World, subscription_id: str, body: Entity) -> None:
    at_cycle_end = bool(body.get("cancel_at_cycle_end"))
    subscriptions.cancel(world, subscription_id, at_cycle_end=at_cycle_end, by=body.get("by", "customer"))


def _refund(world: World, payment_id: str, body: Entity) -> None:
    details: Entity = {name: body[name] for name in ("amount", "notes", "receipt") if name in body}
    refunds.create_refund(world, payment_id, details)


def _settle(outcome: str) -> Act:
    return lambda world, dispute_id, body: refunds.settle_dispute(world, dispute_id, outcome)


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
    "orders/{id}/pay": lambda world, order_id, body: payments.pay_order(
        world,
        order_id,
        method=body.get("method", "card"),
        description=body.get("description"),
        payment_id=body.get("payment_id"),
    ),
    "orders/{id}/fail": lambda world, order_id, body: payments.fail_order(
        world, order_id, method=body.get("method", "upi")
    ),
    "payments/{id}/refund": _refund,
    "payments/{id}/dispute": lambda world, payment_id, body: refunds.open_dispute(
        world, payment_id, amount=body.get("amount")
    ),
    "refunds/{id}/process": lambda world, refund_id, body: refunds.process_refund(world, refund_id),
    "refunds/{id}/fail": lambda world, refund_id, body: refunds.fail_refund(world, refund_id),
    "disputes/{id}/lost": _settle("lost"),
    "disputes/{id}/won": _settle("won"),
    "disputes/{id}/closed": _settle("closed"),
    "disputes/{id}/under_review": _settle("under_review"),
}


def routes(till: Till) -> list[Route]:
    """Acts, time, and the switches of the sandbox itself."""
    handlers: list[tuple[str, str, Callable[[Entity, dict[str, str]], Any]]] = [
        ("POST", "tick", lambda body, _: _tick(till, body)),
        ("POST", "checkout_signature", lambda body, _: checkout(till, body)),
        ("GET", "deliveries", lambda *_: till.sender.list()),
        ("POST", "deliveries/{id}/replay", lambda _, path: till.sender.replay(path["id"]).as_entity()),
        ("GET", "webhook_endpoint", lambda *_: _endpoint(till)),
        ("POST", "webhook_endpoint", lambda body, _: _register(till, body)),
        ("GET", "faults", lambda *_: _faults(till)),
        ("POST", "faults", lambda body, _: _add_fault(till, body)),
        ("DELETE", "faults", lambda *_: _clear_faults(till)),
        ("GET", "clock", lambda *_: {"now": till.world.clock().isoformat()}),
    ]
    known = [
        Route(f"/_sandbox/{path}", _guarded(till, handler), methods=[method])
        for method, path, handler in handlers
    ]
    acts = [
        Route(f"/_sandbox/{path}", _guarded(till, _acting(till, act)), methods=["POST"])
        for path, act in ACTS.items()
    ]
    return known + acts


def _guarded(
    till: Till, handler: Callable[[Entity, dict[str, str]], Any]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            # Free of keys on this machine only: in a container the API's own keys open it.
            host = request.client.host if request.client else None
            if host not in LOOPBACK and not rest.authorized(till, request):
                raise WrongKey()
            return JSONResponse(handler(await _body(request), dict(request.path_params)))
        except Refusal as refusal:
            return JSONResponse(refusal.envelope(), status_code=refusal.status)
        except (TypeError, ValueError) as error:
            return JSONResponse(Refusal(f"A field has the wrong type: {error}").envelope(), status_code=400)

    return endpoint


async def _body(request: Request) -> Entity:
    raw = await request.body()
    try:
        body = json.loads(raw) if raw else {}
    except ValueError as error:
        raise Refusal("The request body is not valid JSON") from error
    if not isinstance(body, dict):
        raise Refusal("The request body must be an object")
    return body


def _acting(till: Till, act: Act) -> Callable[[Entity, dict[str, str]], list[Entity]]:
    def handler(body: Entity, path: dict[str, str]) -> list[Entity]:
        _, deliveries = till.ring_up(
            lambda world: act(world, path["id"], body),
            deliver=body.get("deliver", True),
            manners=_manners(body),
        )
        return [_shown(delivery) for delivery in deliveries]

    return handler


def _manners(body: Entity) -> Manners:
    return Manners(
        duplicates=int(body.get("duplicates", 0)), shuffle=bool(body.get("shuffle")), seed=body.get("seed")
    )


def _shown(delivery: Delivery) -> Entity:
    whole = delivery.as_entity()
    return {name: whole[name] for name in ("event", "event_id", "body_base64", "headers")}


def _tick(till: Till, body: Entity) -> list[Entity]:
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
                manners=_manners(body),
            )
            done += deliveries
    return [_shown(delivery) for delivery in done]


def checkout(till: Till, body: Entity) -> Entity:
    """The three fields that Checkout hands to the merchant's page, signed."""
    payment_id = checks.required(body, "payment_id")
    order_id, subscription_id = body.get("order_id"), body.get("subscription_id")
    if bool(order_id) == bool(subscription_id):
        raise Refusal("Name the order_id or the subscription_id, one of the two")
    signature = till.checkout_signature(payment_id, order_id=order_id, subscription_id=subscription_id)
    named = {"razorpay_order_id": order_id} if order_id else {"razorpay_subscription_id": subscription_id}
    return {"razorpay_payment_id": payment_id, **named, "razorpay_signature": signature}


def _endpoint(till: Till) -> Entity:
    return {"url": till.sender.url, "disabled": till.sender.disabled}


def _register(till: Till, body: Entity) -> Entity:
    url = body.get("url")
    if url is not None and not str(url).startswith(("http://", "https://")):
        raise Refusal("The url must start with http:// or https://", field="url")
    till.sender.register(url, body.get("secret"))
    return _endpoint(till)


def _faults(till: Till) -> Entity:
    return {
        "waiting": [
            {"kind": fault.kind, "times": fault.times, "method": fault.method, "path": fault.path}
            for fault in till.faults.waiting
        ],
        "list_lag_seconds": till.faults.list_lag_seconds,
        "hold_refunds": till.faults.hold_refunds,
    }


def _add_fault(till: Till, body: Entity) -> Entity:
    till.faults.add(body)
    return _faults(till)


def _clear_faults(till: Till) -> Entity:
    till.faults.clear()
    return _faults(till)
