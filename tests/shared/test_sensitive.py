"""Card data and secrets: refused wherever people write what they like, by every room, without being repeated."""

import random
import time

import pytest
from billing.ledger.v1 import ledger_pb2 as pb
from billing.subscriptions.v1 import subscriptions_pb2 as subscriptions
from billing.webhooks.v1 import webhooks_admin_pb2 as webhooks
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from shared import errors, sensitive
from shared.ids import new_id
from shared.rpc import validation

CARD = "4111111111111111"
PRINTED = "4111 1111 1111 1111"


def debit(**changes: object) -> pb.DebitRequest:
    values: dict[str, object] = {
        "tenant_id": "acme",
        "idempotency_key": "k",
        "credits": 1,
        "reason": "article.post",
    }
    return pb.DebitRequest(**{**values, **changes})  # type: ignore[arg-type]


def refused(request: Message) -> errors.InvalidArgument:
    with pytest.raises(errors.InvalidArgument) as raised:
        validation.check(request)
    return raised.value


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (debit(description=CARD), "description"),
        (debit(description=f"paid with {PRINTED} today"), "description"),
        (debit(description="amex 3782-822463-10005"), "description"),
        (debit(description="a card 4111\u00a01111\u00a01111\u00a01111 of a web page"), "description"),
        (debit(description="4111.1111.1111.1111"), "description"),
        (debit(description="4111\u2009\u20091111 1111 1111"), "description"),
        (debit(metadata={"card[cvv]": "x"}), "metadata[card[cvv]]"),
        (debit(metadata={f"{CARD}\0": "x"}), "metadata[…]"),
        (debit(metadata={"note": CARD}), "metadata[note]"),
        (debit(metadata={"CVV": "123"}), "metadata[CVV]"),
        (debit(metadata={"card_number": "x"}), "metadata[card_number]"),
        (debit(metadata={"Api-Key": "sk_live"}), "metadata[Api-Key]"),
        (debit(metadata={CARD: "x"}), "metadata[…]"),
        (
            pb.BatchDebitRequest(
                items=[pb.BatchDebitItem(debit=debit()), pb.BatchDebitItem(debit=debit(description=CARD))]
            ),
            "items[1].debit.description",
        ),
        (
            webhooks.ReplayEventsRequest(
                id="evt", actor="asha", reason=f"card {PRINTED}", idempotency_key="k"
            ),
            "reason",
        ),
        (webhooks.ReplayEventsRequest(id="evt", actor=CARD, reason="x", idempotency_key="k"), "actor"),
        (
            subscriptions.VerifyPaymentRequest(
                tenant_id="acme",
                idempotency_key="k",
                purchase_id="pur_1",
                payment_id="pay_1",
                signature="f" * 64,
                user_agent=PRINTED,
            ),
            "user_agent",
        ),
    ],
)
def test_every_door_refuses_and_repeats_nothing(request_: Message, field: str) -> None:
    refusal = refused(request_)

    assert [where for where, _ in refusal.violations] == [field]
    for secret in (CARD, PRINTED, "sk_live"):
        assert secret not in f"{refusal}{refusal.violations}{refusal.metadata}"


@pytest.mark.parametrize(
    "request_",
    [
        debit(tenant_id=CARD, idempotency_key=CARD, reference_id=CARD),  # ids of callers: many are numbers
        debit(description="Article 1729384756102938475"),
        debit(description="order 4111111111111112 of 16 digits"),
        debit(metadata={"pin": "560001", "number": "123456789012", "track": "5"}),
        debit(metadata={"pan": "AAACP1234C"}),  # an Indian taxpayer's
        debit(metadata={"password": ""}),
        debit(metadata={"password": sensitive.MASK, "note": sensitive.MASK}),  # masked where it was taken in
    ],
)
def test_what_is_no_card_passes(request_: Message) -> None:
    validation.check(request_)


@pytest.mark.parametrize(
    "number",
    # The schemes' own test numbers, and RuPay's of Razorpay.
    [
        *("4111111111111111", "4222222222222", "5555555555554444", "2223003122003222", "378282246310005"),
        *("30569309025904", "3530111333300000", "6011111111111117", "6759649826438453", "6500000000000002"),
        *("5085000000000008", "8100000000000009"),
    ],
)
def test_every_schemes_numbers_are_seen(number: str) -> None:
    fitting = next(
        number[:-1] + last for last in "0123456789" if sensitive.has_check_digit(number[:-1] + last)
    )
    assert sensitive.looks_like_card(fitting)


def test_ids_and_moments_of_our_days_are_no_cards() -> None:
    """Fewer than one in a thousand is the promise; their first digit makes it none."""
    now = int(time.time() * 1000)
    moments = [str(now + random.Random(7).randrange(10**10) + step) for step in range(3000)]
    snowflakes = [str((now - 1288834974657 << 22) + step * 4097) for step in range(3000)]
    assert not any(sensitive.holds_card(text) for text in [*moments, *snowflakes])
    assert not any(sensitive.holds_card(new_id("evt")) for _ in range(3000))


@given(
    st.just("6"),
    st.text("0123456789", min_size=11, max_size=17),
    st.sampled_from(["", " ", "-"]),
)
def test_a_card_number_alone_is_seen_with_any_separator(first: str, rest: str, separator: str) -> None:
    digits = next(
        first + rest + last for last in "0123456789" if sensitive.has_check_digit(first + rest + last)
    )
    written = separator.join(digits[place : place + 4] for place in range(0, len(digits), 4))

    assert sensitive.looks_like_card(written)
    assert sensitive.holds_card(f"paid with {PRINTED}, {written}")
    assert not sensitive.looks_like_card(digits[:-1] + str((int(digits[-1]) + 1) % 10))
