"""Whatever is sent, the answer is one of Razorpay's: never a trace."""

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.app import create_app
from sandbox.config import SandboxSettings
from sandbox.rest.doors import OPERATIONS
from sandbox.till import Till
from tests.sandbox.running import KEY_ID, KEY_SECRET, WEBHOOK_SECRET

FIELDS = tuple(
    """
    plan_id total_count quantity start_at expire_by notes addons offer_id amount currency receipt period interval
    item name email contact unique_receipt payment url events secret speed action summary schedule_change_at
    remaining_count cancel_at_cycle_end pause_at resume_at payment_id gstin fail_existing customer_id payment_capture
    """.split()  # noqa: SIM905 - a list of so many strings would fill the page
)
ITEM = {"name": "Pro", "amount": 5_000, "currency": "INR"}
# Requests that are right, so that what is wrong is one field deep inside.
RIGHT: dict[str, dict[str, Any]] = {
    "/plans": {"period": "monthly", "interval": 1, "item": ITEM},
    "/subscriptions": {"plan_id": "plan", "total_count": 3},
    "/subscriptions/{id}/addons": {"item": ITEM},
    "/orders": {"amount": 500, "currency": "INR", "receipt": "r"},
    "/payments/{id}/capture": {"amount": 500, "currency": "INR"},
    "/refunds": {"payment_id": "pay"},
    "/customers": {"name": "Asha Iyer", "email": "a@example.com"},
    "/disputes/{id}/contest": {"billing_proof": ["doc_1"], "action": "submit"},
    "/webhooks": {"url": "http://127.0.0.1:9/"},
}
CONTROL = {
    "tick": ("seed", "shuffle", "duplicates", "deliver", "bodies"),
    "clock": ("days", "hours", "to"),
    "habits": ("fail_share", "seed", "refund_window_days"),
    "faults": ("kind", "times", "status", "seconds", "path", "method", "skip", "work_done", "exact", "field"),
    "events": ("event", "payload", "contains", "beside"),
    "webhook_endpoint": ("url", "secret", "events"),
    "checkout_signature": ("payment_id", "order_id", "subscription_id"),
    "drain": ("hurry",),
    "subscriptions/{sub}/pay": ("method", "international", "anonymous"),
    "subscriptions/{sub}/authenticate": ("method", "token_paise"),
    "subscriptions/{sub}/outcomes": ("outcomes",),
    "orders/{order}/pay": ("method", "description", "payment_id"),
    "payments/{pay}/refund": ("amount", "notes", "receipt", "speed"),
    "payments/{pay}/dispute": ("amount", "phase", "reason_code"),
}
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        [0, 1, 100, 10**12, 10**30, -1, 1.5, "1", "", "now", "INR", "card", "monthly", "pay_x", "drop"]
    )
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=5,
)


def some(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(list(names)), values, max_size=3)


class Place:
    """A sandbox in this process with one of everything."""

    def __init__(self) -> None:
        self.till = Till(
            SandboxSettings.model_validate(
                {
                    "razorpay_key_id": KEY_ID,
                    "razorpay_key_secret": KEY_SECRET,
                    "razorpay_webhook_secret": WEBHOOK_SECRET,
                }
            )
        )
        self.ids: dict[str, str] = {}

    async def fill(self, http: httpx.AsyncClient) -> None:
        plan = await http.post("/v1/plans", json={"period": "monthly", "interval": 1, "item": ITEM})
        made = await http.post("/v1/subscriptions", json={"plan_id": plan.json()["id"], "total_count": 9})
        order = await http.post("/v1/orders", json={"amount": 500, "currency": "INR"})
        self.ids = {"plan": plan.json()["id"], "sub": made.json()["id"], "order": order.json()["id"]}
        paid = await http.post(f"/_sandbox/subscriptions/{self.ids['sub']}/pay", json={"international": True})
        assert paid.status_code == 200
        payment = (await http.get("/v1/payments")).json()["items"][0]
        dispute = await http.post(f"/_sandbox/payments/{payment['id']}/dispute")
        assert dispute.status_code == 200
        self.ids |= {
            "pay": payment["id"],
            "inv": payment["invoice_id"],
            "disp": (await http.get("/v1/disputes")).json()["items"][0]["id"],
            "rfnd": (
                await http.post("/v1/refunds", json={"payment_id": payment["id"], "amount": 100})
            ).json()["id"],
            "cust": (await http.get("/v1/customers")).json()["items"][0]["id"],
        }

    def rest_path(self, path: str) -> str:
        kinds = {
            "plans": "plan", "customers": "cust", "subscriptions": "sub", "orders": "order", "payments": "pay",
            "refunds": "rfnd", "invoices": "inv", "disputes": "disp", "webhooks": "plan",
        }  # fmt: skip
        mine = self.ids[kinds[path.split("/")[1]]]
        return "/v1" + path.format(id=mine, refund_id=self.ids["rfnd"], offer_id="offer_00000000000000")


