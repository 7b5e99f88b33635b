"""The deliveries that the benchmark sends are what the ingress takes for a provider's."""

import hashlib
import json
from collections import Counter

from bench.deliveries import MONTH_SECONDS, RENEWAL, Customer, Mill, request
from services.webhooks.rules.providers import PROVIDERS
from shared import clock

RAZORPAY = PROVIDERS["razorpay"]
CUSTOMERS = [
    Customer(f"tn_{number}", f"sub_{number:014d}", "plan_1", "starter", f"int_{number}", 58882, 1_800_000_000)
    for number in range(3)
]


def test_no_two_bodies_are_alike_and_each_has_a_real_size() -> None:
    mill = Mill(CUSTOMERS)
    bodies = [mill.body(kind) for kind in ("strangers", "charges", "renewals") for _ in range(100)]

    assert len({hashlib.sha256(body).digest() for body in bodies}) == 300
    assert all(1000 < len(body) < 3000 for body in bodies)


def test_a_charge_is_of_the_customers_next_month() -> None:
    mill = Mill(CUSTOMERS)
    charges = [RAZORPAY.normalise(mill.body("charges")) for _ in range(6)]

    subscriptions = [charge.subscription for charge in charges if charge.subscription]
    assert [each.id for each in subscriptions] == [customer.subscription_id for customer in CUSTOMERS] * 2
    assert [each.paid_count for each in subscriptions] == [1, 1, 1, 2, 2, 2]
    first, second = subscriptions[0], subscriptions[3]
    assert first.current_end == second.current_start
    assert first.current_start is not None
    assert first.current_start.timestamp() + MONTH_SECONDS == second.current_start.timestamp()
    assert {each.notes["intent_id"] for each in subscriptions} == {"int_0", "int_1", "int_2"}
    assert len({charge.payment.id for charge in charges if charge.payment}) == 6
    assert {charge.payment.amount for charge in charges if charge.payment} == {58882}


def test_a_renewal_is_five_events_of_one_payment() -> None:
    mill = Mill(CUSTOMERS)
    events = [RAZORPAY.normalise(mill.body("renewals")) for _ in range(10)]

    assert Counter(event.event_type for event in events) == dict.fromkeys(
        (
            *("payment.authorized", "payment.captured", "order.paid", "invoice.paid"),
            "subscription.charged",
        ),
        2,
    )
    payments = [event.payment.id for event in events if event.payment]
    assert len(payments) == len(RENEWAL) * 2
    assert len(set(payments)) == 2


def test_a_request_carries_a_signature_that_holds() -> None:
    body = Mill(CUSTOMERS).body("strangers")
    head, _, sent = request(body, secret="s3cret", address="127.0.0.1:1").partition(b"\r\n\r\n")
    headers = [
        (name.lower(), value) for name, value in (line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    ]

    assert sent == body
    assert dict(headers)[b"content-length"] == str(len(body)).encode()
    assert RAZORPAY.verify(headers, body, [b"s3cret"], clock.now()) == 0
    assert RAZORPAY.verify(headers, body, [b"another"], clock.now()) is None
    assert json.loads(body)["event"]
