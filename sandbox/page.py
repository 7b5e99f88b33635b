"""The page where a person completes a checkout by clicking: pay, fail, close."""

import html
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sandbox import control
from sandbox.entities import Entity
from sandbox.errors import Refusal, unknown_url
from sandbox.till import Till

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Sandbox checkout</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 3rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.3rem }} dt {{ color: #667; float: left; width: 8rem }} dd {{ margin-left: 8rem }}
button {{ font: inherit; padding: .5rem 1rem; margin: .25rem .25rem .25rem 0; cursor: pointer }}
pre {{ background: #f3f4f6; padding: 1rem; overflow: auto; white-space: pre-wrap }}
</style></head>
<body>
<h1>Sandbox checkout</h1>
<dl><dt>For</dt><dd>{title}</dd><dt>Amount</dt><dd>{amount}</dd><dt>Id</dt><dd>{id}</dd>
<dt>Status</dt><dd id="status">{status}</dd></dl>
<p>{buttons}</p>
<pre id="result">No money moves here: this is a sandbox.</pre>
<script>
const show = text => document.getElementById("result").textContent = text;
document.querySelectorAll("button").forEach(button => button.onclick = async () => {{
  if (button.dataset.act === "close") return show("Closed: nothing was changed.");
  const answer = await fetch(`${{location.pathname}}/${{button.dataset.act}}?method=${{button.dataset.method}}`,
    {{method: "POST"}});
  const {{error, status, checkout}} = await answer.json();
  if (error) return show(error.description);
  document.getElementById("status").textContent = status;
  show(checkout ? JSON.stringify(checkout, null, 2) : "Done.");
}});
</script></body></html>
"""


def routes(till: Till) -> list[Route]:
    """The page of a subscription or an order."""
    return [
        Route("/checkout/{id}", _page(till), methods=["GET"]),
        Route("/checkout/{id}/{act}", _click(till), methods=["POST"]),
    ]


def _page(till: Till) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return HTMLResponse(render(till, request.path_params["id"]))
        except Refusal as refusal:
            return HTMLResponse(html.escape(refusal.description), status_code=404)

    return endpoint


def _click(till: Till) -> Callable[[Request], Awaitable[Response]]:
    """What a button does. A customer has no keys: the id on the page is all it takes, wherever it is opened."""

    async def endpoint(request: Request) -> Response:
        entity_id, act = request.path_params["id"], request.path_params["act"]
        method = request.query_params.get("method", "card")
        try:
            return JSONResponse(click(till, entity_id, act, method))
        except Refusal as refusal:
            return JSONResponse(refusal.envelope(), status_code=refusal.status)

    return endpoint


def click(till: Till, entity_id: str, act: str, method: str) -> Entity:
    """The new status and, after a payment, what Checkout hands to the merchant's page."""
    kind = "order" if entity_id.startswith("order_") else "subscription"
    if act not in ("pay", "fail", "authenticate"):
        raise unknown_url()
    work = control.ACTS.get(f"{kind}s/{{id}}/{act}")
    if work is None:
        raise unknown_url()
    payment, _ = till.ring_up(lambda world: work(world, entity_id, {"method": method}))
    shown: Entity = {"status": till.world.get(kind, entity_id).entity["status"]}
    if act == "pay":
        payment_id = payment.entity["id"]
        shown["checkout"] = control.checkout(till, {"payment_id": payment_id, f"{kind}_id": entity_id})
    return shown


def render(till: Till, entity_id: str) -> str:
    """The page as HTML; whatever a merchant wrote into names is escaped."""
    if entity_id.startswith("order_"):
        entity = till.world.get("order", entity_id).entity
        title, amount = entity["receipt"] or "Order", entity["amount"]
        acts = [] if entity["status"] == "paid" else [("pay", "card"), ("pay", "upi"), ("fail", "upi")]
    else:
        entity = till.world.get("subscription", entity_id).entity
        item = till.world.get("plan", entity["plan_id"]).entity["item"]
        title, amount = item["name"], item["amount"] * entity["quantity"]
        # A trial sets up the mandate and charges nothing yet.
        trial = entity["status"] == "created" and entity["start_at"]
        first = "authenticate" if trial else "pay"
        waiting = entity["status"] in ("created", "pending", "halted")
        acts = [(first, "card"), (first, "upi"), ("fail", "card")] if waiting else []
    return _PAGE.format(
        id=html.escape(entity["id"]),
        title=html.escape(str(title)),
        amount=html.escape(_rupees(amount, entity)),
        status=html.escape(entity["status"]),
        buttons=" ".join([_button(act, method) for act, method in acts] + [_button("close", "")]),
    )


def _rupees(paise: int, entity: Entity) -> str:
    return f"{entity.get('currency', 'INR')} {paise // 100:,}.{paise % 100:02d}"


def _button(act: str, method: str) -> str:
    label = f"{act.capitalize()} with {method.upper()}" if method else act.capitalize()
    return f'<button data-act="{act}" data-method="{method}">{label}</button>'
