"""The official SDK talks to the sandbox as it is, and is refused as Razorpay refuses."""

import contextlib
import io
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import razorpay
import requests
from razorpay.errors import BadRequestError, ServerError

from sandbox.app import create_app
from sandbox.config import SandboxSettings
from sandbox.till import Till
from tests.sandbox.conftest import Builder
from tests.sandbox.running import KEY_ID, KEY_SECRET, Sandbox


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The SDK prints its troubles."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def ask(sandbox: Sandbox, method: str, path: str, **options: Any) -> requests.Response:
    return requests.request(method, sandbox.url + path, auth=(KEY_ID, KEY_SECRET), timeout=5, **options)


def test_plans_and_customers_go_round(sdk: Any, plan: dict[str, Any]) -> None:
    person = {"name": "Asha Iyer", "email": f"asha{time.time_ns()}@example.com", "contact": "+919000000001"}

    customer = sdk.customer.create(person)
    again = sdk.customer.create(person | {"fail_existing": "0"})
    edited = sdk.customer.edit(customer["id"], {"name": "Asha R Iyer"})

    assert sdk.plan.fetch(plan["id"]) == plan
    assert plan["item"]["amount"] == 235_882
    assert plan["notes"] == []
    assert again["id"] == customer["id"]
    assert sdk.customer.fetch(customer["id"]) == edited
    assert edited["name"] == "Asha R Iyer"
    with pytest.raises(BadRequestError, match="Customer already exists"):
        sdk.customer.create(person)
    with pytest.raises(BadRequestError, match="name format is invalid"):
        sdk.customer.create(person | {"name": "भूमि टेक प्रा. लि."})


@pytest.mark.parametrize(
    ("change", "message", "field"),
    [
        ({"total_count": None}, "The total count field is required.", "total_count"),
        ({"total_count": 1_201}, "Exceeds the maximum total_count (1200)", "total_count"),
        ({"total_count": "many"}, "must be an integer", "total_count"),
        ({"quantity": 0}, "must be at least 1", "quantity"),
        ({"plan_id": "plan_00000000000000"}, "The id provided does not exist", None),
        ({"expire_by": 1_000_000_000}, "Link expire by cannot be lesser than the current time.", "expire_by"),
        ({"start_at": 1_000_000_000}, "start_at cannot be lesser", "start_at"),
        (
            {"receipt": "no"},
            "receipt is/are not required and should not be sent",
            "receipt",
        ),
        ({"notes": {str(number): "x" for number in range(16)}}, "less than or equal to 15", "notes"),
    ],
)
def test_a_bad_subscription_is_refused_in_razorpays_envelope(
    sandbox: Sandbox, plan: dict[str, Any], change: dict[str, Any], message: str, field: str | None
) -> None:
    request = {"plan_id": plan["id"], "total_count": 12} | change

    answer = ask(sandbox, "POST", "/v1/subscriptions", json=request)

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "BAD_REQUEST_ERROR"
    assert message in error["description"]
    assert error.get("field") == field
    assert (error["source"], error["step"], error["reason"], error["metadata"]) == ("NA", "NA", "NA", {})


def test_wrong_keys_get_401_with_a_description_only(sandbox: Sandbox) -> None:
    for auth in [(KEY_ID, "wrong"), ("wrong", KEY_SECRET), None]:
        answer = requests.get(sandbox.url + "/v1/plans", auth=auth, timeout=5)

        assert answer.status_code == 401
        assert answer.json() == {
            "error": {"code": "BAD_REQUEST_ERROR", "description": "Authentication failed"}
        }
    with pytest.raises(BadRequestError, match="Authentication failed"):
        razorpay.Client(auth=(KEY_ID, "wrong"), base_url=sandbox.url).plan.all()


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/settlements"), ("DELETE", "/v1/plans"), ("POST", "/v1/x/y/z")]
)
def test_an_unknown_url_is_a_400(sandbox: Sandbox, method: str, path: str) -> None:
    answer = ask(sandbox, method, path)

    assert answer.status_code == 400
    assert answer.json()["error"]["description"] == "The requested URL was not found on the server."


