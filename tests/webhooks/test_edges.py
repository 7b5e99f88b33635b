"""Bodies that are signed and read well, and what still goes wrong after them."""

from __future__ import annotations

import json

import pytest
from billing.subscriptions.v1 import payment_events_pb2 as pb

from services.webhooks.errors import Poison
from services.webhooks.rules import bodies
from services.webhooks.rules.providers import razorpay
from tests.webhooks.harness import Running, sample


@pytest.mark.parametrize("moment", [7_258_118_400, 253_402_300_799, 2**62])
def test_a_moment_at_the_end_of_the_calendar_is_poison_rather_than_ten_failed_attempts(moment: int) -> None:
    document = json.loads(sample("subscription.charged.json"))
    document["payload"]["subscription"]["entity"]["current_end"] = moment

    with pytest.raises(Poison) as refused:
        razorpay.normalise(json.dumps(document).encode())

    assert str(refused.value) == "time_malformed: payload.subscription.entity.current_end"


async def test_once_an_event_tells_the_tenant_earlier_ones_of_its_order_are_named(
    room: Running,
) -> None:
    async def knows_charges_only(request: pb.ApplyPaymentEventRequest) -> pb.ApplyPaymentEventResponse:
        tells = request.event.event_type == "subscription.charged"
        return pb.ApplyPaymentEventResponse(
            outcome=pb.PAYMENT_EVENT_OUTCOME_IGNORED, reason="recorded", tenant_id="tn_told" if tells else ""
        )

    room.subscriptions.before = knows_charges_only
    ours = ["payment.authorized.json", "payment.captured.subscription.json", "order.paid.subscription.json"]
    silent = [*ours, "payment.captured.json", "order.paid.json"]  # the last two are about another order
    for name in silent:
        await room.post(sample(name))
    await room.settled(len(silent))

    await room.post(sample("subscription.charged.json"))
    rows = await room.settled(len(silent) + 1)

    named = {bytes(row["body"]) for row in rows if row["tenant_id"] == "tn_told"}
    assert named == {sample(name) for name in [*ours, "subscription.charged.json"]}


@pytest.mark.parametrize(
    "name",
    ["password", "Authorization", "client_secret", "api-key", "accessToken", "key_secret", "otp", "SECRET"],
)
@pytest.mark.parametrize("end", [None, -1])
def test_secrets_are_not_stored_whether_the_body_is_whole_or_not(name: str, end: int | None) -> None:
    body = json.dumps({"event": "a.b", "payload": {"x": [{name: 'a"canary-4711', "kept": "yes"}]}}).encode()[
        :end
    ]

    kept = bodies.prepare(body)

    assert kept.masked
    assert b"canary" not in kept.body
    assert b"yes" in kept.body


def test_entities_that_bear_such_a_name_are_kept() -> None:
    body = json.dumps({"event": "a.b", "payload": {"secret": {"entity": {"id": "x_1"}}}}).encode()

    assert bodies.prepare(body).body == body
