"""What the sandbox sends has the exact shape of the samples: keys, their order, types, serialiser."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox.state.world import Event
from sandbox.webhooks.delivery import serialise, sign
from tests.sandbox.conftest import Builder
from tests.sandbox.running import WEBHOOK_SECRET, Sandbox

PAYLOADS = Path(__file__).resolve().parents[1] / "payloads"
MANIFEST = json.loads((PAYLOADS / "MANIFEST.json").read_bytes())
SAMPLES = [entry for entry in MANIFEST["files"] if entry["well_formed"]]

Delivery = dict[str, Any]


def sample(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((PAYLOADS / "razorpay" / f"{name}.json").read_bytes())
    return parsed


def shape(value: Any) -> Any:
    """Keys in their order, types in place of values; lists by their first item."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


def with_sample_notes(event: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Notes are the merchant's: only whether there are any is Razorpay's shape."""
    for name, holder in event["payload"].items():
        wanted = like["payload"][name]["entity"].get("notes")
        if holder["entity"].get("notes") and wanted:
            holder["entity"]["notes"] = wanted
    return event


def named(deliveries: list[Delivery], event: str) -> Delivery:
    found = [delivery for delivery in deliveries if delivery["event"] == event]
    assert len(found) == 1, [delivery["event"] for delivery in deliveries]
    return found[0]


def first_charge(a: Builder) -> list[Delivery]:
    subscription_id = a.subscription(expire_by=int(time.time()) + 86_400)
    return a.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card")


def trial_end(a: Builder) -> list[Delivery]:
    return a.sandbox.act(f"subscriptions/{a.trial(notes={})}/charge")


def failures(count: int) -> Callable[[Builder], list[Delivery]]:
    def scenario(a: Builder) -> list[Delivery]:
        subscription_id = a.paid_subscription()
        every = [a.sandbox.act(f"subscriptions/{subscription_id}/fail") for _ in range(count)]
        return every[-1]

    return scenario


def customer_acts(*acts: str) -> Callable[[Builder], list[Delivery]]:
    def scenario(a: Builder) -> list[Delivery]:
        subscription_id = a.paid_subscription(method="upi")
        every = [a.sandbox.act(f"subscriptions/{subscription_id}/{act}") for act in acts]
        return every[-1]

    return scenario


def updated(a: Builder) -> list[Delivery]:
    subscription_id = a.paid_subscription(international=True)
    a.sdk.subscription.edit(subscription_id, {"quantity": 4})
    return [stored(a.sandbox, "subscription.updated")]


def completed(a: Builder) -> list[Delivery]:
    subscription_id = a.paid_subscription(method="netbanking", total_count=2)
    return a.sandbox.act(f"subscriptions/{subscription_id}/charge")


def pack_paid(a: Builder) -> list[Delivery]:
    return a.sandbox.act(f"orders/{a.order()}/pay", method="upi", description="Medium pack — 2,200 credits")


def pack_failed(a: Builder) -> list[Delivery]:
    return a.sandbox.act(f"orders/{a.order()}/fail", method="upi")


def refund(then: str) -> Callable[[Builder], list[Delivery]]:
    def scenario(a: Builder) -> list[Delivery]:
        _, payment_id = a.paid_order()
        details = {"amount": 83_000, "notes": {"reason": "ticket"}, "receipt": "rf_1"}
        created = a.sandbox.act(f"payments/{payment_id}/refund", **details)
        if not then:
            return created
        refund_id = created[0]["parsed"]["payload"]["refund"]["entity"]["id"]
        return a.sandbox.act(f"refunds/{refund_id}/{then}")

    return scenario


def dispute(then: str) -> Callable[[Builder], list[Delivery]]:
    def scenario(a: Builder) -> list[Delivery]:
        charged = named(first_charge(a), "subscription.charged")
        payment_id = charged["parsed"]["payload"]["payment"]["entity"]["id"]
        created = a.sandbox.act(f"payments/{payment_id}/dispute")
        if not then:
            return created
        dispute_id = created[0]["parsed"]["payload"]["dispute"]["entity"]["id"]
        return a.sandbox.act(f"disputes/{dispute_id}/{then}")

    return scenario


def stored(sandbox: Sandbox, event: str) -> Delivery:
    """The newest delivery of an event, as the sandbox remembers it."""
    every = sandbox.http.get("/_sandbox/deliveries").json()
    found: Delivery = [delivery for delivery in every if delivery["event"] == event][-1]
    found["body"] = base64.b64decode(found["body_base64"])
    return found | {"parsed": json.loads(found["body"])}


SCENARIOS: dict[str, Callable[[Builder], list[Delivery]]] = {
    "payment.authorized": first_charge,
    "payment.captured.subscription": first_charge,
    "order.paid.subscription": first_charge,
    "invoice.paid.subscription.raw": first_charge,
    "subscription.authenticated": first_charge,
    "subscription.activated.with_payment": first_charge,
    "subscription.charged": first_charge,
    "subscription.activated": trial_end,
    "subscription.pending": failures(1),
    "payment.failed.subscription": failures(1),
    "subscription.halted": failures(4),
    "subscription.paused": customer_acts("pause"),
    "subscription.resumed": customer_acts("pause", "resume"),
    "subscription.cancelled": customer_acts("cancel"),
    "subscription.updated": updated,
    "subscription.completed": completed,
    "payment.captured": pack_paid,
    "order.paid": pack_paid,
    "payment.failed": pack_failed,
    "refund.created": refund(""),
    "refund.processed": refund("process"),
    "refund.failed": refund("fail"),
    "payment.dispute.created": dispute(""),
    "payment.dispute.won": dispute("won"),
    "payment.dispute.lost": dispute("lost"),
}


def test_every_sample_has_a_scenario() -> None:
    names = {Path(entry["file"]).name.removesuffix(".json") for entry in SAMPLES}

    assert names == set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_event_has_the_shape_of_its_sample(name: str, a: Builder) -> None:
    like = sample(name)

    delivery = named(SCENARIOS[name](a), like["event"])

    assert shape(with_sample_notes(delivery["parsed"], like)) == shape(like)
    assert delivery["parsed"]["contains"] == like["contains"]
    assert abs(delivery["parsed"]["created_at"] - time.time()) < 10


@pytest.mark.parametrize("entry", SAMPLES, ids=lambda entry: entry["file"])
def test_our_serialisers_reproduce_the_samples_byte_for_byte(entry: dict[str, Any]) -> None:
    body = (PAYLOADS / entry["file"]).read_bytes()
    parsed = json.loads(body)
    payload = {name: holder["entity"] for name, holder in parsed["payload"].items()}
    event = Event(parsed["event"], parsed["contains"], payload, parsed["created_at"])

    again = serialise(event, parsed["account_id"])

    assert again == body
    assert hashlib.sha256(again).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("entry", MANIFEST["files"], ids=lambda entry: entry["file"])
def test_the_samples_carry_valid_signatures(entry: dict[str, Any]) -> None:
    body = (PAYLOADS / entry["file"]).read_bytes()
    secrets = MANIFEST["sample_secrets"].values()

    signatures = [sign(secret, body) for secret in secrets]

    assert entry["headers"]["X-Razorpay-Signature"] in signatures


def test_only_the_invoice_event_breaks_a_verifier_that_parses_first(a: Builder) -> None:
    changed = []
    for delivery in first_charge(a):
        expected = hmac.new(WEBHOOK_SECRET.encode(), delivery["body"], hashlib.sha256).hexdigest()
        assert delivery["headers"]["X-Razorpay-Signature"] == expected
        if json.dumps(delivery["parsed"], separators=(",", ":")).encode() != delivery["body"]:
            changed.append(delivery["event"])

    assert changed == ["invoice.paid"]


def test_headers_are_razorpays(a: Builder) -> None:
    delivery = first_charge(a)[0]

    assert list(delivery["headers"]) == list(SAMPLES[0]["headers"])
    assert delivery["headers"]["User-Agent"] == "Razorpay-Webhook/v1"
    assert (
        delivery["headers"]["x-razorpay-event-id"]
        == delivery["headers"]["request-id"]
        == delivery["event_id"]
    )
    assert len(delivery["event_id"]) == 14