def test_malformed_and_unknown_ids_are_told_apart(sdk: Any) -> None:
    with pytest.raises(BadRequestError, match="sub_x is not a valid id"):
        sdk.subscription.fetch("sub_x")
    with pytest.raises(BadRequestError, match="The id provided does not exist"):
        sdk.subscription.fetch("sub_00000000000000")


def test_subscriptions_are_listed_by_plan_and_time_and_never_by_customer(a: Builder, sdk: Any) -> None:
    started = int(time.time())
    plan = sdk.plan.create(
        {
            "period": "yearly",
            "interval": 1,
            "item": {"name": "Pro Yearly", "amount": 2_358_820, "currency": "INR"},
        }
    )
    ids = [a.subscription(plan_id=plan["id"], total_count=10) for _ in range(3)]

    newest_first = sdk.subscription.all({"plan_id": plan["id"], "from": started - 60})
    page = sdk.subscription.all({"plan_id": plan["id"], "count": 1, "skip": 1})

    assert [item["id"] for item in newest_first["items"]] == ids[::-1]
    assert (newest_first["entity"], newest_first["count"]) == ("collection", 3)
    assert [item["id"] for item in page["items"]] == [ids[1]]
    assert sdk.subscription.all({"plan_id": plan["id"], "to": started - 60})["items"] == []
    with pytest.raises(BadRequestError, match="customer_id is/are not required"):
        sdk.subscription.all({"customer_id": "cust_00000000000000"})
    with pytest.raises(BadRequestError, match="greater than 100"):
        sdk.subscription.all({"count": 101})


@pytest.mark.parametrize(
    ("method", "international", "message"),
    [
        ("upi", False, "cannot be updated when payment mode is UPI"),
        ("netbanking", False, "cannot be updated when payment mode is emandate"),
        ("card", False, "Only offers can be updated for subscriptions when payment mode is domestic card"),
    ],
)
def test_what_cannot_be_edited_depends_on_the_payment_method(
    a: Builder, sdk: Any, method: str, international: bool, message: str
) -> None:
    subscription_id = a.paid_subscription(method=method, international=international)

    with pytest.raises(BadRequestError, match=message):
        sdk.subscription.edit(subscription_id, {"quantity": 2})

    assert sdk.subscription.fetch(subscription_id)["quantity"] == 1
    with pytest.raises(BadRequestError, match="not in Authenticated or Active state"):
        sdk.subscription.edit(a.subscription(), {"quantity": 2})


def test_an_international_card_subscription_changes_at_the_cycles_end(a: Builder, sdk: Any) -> None:
    subscription_id = a.paid_subscription(international=True)

    now = sdk.subscription.edit(subscription_id, {"quantity": 3, "schedule_change_at": "cycle_end"})
    pending = sdk.subscription.pending_update(subscription_id)
    renewal = a.sandbox.act(f"subscriptions/{subscription_id}/charge")

    assert (now["quantity"], now["has_scheduled_changes"]) == (1, True)
    assert now["change_scheduled_at"] == now["current_end"]
    assert pending["quantity"] == 3
    charged = renewal[-1]["parsed"]["payload"]
    assert charged["payment"]["entity"]["amount"] == 3 * 235_882
    assert charged["subscription"]["entity"]["quantity"] == 3
    with pytest.raises(BadRequestError, match="No Pending update"):
        sdk.subscription.pending_update(subscription_id)


def test_cancel_at_cycle_end_shows_nowhere_until_the_cycle_ends(a: Builder, sdk: Any) -> None:
    subscription_id = a.paid_subscription()
    before = sdk.subscription.fetch(subscription_id)

    answer = sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": True})

    assert answer == before == sdk.subscription.fetch(subscription_id)
    assert sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": False})["status"] == "cancelled"
    with pytest.raises(BadRequestError, match="not cancellable in cancelled status"):
        sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": False})


