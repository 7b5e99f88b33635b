"""Razorpay's REST API under /v1, for the official SDK."""

import asyncio
import base64
import binascii
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sandbox import entities
from sandbox.entities import Entity
from sandbox.errors import Refusal, ServerError, TooManyRequests, WrongKey, unknown_url
from sandbox.state import catalogue, changes, checks, payments, refunds, subscriptions
from sandbox.state.world import Record, World
from sandbox.till import Till

BAD_GATEWAY = (
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n"
    "<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)
_LIST = "from to count skip expand[]"


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the operations see it."""

    till: Till
    path: dict[str, str]
    query: dict[str, str]
    body: Entity
    headers: dict[str, str]
    checkout_url: str

    def entity_id(self, prefix: str, name: str = "id") -> str:
        """The id in the path; a malformed one is refused before anything is looked up."""
        value = self.path[name]
        if not re.fullmatch(rf"{prefix}_[A-Za-z0-9]{{14}}", value):
            raise Refusal(f"{value} is not a valid id")
        return value

    def change(
        self, work: Callable[[World], Record], view: Callable[[Record], Entity] = lambda r: r.entity
    ) -> Entity:
        """Changes the world, sends what follows from it, answers the entity as it was right then."""
        shown, _ = self.till.ring_up(lambda world: dict(view(work(world))))
        return shown

    def page(
        self, kind: str, *, also: str = "", keep: Callable[[Entity], bool] = lambda _: True
    ) -> list[Record]:
        """One page of a list, newest first."""
        checks.only(self.query, f"{_LIST} {also}")
        count = checks.whole(self.query | {"count": self.query.get("count", "10")}, "count", least=1)
        if count > 100:
            raise Refusal("The count may not be greater than 100.", field="count")
        skip = checks.whole(self.query, "skip", least=0) if "skip" in self.query else 0
        since = checks.whole(self.query, "from") if "from" in self.query else 0
        until = checks.whole(self.query, "to") if "to" in self.query else 2**53
        # Lists lag behind at Razorpay while a fetch by id does not.
        visible = self.till.world.now() - self.till.faults.list_lag_seconds
        found = [
            record
            for record in reversed(self.till.world.all(kind))
            if since <= record.entity["created_at"] <= min(until, visible) and keep(record.entity)
        ]
        return found[skip : skip + count]


Operation = Callable[[Call], Entity]


def _entities(records: list[Record]) -> Entity:
    return entities.collection([record.entity for record in records])


def create_plan(call: Call) -> Entity:
    return call.change(lambda world: catalogue.create_plan(world, call.body))


def fetch_plan(call: Call) -> Entity:
    return call.till.world.get("plan", call.entity_id("plan")).entity


def list_plans(call: Call) -> Entity:
    return _entities(call.page("plan"))


def create_customer(call: Call) -> Entity:
    return call.change(lambda world: catalogue.create_customer(world, call.body))


def fetch_customer(call: Call) -> Entity:
    return call.till.world.get("customer", call.entity_id("cust")).entity


def edit_customer(call: Call) -> Entity:
    customer_id = call.entity_id("cust")
    return call.change(lambda world: catalogue.edit_customer(world, customer_id, call.body))


def list_customers(call: Call) -> Entity:
    return _entities(call.page("customer"))


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
    return call.change(lambda world: subscriptions.pause(world, subscription_id), _subscription(call))


def resume_subscription(call: Call) -> Entity:
    subscription_id = call.entity_id("sub")
    checks.only(call.body, "resume_at")
    return call.change(lambda world: subscriptions.resume(world, subscription_id), _subscription(call))


def fetch_scheduled_changes(call: Call) -> Entity:
    return _subscription(call)(changes.scheduled(call.till.world, call.entity_id("sub")))


def cancel_scheduled_changes(call: Call) -> Entity:
    subscription_id = call.entity_id("sub")
    return call.change(lambda world: changes.forget_scheduled(world, subscription_id), _subscription(call))


def create_order(call: Call) -> Entity:
    return call.change(lambda world: payments.create_order(world, call.body))


def fetch_order(call: Call) -> Entity:
    return call.till.world.get("order", call.entity_id("order")).entity


def list_orders(call: Call) -> Entity:
    receipt = call.query.get("receipt")
    return _entities(
        call.page(
            "order", also="receipt authorized", keep=lambda entity: receipt in (None, entity["receipt"])
        )
    )


def list_order_payments(call: Call) -> Entity:
    order = call.till.world.get("order", call.entity_id("order"))
    every = reversed(call.till.world.all("payment"))
    return _entities([payment for payment in every if payment.entity["order_id"] == order.entity["id"]])


def fetch_payment(call: Call) -> Entity:
    return call.till.world.get("payment", call.entity_id("pay")).entity


def list_payments(call: Call) -> Entity:
    return _entities(call.page("payment"))


def capture_payment(call: Call) -> Entity:
    payment_id = call.entity_id("pay")
    checks.only(call.body, "amount currency")
    return call.change(lambda world: payments.capture(world, payment_id, call.body))


def refund_payment(call: Call) -> Entity:
    return _refund(call, call.entity_id("pay"), call.body)


def create_refund(call: Call) -> Entity:
    return _refund(call, str(checks.required(call.body, "payment_id")), call.body)


def _refund(call: Call, payment_id: str, body: Entity) -> Entity:
    key = call.headers.get("x-refund-idempotency")

    def work(world: World) -> tuple[Entity, bool]:
        refund, new = refunds.create_refund(world, payment_id, body, key=key)
        return dict(refund.entity), new

    (shown, new), _ = call.till.ring_up(work)
    if new and not call.till.faults.hold_refunds:
        call.till.ring_up(lambda world: refunds.process_refund(world, shown["id"]))
    return shown


def fetch_refund(call: Call) -> Entity:
    return call.till.world.get("refund", call.entity_id("rfnd")).entity


def fetch_refund_of_payment(call: Call) -> Entity:
    refund = call.till.world.get("refund", call.entity_id("rfnd", "refund_id")).entity
    if refund["payment_id"] != call.entity_id("pay"):
        raise Refusal("The id provided does not exist")
    return refund


def list_refunds(call: Call) -> Entity:
    return _entities(call.page("refund"))


def list_payment_refunds(call: Call) -> Entity:
    payment_id = call.entity_id("pay")
    return _entities(call.page("refund", keep=lambda entity: entity["payment_id"] == payment_id))


def fetch_invoice(call: Call) -> Entity:
    return call.till.world.get("invoice", call.entity_id("inv")).entity


def list_invoices(call: Call) -> Entity:
    wanted = {name: call.query[name] for name in ("subscription_id", "payment_id") if name in call.query}
    return _entities(
        call.page(
            "invoice",
            also="subscription_id payment_id type",
            keep=lambda entity: all(entity[name] == value for name, value in wanted.items()),
        )
    )


def fetch_dispute(call: Call) -> Entity:
    return call.till.world.get("dispute", call.entity_id("disp")).entity


def list_disputes(call: Call) -> Entity:
    return _entities(call.page("dispute"))


def nothing_here(call: Call) -> Entity:
    raise unknown_url()


OPERATIONS: list[tuple[str, str, Operation]] = [
    ("POST", "/plans", create_plan),
    ("GET", "/plans", list_plans),
    ("GET", "/plans/{id}", fetch_plan),
    ("POST", "/customers", create_customer),
    ("GET", "/customers", list_customers),
    ("GET", "/customers/{id}", fetch_customer),
    ("PUT", "/customers/{id}", edit_customer),
    ("POST", "/subscriptions", create_subscription),
    ("GET", "/subscriptions", list_subscriptions),
    ("GET", "/subscriptions/{id}", fetch_subscription),
    ("PATCH", "/subscriptions/{id}", update_subscription),
    ("POST", "/subscriptions/{id}/cancel", cancel_subscription),
    ("POST", "/subscriptions/{id}/pause", pause_subscription),
    ("POST", "/subscriptions/{id}/resume", resume_subscription),
    ("GET", "/subscriptions/{id}/retrieve_scheduled_changes", fetch_scheduled_changes),
    ("POST", "/subscriptions/{id}/cancel_scheduled_changes", cancel_scheduled_changes),
    ("POST", "/orders", create_order),
    ("GET", "/orders", list_orders),
    ("GET", "/orders/{id}", fetch_order),
    ("GET", "/orders/{id}/payments", list_order_payments),
    ("GET", "/payments", list_payments),
    ("GET", "/payments/{id}", fetch_payment),
    ("POST", "/payments/{id}/capture", capture_payment),
    ("POST", "/payments/{id}/refund", refund_payment),
    ("GET", "/payments/{id}/refunds", list_payment_refunds),
    ("GET", "/payments/{id}/refunds/{refund_id}", fetch_refund_of_payment),
    ("POST", "/refunds", create_refund),
    ("GET", "/refunds", list_refunds),
    ("GET", "/refunds/{id}", fetch_refund),
    ("GET", "/invoices", list_invoices),
    ("GET", "/invoices/{id}", fetch_invoice),
    ("GET", "/disputes", list_disputes),
    ("GET", "/disputes/{id}", fetch_dispute),
]


def routes(till: Till) -> list[Route]:
    """Every operation, and Razorpay's answer for all other paths."""
    known = [
        Route(f"/v1{path}", _endpoint(till, operation), methods=[method])
        for method, path, operation in OPERATIONS
    ]
    every_method = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return [*known, Route("/v1/{rest:path}", _endpoint(till, nothing_here), methods=every_method)]


def authorized(till: Till, request: Request) -> bool:
    """Basic auth with our key pair, the word spelled exactly so."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return False
    settings = till.settings
    expected = f"{settings.razorpay_key_id}:{settings.razorpay_key_secret.get_secret_value()}"
    return scheme == "Basic" and hmac.compare_digest(given, expected.encode())


def _endpoint(till: Till, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not authorized(till, request):
            return _refused(WrongKey())
        fault = till.faults.take(request.method, request.url.path)
        if fault is None:
            return _answer(operation, await _call(till, request))
        match fault.kind:
            case "status":
                return _status(fault.status)
            case "delay":
                await asyncio.sleep(fault.seconds)
                return _answer(operation, await _call(till, request))
        # The work is done and kept, its answer never arrives.
        answer = _answer(operation, await _call(till, request))
        await request.scope["sandbox.hang_up"]()
        return answer

    return endpoint


async def _call(till: Till, request: Request) -> Call | Refusal:
    body: Any = {}
    if raw := await request.body():
        try:
            body = json.loads(raw)
        except ValueError:
            return Refusal("The request body is not valid JSON")
        if not isinstance(body, dict):
            return Refusal("The request body must be an object")
    return Call(
        till=till,
        path=dict(request.path_params),
        query=dict(request.query_params),
        body=body,
        headers=dict(request.headers),
        checkout_url=f"{str(request.base_url).rstrip('/')}/checkout",
    )


def _answer(operation: Operation, call: Call | Refusal) -> Response:
    try:
        if isinstance(call, Refusal):
            raise call
        return JSONResponse(operation(call))
    except Refusal as refusal:
        return _refused(refusal)


def _refused(refusal: Refusal) -> Response:
    return JSONResponse(refusal.envelope(), status_code=refusal.status)


def _status(status: int) -> Response:
    match status:
        case 429:
            return _refused(TooManyRequests())
        case 502:
            return HTMLResponse(BAD_GATEWAY, status_code=502)
    return _refused(ServerError())
