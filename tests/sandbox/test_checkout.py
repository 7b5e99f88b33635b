"""The checkout page, clicked as a browser without JavaScript clicks it."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from tests.sandbox.conftest import Builder
from tests.sandbox.running import listening, until

BROWSER = {"Accept": "text/html,application/xhtml+xml"}


class Forms(HTMLParser):
    """The forms of a page: where they go and what they carry, by the words on their button."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, tuple[str, dict[str, str]]] = {}
        self._action, self._fields = "", dict[str, str]()
        self._in_button = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            assert given["method"] == "post"
            self._action, self._fields = given["action"], {}
        self._in_button = tag == "button"
        if tag == "input":
            self._fields[given["name"]] = given["value"]

    def handle_data(self, data: str) -> None:
        if self._in_button:
            self.found[data] = (self._action, dict(self._fields))
            self._in_button = False


@pytest.fixture
def browser(a: Builder) -> Any:
    with httpx.Client(base_url=a.sandbox.url, headers=BROWSER, trust_env=False) as client:
        yield client


def click(browser: httpx.Client, page: str, words: str) -> str:
    action, fields = Forms(page).found[words]
    answer = browser.post(action, data=fields)
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def status(page: str) -> str:
    found = re.search(r'id="status">(\w+)<', page)
    assert found
    return found[1]


def handed_over(page: str) -> dict[str, str]:
    found = re.search(r'<pre id="result">(.*?)</pre>', page, re.DOTALL)
    assert found, page
    return dict(line.split("=", 1) for line in unescape(found[1]).splitlines())


@pytest.mark.parametrize(
    ("paise", "shown"), [(12_345_678, "₹1,23,456.78"), (100, "₹1.00"), (100_000_00, "₹1,00,000.00")]
)
def test_amounts_are_shown_as_indians_write_them(
    sdk: Any, browser: httpx.Client, paise: int, shown: str
) -> None:
    order = sdk.order.create({"amount": paise, "currency": "INR"})

    assert f"<p>{shown}</p>" in browser.get(f"/checkout/{order['id']}").text


def test_a_subscription_is_failed_closed_and_paid(a: Builder, sdk: Any, browser: httpx.Client) -> None:
    subscription = sdk.subscription.fetch(a.subscription())
    page = browser.get(subscription["short_url"]).text
    assert "<script" not in page
    assert "₹2,358.82" in page

    failed = click(browser, page, "Fail with CARD")
    closed = click(browser, failed, "Close")
    paid = click(browser, closed, "Pay with UPI")

    assert [status(each) for each in (page, failed, closed, paid)] == ["created"] * 3 + ["active"]
    assert "nothing was taken" in failed
    assert "nothing was changed" in closed
    assert sdk.utility.verify_subscription_payment_signature(handed_over(paid))
    assert list(Forms(paid).found) == ["Close"]


def test_an_order_is_paid_after_a_failure(a: Builder, sdk: Any, browser: httpx.Client) -> None:
    order_id = a.order()
    page = browser.get(f"/checkout/{order_id}").text

    failed = click(browser, page, "Fail with UPI")
    paid = click(browser, failed, "Pay with CARD")

    assert [status(each) for each in (page, failed, paid)] == ["created", "attempted", "paid"]
    assert sdk.utility.verify_payment_signature(handed_over(paid))
    # The old page is still open in another tab.
    again = browser.post(f"/checkout/{order_id}/pay?method=card")
    assert (again.status_code, "already paid" in again.text) == (400, True)


@pytest.mark.parametrize("method", ["CARD", "UPI"])
def test_a_mandate_for_later_is_authorised_and_its_token_comes_back(
    a: Builder, sdk: Any, browser: httpx.Client, method: str
) -> None:
    subscription_id = a.subscription(start_at=2_000_000_000)
    page = browser.get(f"/checkout/{subscription_id}").text
    assert "until then nothing is charged" in page

    authorised = click(browser, page, f"Authorise with {method}")

    fields = handed_over(authorised)
    token = sdk.payment.fetch(fields["razorpay_payment_id"])
    assert status(authorised) == "authenticated"
    assert sdk.utility.verify_subscription_payment_signature(fields)
    assert (token["amount"], token["amount_refunded"], token["invoice_id"]) == (500, 500, None)
    assert sdk.subscription.fetch(subscription_id)["paid_count"] == 0


def test_the_customer_goes_back_to_the_merchant_with_the_signature(
    a: Builder, sdk: Any, browser: httpx.Client
) -> None:
    with listening() as merchant:
        page = browser.get(f"/checkout/{a.order()}", params={"callback_url": merchant.url}).text
        paid = click(browser, click(browser, page, "Fail with UPI"), "Pay with CARD")
        action, fields = Forms(paid).found["Return to the merchant"]
        browser.post(action, data=fields)
        until(lambda: merchant.received)

    assert action == merchant.url
    assert sdk.utility.verify_payment_signature(fields)
    assert b"razorpay_signature=" in merchant.received[0].body


def test_a_callback_that_is_no_address_is_refused(a: Builder, browser: httpx.Client) -> None:
    page = browser.get(f"/checkout/{a.order()}", params={"callback_url": "javascript:alert(1)"})

    assert page.status_code == 404
    assert "javascript" not in page.text