async def ask(calls: list[tuple[str, str, dict[str, Any]]]) -> list[int]:
    """The statuses of the answers; whatever went wrong has Razorpay's envelope."""
    statuses = []
    place = Place()
    elsewhere = httpx.ASGITransport(create_app(place.till), client=("127.0.0.1", 4_242))
    async with httpx.AsyncClient(
        transport=elsewhere, base_url="http://sandbox", auth=(KEY_ID, KEY_SECRET)
    ) as http:
        await place.fill(http)
        for method, path, body in calls:
            if method == "CONTROL":
                where = "/_sandbox/" + path.format(**place.ids)
                answer = await http.post(where, json=body | ({"timeout": 0} if path == "drain" else {}))
            elif method == "GET":
                answer = await http.get(place.rest_path(path), params={k: str(v) for k, v in body.items()})
            else:
                right = RIGHT.get(path, {}) if method != "PATCH" or "contest" in path else {}
                whole = {name: place.ids.get(str(value), value) for name, value in (right | body).items()}
                answer = await http.request(method, place.rest_path(path), json=whole)
            statuses.append(answer.status_code)
            if answer.status_code == 400:
                assert answer.json()["error"]["description"]
    await place.till.sender.stop()
    return statuses


ABSURD: list[tuple[str, str, dict[str, Any]]] = [
    *[
        ("POST", "/subscriptions", {name: value})
        for name in ("start_at", "expire_by", "quantity", "total_count")
        for value in (10**12, 10**30, "9" * 40, 1.5, True)
    ],
    ("POST", "/subscriptions", {"offer_id": {"a": 1}}),
    ("POST", "/subscriptions", {"addons": [1]}),
    ("POST", "/subscriptions", {"addons": [{"item": {"name": 5, "amount": True}}]}),
    ("POST", "/plans", {"period": ["monthly"]}),
    ("POST", "/plans", {"interval": 10**9}),
    ("POST", "/plans", {"item": {**ITEM, "name": {"a": 1}}}),
    ("POST", "/plans", {"item": {**ITEM, "description": [1]}}),
    ("POST", "/orders", {"receipt": {"a": 1}}),
    ("POST", "/orders", {"amount": 10**40}),
    ("POST", "/customers", {"name": 5}),
    ("POST", "/customers", {"contact": [1]}),
    ("POST", "/refunds", {"speed": [1]}),
    ("POST", "/refunds", {"receipt": {"a": 2}}),
    ("PATCH", "/disputes/{id}/contest", {"action": ["submit"]}),
    ("PATCH", "/subscriptions/{id}", {"quantity": 10**30}),
    ("PATCH", "/subscriptions/{id}", {"remaining_count": 10**9}),
    ("PATCH", "/subscriptions/{id}", {"schedule_change_at": ["now"]}),
    ("POST", "/webhooks", {"events": 5}),
    ("POST", "/webhooks", {"events": ["a", {}]}),
    ("GET", "/payments", {"count": "abc"}),
    ("GET", "/payments", {"to": "9" * 24}),
    ("CONTROL", "clock", {"days": 10**30}),
    ("CONTROL", "clock", {"days": 10**6}),
    ("CONTROL", "clock", {"to": 5}),
    ("CONTROL", "habits", {"refund_window_days": 10**30}),
    ("CONTROL", "subscriptions/{sub}/outcomes", {"outcomes": 5}),
    ("CONTROL", "subscriptions/{sub}/outcomes", {"outcomes": [{}]}),
    ("CONTROL", "payments/{pay}/dispute", {"amount": 1.5}),
    ("CONTROL", "payments/{pay}/dispute", {"phase": ["x"]}),
    ("CONTROL", "events", {"event": "x", "payload": {"a": {}}, "beside": {"a": 5}}),
    ("CONTROL", "webhook_endpoint", {"url": "http://x", "secret": 5}),
    ("CONTROL", "webhook_endpoint", {"url": "http://x", "events": [5]}),
    ("CONTROL", "faults", {"kind": "drop", "path": 5}),
]


@pytest.mark.parametrize("call", ABSURD, ids=lambda call: f"{call[1]} {next(iter(call[2]))}")
async def test_what_is_absurd_is_refused(call: tuple[str, str, dict[str, Any]]) -> None:
    assert await ask([call, ("GET", "/subscriptions", {}), ("CONTROL", "tick", {})]) == [400, 200, 200]


calls = st.one_of(
    *[
        st.tuples(st.just(method), st.just(path), some(FIELDS))
        for method, path, _ in OPERATIONS
        if method != "GET"
    ],
    *[
        st.tuples(st.just(method), st.just(path), some(("from", "to", "count", "skip", "plan_id", "receipt")))
        for method, path, _ in OPERATIONS
        if method == "GET"
    ],
    *[st.tuples(st.just("CONTROL"), st.just(path), some(names)) for path, names in CONTROL.items()],
)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(calls, min_size=1, max_size=8))
def test_garbage_is_refused_and_breaks_nothing(calls: list[tuple[str, str, dict[str, Any]]]) -> None:
    # Faults were asked for: only then does the answer look like one.
    allowed = {200, 400} | (
        {429, 500, 502, 503, 504} if any(path == "faults" for _, path, _ in calls) else set()
    )

    assert set(asyncio.run(ask(calls))) <= allowed