def test_pause_and_resume_by_the_merchant(a: Builder, sdk: Any) -> None:
    subscription_id, trial_id = a.paid_subscription(), a.trial()

    paused = sdk.subscription.pause(subscription_id, {"pause_at": "now"})
    resumed = sdk.subscription.resume(subscription_id, {"resume_at": "now"})

    assert (paused["status"], paused["charge_at"], paused["pause_initiated_by"]) == ("paused", None, "self")
    assert (resumed["status"], resumed["charge_at"]) == ("active", resumed["current_end"])
    # Razorpay cancels a trial that somebody pauses.
    assert sdk.subscription.pause(trial_id, {"pause_at": "now"})["status"] == "cancelled"
    a.sandbox.act(f"subscriptions/{subscription_id}/pause")
    with pytest.raises(BadRequestError, match="only be resumed by the customer"):
        sdk.subscription.resume(subscription_id, {"resume_at": "now"})


def test_the_same_receipt_gets_the_same_order_only_when_asked(a: Builder, sdk: Any) -> None:
    receipt = f"cp_{time.time_ns()}"

    first = a.order(receipt=receipt, unique_receipt=True)

    assert a.order(receipt=receipt, unique_receipt=True) == first
    assert a.order(receipt=receipt) != first
    with pytest.raises(BadRequestError, match="other details"):
        a.order(receipt=receipt, unique_receipt=True, amount=100)
    with pytest.raises(BadRequestError, match=r"at least INR 1\.00"):
        a.order(amount=99)
    with pytest.raises(BadRequestError, match="must be an integer"):
        a.order(amount=100.5)


def test_a_payment_is_captured_once_for_exactly_its_amount(a: Builder, sdk: Any) -> None:
    order_id = a.order(payment_capture=False)
    events = a.sandbox.act(f"orders/{order_id}/pay", method="upi")
    payment_id = events[0]["parsed"]["payload"]["payment"]["entity"]["id"]

    with pytest.raises(BadRequestError, match="equal to the amount authorized"):
        sdk.payment.capture(payment_id, 165_999, {"currency": "INR"})
    captured = sdk.payment.capture(payment_id, 166_000, {"currency": "INR"})

    assert [event["event"] for event in events] == ["payment.authorized"]
    assert (captured["status"], captured["fee"], captured["tax"]) == ("captured", 3_918, 598)
    assert sdk.order.fetch(order_id)["status"] == "paid"
    assert [item["id"] for item in sdk.order.payments(order_id)["items"]] == [payment_id]
    with pytest.raises(BadRequestError, match="already been captured"):
        sdk.payment.capture(payment_id, 166_000, {"currency": "INR"})


def test_a_refund_is_made_once_per_idempotency_key(a: Builder, sdk: Any) -> None:
    _, payment_id = a.paid_order()
    key = {"X-Refund-Idempotency": f"refund-{time.time_ns()}"}

    first = sdk.payment.refund(payment_id, {"amount": 66_000}, headers=dict(key))
    again = sdk.payment.refund(payment_id, {"amount": 66_000}, headers=dict(key))

    assert again["id"] == first["id"]
    assert sdk.refund.fetch(first["id"])["status"] == "processed"
    with pytest.raises(BadRequestError, match="same idempotency key"):
        sdk.payment.refund(payment_id, {"amount": 1_000}, headers=dict(key))
    with pytest.raises(BadRequestError, match="at least 10"):
        sdk.payment.refund(payment_id, {"amount": 1_000}, headers={"X-Refund-Idempotency": "short"})
    with pytest.raises(BadRequestError, match="greater than amount captured"):
        sdk.payment.refund(payment_id, {"amount": 166_001})
    sdk.refund.create({"payment_id": payment_id})
    payment = sdk.payment.fetch(payment_id)
    assert (payment["status"], payment["refund_status"], payment["amount_refunded"]) == (
        "refunded",
        "full",
        166_000,
    )
    with pytest.raises(BadRequestError, match="fully refunded already"):
        sdk.payment.refund(payment_id, {"amount": 100})


def test_a_failed_refund_never_happened(a: Builder, sdk: Any) -> None:
    a.sandbox.set("faults", kind="hold_refunds", on=True)
    _, payment_id = a.paid_order()
    refund = sdk.payment.refund(payment_id, {})

    a.sandbox.act(f"refunds/{refund['id']}/fail")

    payment = sdk.payment.fetch(payment_id)
    assert refund["status"] == "pending"
    assert (payment["status"], payment["refund_status"], payment["amount_refunded"]) == ("captured", None, 0)
    assert a.sandbox.refusal(f"refunds/{refund['id']}/process") == "The refund is already failed"


