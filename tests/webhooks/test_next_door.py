"""What is fit to be stored passes the next room's door: a signed event is never refused for what was masked in it."""

import json
from datetime import UTC, datetime
from typing import Any

from billing.subscriptions.v1 import payment_events_pb2 as pb
from hypothesis import example, given
from hypothesis import strategies as st

from services.webhooks.clients import _to_proto
from services.webhooks.rules import bodies
from services.webhooks.rules.delivery import Claimed
from services.webhooks.rules.providers import razorpay
from shared.rpc import validation
from tests.webhooks.harness import sample

CARD = "4111111111111111"
NAMES = st.sampled_from(
    ["otp", "cvv", "PIN", "number", "password", "tenant_id", "note", CARD, "4111 1111 1111 1111"]
)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from([CARD, "4111  1111-1111 1111", int(CARD), float(CARD), "true", "[masked]"])
)
NOTES = st.dictionaries(
    NAMES | st.text(max_size=12),
    VALUES | st.lists(VALUES, max_size=2) | st.dictionaries(NAMES, VALUES, max_size=2),
)


def passed_on(notes: dict[str, Any]) -> pb.PaymentEvent:
    """The event as subscriptions' door sees it."""
    document = json.loads(sample("subscription.charged.json"))
    for entity in ("subscription", "payment"):
        document["payload"][entity]["entity"]["notes"] = notes
    stored = bodies.prepare(json.dumps(document).encode()).body
    claimed = Claimed(
        *("evt_1", 1, "razorpay", "default", "test", None, None, None),
        *(stored, "a" * 64, None, "req_1", datetime.now(UTC), 0),
    )
    return _to_proto(claimed, razorpay.normalise(stored))


@given(NOTES)
@example({"otp": True})
@example({"cvv": False, "password": ""})
def test_whatever_was_noted_passes(notes: dict[str, Any]) -> None:
    validation.check(pb.ApplyPaymentEventRequest(idempotency_key="k", event=passed_on(notes)))
