"""Which path is which operation, who may ask, and what goes wrong on demand."""

import asyncio
import base64
import binascii
import hmac
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sandbox import ids
from sandbox.entities import Entity
from sandbox.errors import Conflict, Refusal, ServerError, TooManyRequests, WrongKey, unknown_url
from sandbox.faults import Fault
from sandbox.rest import catalogue, disputes, money, refunds, subscriptions, webhooks
from sandbox.rest.call import Call, Operation
from sandbox.till import Till

# What a proxy in front of Razorpay says: no JSON.
HTML = (
    "<html>\r\n<head><title>{0}</title></head>\r\n"
    "<body>\r\n<center><h1>{0}</h1></center>\r\n</body>\r\n</html>\r\n"
)
PROXY_WORDS = {
    502: "502 Bad Gateway",
    503: "503 Service Temporarily Unavailable",
    504: "504 Gateway Time-out",
}
REFUND_KEY = "x-refund-idempotency"


def nothing_here(call: Call) -> Entity:
    raise unknown_url()


OPERATIONS: list[tuple[str, str, Operation]] = [
    ("POST", "/plans", catalogue.create_plan),
    ("GET", "/plans", catalogue.list_plans),
    ("GET", "/plans/{id}", catalogue.fetch_plan),
    ("POST", "/customers", catalogue.create_customer),
    ("GET", "/customers", catalogue.list_customers),
    ("GET", "/customers/{id}", catalogue.fetch_customer),
    ("PUT", "/customers/{id}", catalogue.edit_customer),
    ("POST", "/subscriptions", subscriptions.create_subscription),
    ("GET", "/subscriptions", subscriptions.list_subscriptions),
    ("GET", "/subscriptions/{id}", subscriptions.fetch_subscription),
    ("PATCH", "/subscriptions/{id}", subscriptions.update_subscription),
    ("POST", "/subscriptions/{id}/cancel", subscriptions.cancel_subscription),
    ("POST", "/subscriptions/{id}/pause", subscriptions.pause_subscription),
    ("POST", "/subscriptions/{id}/resume", subscriptions.resume_subscription),
    ("POST", "/subscriptions/{id}/addons", subscriptions.create_addon),
    ("DELETE", "/subscriptions/{id}/{offer_id}", subscriptions.delete_offer),
    ("GET", "/subscriptions/{id}/retrieve_scheduled_changes", subscriptions.fetch_scheduled_changes),
    ("POST", "/subscriptions/{id}/cancel_scheduled_changes", subscriptions.cancel_scheduled_changes),
    ("POST", "/orders", money.create_order),
    ("GET", "/orders", money.list_orders),
    ("GET", "/orders/{id}", money.fetch_order),
    ("PATCH", "/orders/{id}", money.edit_order),
    ("GET", "/orders/{id}/payments", money.list_order_payments),
    ("GET", "/payments", money.list_payments),
    ("GET", "/payments/{id}", money.fetch_payment),
    ("PATCH", "/payments/{id}", money.edit_payment),
    ("POST", "/payments/{id}/capture", money.capture_payment),
    ("GET", "/payments/{id}/card", money.fetch_card),
    ("POST", "/payments/{id}/refund", refunds.refund_payment),
    ("GET", "/payments/{id}/refunds", refunds.list_payment_refunds),
    ("GET", "/payments/{id}/refunds/{refund_id}", refunds.fetch_refund_of_payment),
    ("POST", "/refunds", refunds.create_refund),
    ("GET", "/refunds", refunds.list_refunds),
    ("GET", "/refunds/{id}", refunds.fetch_refund),
    ("PATCH", "/refunds/{id}", refunds.edit_refund),
    ("GET", "/invoices", money.list_invoices),
    ("GET", "/invoices/{id}", money.fetch_invoice),
    ("GET", "/disputes", disputes.list_disputes),
    ("GET", "/disputes/{id}", disputes.fetch_dispute),
    ("POST", "/disputes/{id}/accept", disputes.accept_dispute),
    ("PATCH", "/disputes/{id}/contest", disputes.contest_dispute),
    ("POST", "/webhooks", webhooks.create_webhook),
    ("GET", "/webhooks", webhooks.list_webhooks),
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
            response = _refused(WrongKey())
        else:
            with _key_in_progress(till, request) as free:
                conflict = Conflict("Request failed because another refund with this key is in progress")
                response = await _serve(till, operation, request) if free else _refused(conflict)
        response.headers["request-id"] = ids.token(14)
        return response

    return endpoint


@contextmanager
def _key_in_progress(till: Till, request: Request) -> Iterator[bool]:
    """Whether nobody else waits for the answer to this idempotency key."""
    key = request.headers.get(REFUND_KEY) if request.method == "POST" else None
    if key is None:
        yield True
    elif key in till.keys_in_progress:
        yield False
    else:
        till.keys_in_progress.add(key)
        try:
            yield True
        finally:
            till.keys_in_progress.discard(key)


async def _serve(till: Till, operation: Operation, request: Request) -> Response:
    call = await _call(till, request)
    fault = till.faults.take(request.method, request.url.path)
    if fault is None:
        return _answer(operation, call)
    if fault.kind == "delay":
        # Late, but done at once or only then: both happen at Razorpay.
        response = _answer(operation, call) if fault.work_done else None
        await asyncio.sleep(fault.seconds)
        return response or _answer(operation, call)
    if fault.work_done:
        _answer(operation, call)
    if fault.kind == "drop":
        await request.scope["sandbox.hang_up"]()
    return _trouble(fault)


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


def _trouble(fault: Fault) -> Response:
    if fault.kind == "refuse":
        refusal = Refusal(fault.description, field=fault.field)
        refusal.code = fault.code
        return _refused(refusal)
    if fault.status == 429:
        return _refused(TooManyRequests())
    if fault.status in PROXY_WORDS:
        return HTMLResponse(HTML.format(PROXY_WORDS[fault.status]), status_code=fault.status)
    return _refused(ServerError())