def test_invoices_tell_which_payment_belongs_to_which_subscription(a: Builder, sdk: Any) -> None:
    subscription_id = a.paid_subscription()
    a.sandbox.act(f"subscriptions/{subscription_id}/charge")

    invoices = sdk.invoice.all({"subscription_id": subscription_id})["items"]

    assert [invoice["status"] for invoice in invoices] == ["paid", "paid"]
    assert invoices[1]["billing_end"] == invoices[0]["billing_start"]
    for invoice in invoices:
        assert sdk.payment.fetch(invoice["payment_id"])["invoice_id"] == invoice["id"]
        assert (invoice["invoice_number"], invoice["tax_amount"]) == (None, 0)


def test_checkout_signatures_satisfy_the_sdk(a: Builder, sdk: Any) -> None:
    order_id, payment_id = a.paid_order()
    subscription_id = a.paid_subscription()
    invoice = sdk.invoice.all({"subscription_id": subscription_id})["items"][0]

    for_order = a.sandbox.set("checkout_signature", payment_id=payment_id, order_id=order_id)
    for_subscription = a.sandbox.set(
        "checkout_signature", payment_id=invoice["payment_id"], subscription_id=subscription_id
    )

    assert sdk.utility.verify_payment_signature(for_order)
    assert sdk.utility.verify_subscription_payment_signature(for_subscription)
    with pytest.raises(razorpay.errors.SignatureVerificationError):
        sdk.utility.verify_payment_signature(for_order | {"razorpay_payment_id": "pay_00000000000000"})


def test_a_lost_answer_leaves_the_work_done(a: Builder, sdk: Any, plan: dict[str, Any]) -> None:
    intent = f"intent-{time.time_ns()}"
    a.sandbox.set("faults", kind="drop", method="POST", path="/v1/subscriptions")

    with pytest.raises(requests.exceptions.ConnectionError):
        a.subscription(notes={"intent": intent})

    found = sdk.subscription.all({"plan_id": plan["id"], "count": 100})["items"]
    assert [item["notes"]["intent"] for item in found if item["notes"].get("intent")] == [intent]


def test_faults_come_as_often_as_ordered_and_where(sandbox: Sandbox, sdk: Any) -> None:
    sandbox.set("faults", kind="status", status=500, path="/v1/plans")
    sandbox.set("faults", kind="status", status=502, times=2)
    sandbox.set("faults", kind="status", status=429)

    with pytest.raises(ServerError, match="facing some trouble"):
        sdk.plan.all()
    with pytest.raises(requests.exceptions.JSONDecodeError):
        sdk.plan.all()
    bad_gateway = ask(sandbox, "GET", "/v1/orders")
    assert bad_gateway.status_code == 502
    assert bad_gateway.headers["content-type"].startswith("text/html")
    assert ask(sandbox, "GET", "/v1/orders").status_code == 429
    assert ask(sandbox, "GET", "/v1/orders").status_code == 200


def test_a_slow_answer_outlasts_the_callers_patience(sandbox: Sandbox, sdk: Any) -> None:
    sandbox.set("faults", kind="delay", seconds=0.4)

    with pytest.raises(requests.exceptions.Timeout):
        sdk.plan.all(timeout=0.1)


def test_lists_lag_while_a_fetch_does_not(a: Builder, sdk: Any) -> None:
    a.sandbox.set("faults", kind="list_lag", seconds=300)

    order_id, payment_id = a.paid_order()

    assert payment_id not in [item["id"] for item in sdk.payment.all({"count": 100})["items"]]
    assert sdk.payment.fetch(payment_id)["status"] == "captured"
    assert sdk.order.fetch(order_id)["status"] == "paid"


