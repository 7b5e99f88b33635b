"""The control API under /_sandbox: what happens in the world, and the switches of the sandbox itself."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import acts
from sandbox.entities import Entity
from sandbox.errors import Refusal, WrongKey
from sandbox.rest.doors import authorized
from sandbox.state import checks, due, refunds
from sandbox.till import Till
from sandbox.webhooks.delivery import UNFINISHED, Delivery

LOOPBACK = ("127.0.0.1", "::1", None)
UNITS = ("days", "hours", "minutes", "seconds")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to the control API."""

    body: Entity
    path: dict[str, str]
    query: dict[str, str]


Handler = Callable[[Till, Ask], Any]


def routes(till: Till) -> list[Route]:
    """Acts, time, and the switches of the sandbox itself."""
    known = [
        Route(f"/_sandbox/{path}", _guarded(till, handler), methods=[method])
        for method, path, handler in SWITCHES
    ]
    outside = [
        Route(f"/_sandbox/{path}", _guarded(till, _acting(act)), methods=["POST"])
        for path, act in acts.ACTS.items()
    ]
    return [*known, Route("/_sandbox/drain", _guarded_drain(till), methods=["POST"]), *outside]


def _guarded(till: Till, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Any:
        return handler(till, Ask(await _body(request), dict(request.path_params), dict(request.query_params)))

    return _endpoint(till, answer)


def _guarded_drain(till: Till) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Any:
        body = await _body(request)
        patience = float(body.get("timeout", 30))
        drained = await till.sender.drain(timeout_seconds=patience, hurry=bool(body.get("hurry")))
        return {
            "drained": drained,
            "pending": till.sender.pending,
            "disabled": till.outbox.endpoint.disabled,
        }

    return _endpoint(till, answer)


def _endpoint(
    till: Till, answer: Callable[[Request], Awaitable[Any]]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            # Free of keys on this machine only: in a container the API's own keys open it.
            host = request.client.host if request.client else None
            if host not in LOOPBACK and not authorized(till, request):
                raise WrongKey()
            return JSONResponse(await answer(request))
        except Refusal as refusal:
            return JSONResponse(refusal.envelope(), status_code=refusal.status)
        except (TypeError, ValueError, OverflowError) as error:
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


def _acting(act: acts.Act) -> Handler:
    return lambda till, ask: _shown(acts.perform(till, act, ask.path["id"], ask.body), ask.body)


def _shown(deliveries: list[Delivery], body: Entity) -> list[Entity]:
    names = ("event", "event_id", "body_base64", "headers")
    if not body.get("bodies", True):
        return [{"event": delivery.event, "event_id": delivery.event_id} for delivery in deliveries]
    return [{name: whole[name] for name in names} for whole in (each.as_entity() for each in deliveries)]


def _tick(till: Till, ask: Ask) -> list[Entity]:
    return _shown(acts.tick(till, ask.body), ask.body)


def _tell(till: Till, ask: Ask) -> list[Entity]:
    told = acts.perform(till, lambda world, _, body: acts.tell(world, body), "", ask.body)
    return _shown(told, ask.body)


def _move_clock(till: Till, ask: Ask) -> Entity:
    """By so many days, hours, minutes, seconds, or to a moment."""
    if unknown := sorted(set(ask.body) - {*UNITS, "to"}):
        raise Refusal(f"A clock is moved by {', '.join(UNITS)} or to a moment, not by {unknown[0]}")
    by = timedelta(**{unit: float(ask.body[unit]) for unit in UNITS if unit in ask.body})
    if "to" in ask.body:
        moment = datetime.fromisoformat(str(ask.body["to"]))
        if moment.tzinfo is None:
            raise Refusal("Say the moment's time zone too, as in 2026-12-01T00:00:00+05:30", field="to")
        by += moment - till.world.clock()
    till.move_clock(by)
    return _clock(till, ask)


def _clock(till: Till, _: Ask) -> Entity:
    return {"now": till.world.clock().isoformat()}


def checkout(till: Till, body: Entity) -> Entity:
    """The three fields that Checkout hands to the merchant's page, signed."""
    payment_id = checks.required(body, "payment_id")
    order_id, subscription_id = body.get("order_id"), body.get("subscription_id")
    if bool(order_id) == bool(subscription_id):
        raise Refusal("Name the order_id or the subscription_id, one of the two")
    signature = till.checkout_signature(payment_id, order_id=order_id, subscription_id=subscription_id)
    named = {"razorpay_order_id": order_id} if order_id else {"razorpay_subscription_id": subscription_id}
    return {"razorpay_payment_id": payment_id, **named, "razorpay_signature": signature}


def _deliveries(till: Till, ask: Ask) -> list[Entity]:
    """What is remembered, by event and status; `bodies=0` leaves the bytes out."""
    wanted = {name: ask.query[name] for name in ("event", "status") if name in ask.query}
    pending = ask.query.get("pending", "0") != "0"
    return [
        delivery.as_entity(bodies=ask.query.get("bodies", "1") != "0")
        for delivery in till.outbox.all()
        if all(getattr(delivery, name) == value for name, value in wanted.items())
        and (delivery.status in UNFINISHED or not pending)
    ]


def _replay_one(till: Till, ask: Ask) -> Entity:
    delivery = till.outbox.take_again(ask.path["id"])
    till.sender.queue([delivery], acts.manners(ask.body), delivery.event_id)
    return delivery.as_entity()


def _replay_missed(till: Till, ask: Ask) -> list[Entity]:
    missed = till.outbox.take_missed()
    till.sender.queue(missed, acts.manners(ask.body))
    return _shown(missed, ask.body)


def _register(till: Till, ask: Ask) -> Entity:
    url, events = ask.body.get("url"), ask.body.get("events")
    if url is not None and not str(url).startswith(("http://", "https://")):
        raise Refusal("The url must start with http:// or https://", field="url")
    till.outbox.register(url, checks.text(ask.body, "secret"), checks.names(events, "events"))
    return till.outbox.endpoint.shown()


def _add_fault(till: Till, ask: Ask) -> Entity:
    till.faults.add(ask.body)
    return till.faults.shown()


def _clear_faults(till: Till, _: Ask) -> Entity:
    till.faults.clear()
    return till.faults.shown()


def _habits(till: Till, ask: Ask) -> Entity:
    """How the world behaves until told otherwise; a restart does not change it."""
    checks.only(ask.body, "fail_share seed refund_window_days")
    if "fail_share" in ask.body:
        share, seed = float(ask.body["fail_share"]), int(ask.body.get("seed", 0))
        till.ring_up(lambda world: due.set_habits(world, fail_share=share, seed=seed))
    if "refund_window_days" in ask.body:
        days = checks.whole(ask.body, "refund_window_days", least=0, most=36_500)
        till.ring_up(lambda world: refunds.set_window(world, days))
    return {record.entity["id"]: record.inner for record in till.world.all("habits")}


SWITCHES: list[tuple[str, str, Handler]] = [
    ("POST", "tick", _tick),
    ("POST", "events", _tell),
    ("GET", "clock", _clock),
    ("POST", "clock", _move_clock),
    ("POST", "checkout_signature", lambda till, ask: checkout(till, ask.body)),
    ("GET", "deliveries", _deliveries),
    ("POST", "deliveries/{id}/replay", _replay_one),
    ("POST", "replay", _replay_missed),
    ("GET", "webhook_endpoint", lambda till, _: till.outbox.endpoint.shown()),
    ("POST", "webhook_endpoint", _register),
    ("GET", "faults", lambda till, _: till.faults.shown()),
    ("POST", "faults", _add_fault),
    ("DELETE", "faults", _clear_faults),
    ("POST", "habits", _habits),
]
