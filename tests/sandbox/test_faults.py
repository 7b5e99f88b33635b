"""What goes wrong goes wrong where and when it was asked to."""

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from razorpay.errors import BadRequestError, GatewayError

from tests.sandbox.conftest import Builder
from tests.sandbox.running import KEY_ID, KEY_SECRET, Sandbox


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The SDK prints its troubles."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def test_the_answer_to_a_cancellation_is_lost_after_the_work(a: Builder, sdk: Any) -> None:
    subscription_id = a.paid_subscription()
    a.sandbox.set("faults", kind="drop", method="POST", path="/v1/subscriptions/*/cancel")

    sdk.subscription.fetch(subscription_id)
    with pytest.raises(requests.exceptions.ConnectionError):
        sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": False})

    assert sdk.subscription.fetch(subscription_id)["status"] == "cancelled"
    with pytest.raises(BadRequestError, match="not cancellable in cancelled status"):
        sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": False})


def test_the_answer_to_a_capture_is_lost_after_the_work(a: Builder, sdk: Any) -> None:
    events = a.sandbox.act(f"orders/{a.order(payment_capture=False)}/pay", method="upi")
    payment_id = events[0]["parsed"]["payload"]["payment"]["entity"]["id"]
    a.sandbox.set("faults", kind="drop", path="/v1/payments/*/capture")

    with pytest.raises(requests.exceptions.ConnectionError):
        sdk.payment.capture(payment_id, 166_000, {"currency": "INR"})

    assert sdk.payment.fetch(payment_id)["status"] == "captured"
    with pytest.raises(BadRequestError, match="already been captured"):
        sdk.payment.capture(payment_id, 166_000, {"currency": "INR"})


def test_the_answer_to_a_refund_is_lost_and_its_key_brings_it_back(a: Builder, sdk: Any) -> None:
    _, payment_id = a.paid_order()
    key = f"refund-{time.time_ns()}"
    a.sandbox.set("faults", kind="drop", path="/v1/payments/*/refund")

    with pytest.raises(requests.exceptions.ConnectionError):
        sdk.payment.refund(payment_id, {"amount": 66_000}, headers={"X-Refund-Idempotency": key})
    again = sdk.payment.refund(payment_id, {"amount": 66_000}, headers={"X-Refund-Idempotency": key})

    assert [item["id"] for item in sdk.payment.fetch_multiple_refund(payment_id)["items"]] == [again["id"]]
    assert sdk.payment.fetch(payment_id)["amount_refunded"] == 66_000


@pytest.mark.parametrize(("done", "orders"), [(True, 1), (False, 0)])
def test_a_bad_gateway_says_nothing_about_the_work(a: Builder, sdk: Any, done: bool, orders: int) -> None:
    receipt = f"cp_{time.time_ns()}"
    a.sandbox.set("faults", kind="status", status=502, path="/v1/orders", exact=True, work_done=done)

    with pytest.raises(requests.exceptions.JSONDecodeError):
        a.order(receipt=receipt)

    assert sdk.order.all({"receipt": receipt})["count"] == orders


def test_a_connection_may_break_before_the_work(a: Builder, sdk: Any) -> None:
    receipt = f"cp_{time.time_ns()}"
    a.sandbox.set("faults", kind="drop", path="/v1/orders", exact=True, work_done=False)

    with pytest.raises(requests.exceptions.ConnectionError):
        a.order(receipt=receipt)

    assert sdk.order.all({"receipt": receipt})["count"] == 0


def test_a_fault_waits_for_its_turn_and_for_its_path(sandbox: Sandbox, sdk: Any, plan: Any) -> None:
    sandbox.set("faults", kind="status", status=429, path="/v1/plans/*", skip=1, times=2)

    def status(path: str) -> int:
        return requests.get(sandbox.url + path, auth=(KEY_ID, KEY_SECRET), timeout=5).status_code

    one, every = f"/v1/plans/{plan['id']}", "/v1/plans"

    assert [status(path) for path in (one, every, one, one, one)] == [200, 200, 429, 429, 200]
    assert sandbox.http.get("/_sandbox/faults").json()["waiting"] == []


@pytest.mark.parametrize(("status", "words"), [(503, "Service Temporarily"), (504, "Gateway Time-out")])
def test_proxies_answer_in_html(sandbox: Sandbox, status: int, words: str) -> None:
    sandbox.set("faults", kind="status", status=status)

    answer = requests.get(f"{sandbox.url}/v1/plans", auth=(KEY_ID, KEY_SECRET), timeout=5)

    assert (answer.status_code, words in answer.text) == (status, True)


def test_a_refusal_says_what_it_was_told_to(sandbox: Sandbox, sdk: Any) -> None:
    url_unknown = "The requested URL was not found on the server."
    sandbox.set("faults", kind="refuse", description=url_unknown, field="x")
    sandbox.set("faults", kind="refuse", code="GATEWAY_ERROR", description="The bank is down")

    with pytest.raises(BadRequestError, match="requested URL was not found"):
        sdk.subscription.all()
    with pytest.raises(GatewayError, match="The bank is down"):
        sdk.subscription.all()


def in_background(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_same_refund_key_twice_at_a_time_is_a_conflict(a: Builder, sdk: Any) -> None:
    _, payment_id = a.paid_order()
    url = f"{a.sandbox.url}/v1/payments/{payment_id}/refund"
    headers = {"X-Refund-Idempotency": f"refund-{time.time_ns()}"}
    a.sandbox.set("faults", kind="delay", seconds=0.6, path="/v1/payments/*/refund")
    answers: list[requests.Response] = []

    def ask() -> None:
        answers.append(
            requests.post(url, json={"amount": 500}, headers=headers, auth=(KEY_ID, KEY_SECRET), timeout=5)
        )

    slow = in_background(ask)
    while a.sandbox.http.get("/_sandbox/faults").json()["waiting"]:
        time.sleep(0.01)
    ask()
    slow.join()
    ask()

    assert [answer.status_code for answer in answers] == [409, 200, 200]
    assert answers[1].json()["id"] == answers[2].json()["id"]
    assert sdk.payment.fetch(payment_id)["amount_refunded"] == 500


def test_every_answer_names_its_request(sandbox: Sandbox) -> None:
    ids = [
        requests.get(f"{sandbox.url}/v1/{path}", auth=auth, timeout=5).headers["request-id"]
        for path, auth in (
            ("plans", (KEY_ID, KEY_SECRET)),
            ("nowhere", (KEY_ID, KEY_SECRET)),
            ("plans", None),
        )
    ]

    assert {len(each) for each in ids} == {14}
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    "body",
    [{"kind": "status", "times": 0}, {"kind": "drop", "times": "x"}, {"kind": "status", "status": 418}],
)
def test_a_fault_that_makes_no_sense_is_refused(sandbox: Sandbox, body: dict[str, Any]) -> None:
    assert sandbox.refusal("faults", **body)
    assert sandbox.http.get("/_sandbox/faults").json()["waiting"] == []