def test_the_checkout_page_offers_its_buttons_and_escapes_names(a: Builder, sdk: Any) -> None:
    plan = sdk.plan.create(
        {
            "period": "monthly",
            "interval": 1,
            "item": {"name": "<script>alert(1)</script>", "amount": 49_900, "currency": "INR"},
        }
    )
    subscription = sdk.subscription.create({"plan_id": plan["id"], "total_count": 12})

    page = requests.get(subscription["short_url"], timeout=5)
    order_page = requests.get(f"{a.sandbox.url}/checkout/{a.order()}", timeout=5)

    assert page.status_code == order_page.status_code == 200
    assert "<script>alert" not in page.text
    assert "₹499.00" in page.text
    for act in ("pay", "fail", "close"):
        assert f'data-act="{act}"' in page.text
        assert f'data-act="{act}"' in order_page.text
    assert requests.get(f"{a.sandbox.url}/checkout/sub_00000000000000", timeout=5).status_code == 404


def test_a_click_pays_and_hands_over_what_checkout_would(a: Builder, sdk: Any) -> None:
    subscription_id, order_id, trial_id = a.subscription(), a.order(), a.subscription(start_at=2_000_000_000)

    def click(entity_id: str, act: str) -> dict[str, Any]:
        clicked: dict[str, Any] = requests.post(
            f"{a.sandbox.url}/checkout/{entity_id}/{act}?method=upi", timeout=5
        ).json()
        return clicked

    refused_first, paid, again = (click(subscription_id, act) for act in ("fail", "pay", "pay"))
    order_paid, trial = click(order_id, "pay"), click(trial_id, "authenticate")

    assert refused_first == {"status": "created"}
    assert paid["status"] == "active"
    assert sdk.utility.verify_subscription_payment_signature(paid["checkout"])
    assert "paid already" in again["error"]["description"]
    assert order_paid["status"] == "paid"
    assert sdk.utility.verify_payment_signature(order_paid["checkout"])
    assert trial["status"] == "authenticated"
    assert sdk.utility.verify_subscription_payment_signature(trial["checkout"])
    token = sdk.payment.fetch(trial["checkout"]["razorpay_payment_id"])
    assert (token["amount"], token["refund_status"]) == (500, "full")
    assert "not found" in click(subscription_id, "cancel")["error"]["description"]


async def test_from_another_machine_the_control_api_asks_for_the_keys() -> None:
    till = Till(
        SandboxSettings(
            razorpay_key_id=KEY_ID, razorpay_key_secret=KEY_SECRET, razorpay_webhook_secret="whsec"
        )
    )
    elsewhere = httpx.ASGITransport(create_app(till), client=("10.0.0.9", 4_242))

    async with httpx.AsyncClient(transport=elsewhere, base_url="http://sandbox") as http:
        refused = await http.get("/_sandbox/deliveries")
        allowed = await http.get("/_sandbox/deliveries", auth=(KEY_ID, KEY_SECRET))

    assert refused.status_code == 401
    assert allowed.json() == []
    await till.sender.stop()


def test_a_second_click_on_pay_does_not_take_the_next_cycles_money(a: Builder, sdk: Any) -> None:
    subscription_id = a.paid_subscription()

    assert "paid already" in a.sandbox.refusal(f"subscriptions/{subscription_id}/pay", method="card")
    assert sdk.subscription.fetch(subscription_id)["paid_count"] == 1


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff"])
def test_a_body_that_is_no_object_is_refused(sandbox: Sandbox, body: bytes) -> None:
    for path in ("/v1/orders", "/_sandbox/faults"):
        answer = ask(sandbox, "POST", path, data=body)

        assert answer.status_code == 400
        assert "request body" in answer.json()["error"]["description"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("faults", {"kind": "earthquake"}),
        ("faults", {"kind": "status", "status": 418}),
        ("faults", {"kind": "status", "colour": "red"}),
        ("faults", {"kind": "list_lag", "seconds": "long"}),
        ("webhook_endpoint", {"url": "ftp://example.com"}),
        ("checkout_signature", {"payment_id": "pay_00000000000000"}),
        ("subscriptions/sub_00000000000000/pay", {}),
        ("deliveries/nothing/replay", {}),
    ],
)
def test_the_control_api_explains_what_it_refuses(sandbox: Sandbox, path: str, body: dict[str, Any]) -> None:
    assert sandbox.refusal(path, **body)
