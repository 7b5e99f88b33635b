"""The page where a person completes a checkout by clicking: pay, fail, close."""

import html
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from sandbox.entities import Entity
from sandbox.errors import Refusal
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
<body data-kind="{kind}" data-id="{id}">
<h1>Sandbox checkout</h1>
<dl><dt>For</dt><dd>{title}</dd><dt>Amount</dt><dd>{amount}</dd><dt>Id</dt><dd>{id}</dd>
<dt>Status</dt><dd id="status">{status}</dd></dl>
<p>{buttons}</p>
<pre id="result">No money moves here: this is a sandbox.</pre>
<script>
const {{kind, id}} = document.body.dataset;
const show = value => document.getElementById("result").textContent =
  typeof value === "string" ? value : JSON.stringify(value, null, 2);
const post = async (path, body) => {{
  const answer = await fetch("/_sandbox/" + path, {{method: "POST", body: JSON.stringify(body)}});
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error.description);
  return value;
}};
const paymentOf = deliveries => deliveries
  .map(each => JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(each.body_base64), c => c.charCodeAt(0)))))
  .map(event => event.payload.payment).find(Boolean)?.entity.id;
document.querySelectorAll("button").forEach(button => button.onclick = async () => {{
  if (button.dataset.act === "close") return show("Closed: nothing was changed.");
  try {{
    const deliveries = await post(`${{kind}}/${{id}}/${{button.dataset.act}}`, {{method: button.dataset.method}});
    document.getElementById("status").textContent = deliveries.map(each => each.event).join(", ");
    const payment_id = paymentOf(deliveries);
    if (button.dataset.act !== "pay" || !payment_id) return show("Done.");
    const named = kind === "orders" ? {{order_id: id}} : {{subscription_id: id}};
    show(await post("checkout_signature", {{payment_id, ...named}}));
  }} catch (error) {{ show(String(error.message)); }}
}});
</script></body></html>
"""


def routes(till: Till) -> list[Route]:
    """The page of a subscription or an order."""
    return [Route("/checkout/{id}", _page(till), methods=["GET"])]


def _page(till: Till) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return HTMLResponse(render(till, request.path_params["id"]))
        except Refusal as refusal:
            return HTMLResponse(html.escape(refusal.description), status_code=404)

    return endpoint


def render(till: Till, entity_id: str) -> str:
    """The page as HTML; whatever a merchant wrote into names is escaped."""
    if entity_id.startswith("order_"):
        entity = till.world.get("order", entity_id).entity
        kind, title, amount = "orders", entity["receipt"] or "Order", entity["amount"]
        acts = [] if entity["status"] == "paid" else [("pay", "card"), ("pay", "upi"), ("fail", "upi")]
    else:
        entity = till.world.get("subscription", entity_id).entity
        item = till.world.get("plan", entity["plan_id"]).entity["item"]
        kind, title, amount = "subscriptions", item["name"], item["amount"] * entity["quantity"]
        # A trial sets up the mandate and charges nothing yet.
        trial = entity["status"] == "created" and entity["start_at"]
        first = "authenticate" if trial else "pay"
        waiting = entity["status"] in ("created", "pending", "halted")
        acts = [(first, "card"), (first, "upi"), ("fail", "card")] if waiting else []
    return _PAGE.format(
        kind=kind,
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
