"""The page where a person completes a checkout by clicking: pay, fail, close. It works without JavaScript."""

import html
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sandbox import acts, control
from sandbox.entities import Entity
from sandbox.errors import Refusal, unknown_url
from sandbox.state.world import Record
from sandbox.till import Till

# What Razorpay takes from a card to see that it lives, and gives back at once.
TOKEN_PAISE = 500
CLICKS = ("pay", "fail", "authenticate")
LABELS = {"pay": "Pay", "authenticate": "Authorise", "fail": "Fail"}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Sandbox checkout</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a2233; background: #eef1f6; margin: 0 }}
main {{ max-width: 26rem; margin: 4rem auto; background: #fff; border-radius: 12px; overflow: hidden;
  box-shadow: 0 8px 30px #1a223322 }}
header {{ background: #1b3a6b; color: #fff; padding: 1.25rem 1.5rem }} h1 {{ font-size: 1.1rem; margin: 0 }}
header p {{ font-size: 1.8rem; margin: .25rem 0 0 }} section {{ padding: 1rem 1.5rem 1.5rem }}
dl {{ display: grid; grid-template-columns: 5rem 1fr; margin: 0 0 1rem; overflow-wrap: anywhere }}
dt {{ color: #66708a }} dd {{ margin: 0 }} form {{ margin: .4rem 0 }} small {{ color: #66708a }}
button {{ font: inherit; width: 100%; padding: .6rem; border: 1px solid #c9d1e0; border-radius: 8px;
  background: #fff; cursor: pointer }} button:hover, button:focus {{ border-color: #1b3a6b }}
.main button {{ background: #1b3a6b; color: #fff; border-color: #1b3a6b }}
.say {{ background: #f3f6fb; border-radius: 8px; padding: .75rem 1rem; overflow-wrap: anywhere }}
pre {{ white-space: pre-wrap; margin: .5rem 0 0; font-size: .8rem }}
</style></head>
<body><main>
<header><h1>{title}</h1><p>{amount}</p></header>
<section>
<dl><dt>Id</dt><dd>{id}</dd><dt>Status</dt><dd id="status">{status}</dd>{starts}</dl>
{said}{buttons}
<small>No money moves here: this is a sandbox.</small>
</section></main></body></html>
"""


@dataclass(frozen=True, slots=True)
class Said:
    """What the last click led to."""

    words: str = ""
    # What Checkout hands to the merchant's page, and where that page is.
    checkout: Entity | None = None
    callback_url: str = ""


def routes(till: Till) -> list[Route]:
    """The page of a subscription or an order."""
    return [
        Route("/checkout/{id}", _page(till), methods=["GET"]),
        Route("/checkout/{id}/{act}", _click(till), methods=["POST"]),
    ]


def _page(till: Till) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return HTMLResponse(render(till, request.path_params["id"], callback_url=_callback(request)))
        except Refusal as refusal:
            return HTMLResponse(html.escape(refusal.description), status_code=404)

    return endpoint


def _callback(request: Request) -> str:
    """Where Checkout sends the customer back to; a browser must not run what is no address."""
    url = request.query_params.get("callback_url", "")
    if url and not url.startswith(("http://", "https://")):
        raise Refusal("callback_url must start with http:// or https://", field="callback_url")
    return url


def _click(till: Till) -> Callable[[Request], Awaitable[Response]]:
    """What a button does. A customer has no keys: the id on the page is all it takes, wherever it is opened."""

    async def endpoint(request: Request) -> Response:
        entity_id, act = request.path_params["id"], request.path_params["act"]
        method = request.query_params.get("method", "card")
        by_hand = "text/html" in request.headers.get("accept", "")
        try:
            callback_url = _callback(request)
            if act == "close" and by_hand:
                return HTMLResponse(
                    render(till, entity_id, Said("Closed: nothing was changed."), callback_url)
                )
            shown = click(till, entity_id, act, method)
            if not by_hand:
                return JSONResponse(shown)
            return HTMLResponse(render(till, entity_id, _outcome(shown, act, callback_url), callback_url))
        except Refusal as refusal:
            if by_hand and till.world.find(_kind(entity_id), entity_id):
                said = Said(refusal.description)
                return HTMLResponse(render(till, entity_id, said), status_code=refusal.status)
            return JSONResponse(refusal.envelope(), status_code=refusal.status)

    return endpoint


def _outcome(shown: Entity, act: str, callback_url: str) -> Said:
    if act == "fail":
        return Said("The payment failed; nothing was taken.")
    words = "Paid." if act == "pay" else "Authorised."
    return Said(words, shown.get("checkout"), callback_url)


def _kind(entity_id: str) -> str:
    return "order" if entity_id.startswith("order_") else "subscription"


def click(till: Till, entity_id: str, act: str, method: str) -> Entity:
    """The new status and, after a payment, what Checkout hands to the merchant's page."""
    kind = _kind(entity_id)
    work = acts.ACTS.get(f"{kind}s/{{id}}/{act}")
    if act not in CLICKS or work is None:
        raise unknown_url()
    body = {"method": method, "token_paise": TOKEN_PAISE}
    record: Record
    record, _ = till.ring_up(lambda world: work(world, entity_id, body), subject=entity_id)
    shown: Entity = {"status": till.world.get(kind, entity_id).entity["status"]}
    if act != "fail":
        # Of a mandate for later it is the token's payment.
        payment_id = record.entity["id"] if act == "pay" else record.inner["last_payment_id"]
        shown["checkout"] = control.checkout(till, {"payment_id": payment_id, f"{kind}_id": entity_id})
    return shown


def render(till: Till, entity_id: str, said: Said | None = None, callback_url: str = "") -> str:
    """The page as HTML; whatever a merchant wrote into names is escaped."""
    entity = till.world.get(_kind(entity_id), entity_id).entity
    if _kind(entity_id) == "order":
        title, amount = entity["receipt"] or "Order", entity["amount"]
        offered = [] if entity["status"] == "paid" else ["pay card", "pay upi", "fail upi"]
    else:
        item = till.world.get("plan", entity["plan_id"]).entity["item"]
        title, amount = item["name"], item["amount"] * entity["quantity"]
        offered = _offered(entity)
    query = {"callback_url": callback_url} if callback_url else {}
    return _PAGE.format(
        id=html.escape(entity["id"]),
        title=html.escape(str(title)),
        amount=html.escape(_rupees(amount, entity)),
        status=html.escape(entity["status"]),
        starts=_starts(till, entity),
        said=_words(said) if said else "",
        buttons="\n".join(_button(entity_id, *each.split(" "), **query) for each in [*offered, "close none"]),
    )


def _offered(subscription: Entity) -> list[str]:
    # A trial, and a mandate that takes over later, is authorised now and charged then.
    later = subscription["status"] == "created" and subscription["start_at"]
    first = "authenticate" if later else "pay"
    waiting = subscription["status"] in ("created", "pending", "halted")
    return [f"{first} card", f"{first} upi", "fail card"] if waiting else []


def _starts(till: Till, entity: Entity) -> str:
    start_at = entity.get("start_at")
    if not start_at or entity["status"] != "created":
        return ""
    days = max(0, -((till.world.now() - start_at) // 86_400))
    return f"<dt>Starts</dt><dd>in {days} day{'' if days == 1 else 's'}; until then nothing is charged</dd>"


def _rupees(paise: int, entity: Entity) -> str:
    whole, currency = str(paise // 100), entity.get("currency", "INR")
    # Indians group by lakh and crore: ₹1,23,456.78.
    grouped = re.sub(r"(?<=\d)(?=(\d\d)*\d{3}$)", ",", whole) if currency == "INR" else f"{paise // 100:,}"
    return f"{'₹' if currency == 'INR' else f'{currency} '}{grouped}.{paise % 100:02d}"


def _button(entity_id: str, act: str, method: str, **query: str) -> str:
    where = f"/checkout/{entity_id}/{act}?{urlencode({'method': method, **query})}"
    label = f"{LABELS[act]} with {method.upper()}" if act in LABELS else act.capitalize()
    main = ' class="main"' if act in ("pay", "authenticate") else ""
    return (
        f'<form method="post" action="{html.escape(where)}"{main}>'
        f'<button data-act="{act}" data-method="{method}">{label}</button></form>'
    )


def _words(said: Said) -> str:
    fields = said.checkout or {}
    handed = "\n".join(f"{name}={value}" for name, value in fields.items())
    back = ""
    if said.callback_url and fields:
        hidden = "".join(
            f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
            for name, value in fields.items()
        )
        back = (
            f'<form method="post" action="{html.escape(said.callback_url)}" class="main">'
            f"{hidden}<button>Return to the merchant</button></form>"
        )
    result = f'<pre id="result">{html.escape(handed)}</pre>' if handed else ""
    return f'<div class="say" role="status">{html.escape(said.words)}{result}</div>\n{back}'
