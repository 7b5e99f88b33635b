"""A zoo of signed bodies that nobody can apply: each is set aside with a reason, and nobody waits behind it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from billing.webhooks.v1 import webhooks_admin_pb2 as admin

from shared.errors import BillingError, FailedPrecondition, InvalidArgument
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Running, charged

LETTERS = "SELECT * FROM webhook_dead_letter_queue ORDER BY reason, id"
CANARY = "canary-d41d8cd98f"
Change = Callable[[dict[str, Any]], None]


def payment(**fields: Any) -> Change:
    return lambda document: document["payload"]["payment"]["entity"].update(fields)


def subscription(**fields: Any) -> Change:
    return lambda document: document["payload"]["subscription"]["entity"].update(fields)


def top(**fields: Any) -> Change:
    return lambda document: document.update(fields)


def without(*path: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        del document[path[-1]]

    return change


# What is wrong, and what the dead letter says of it.
DOCUMENTS: list[tuple[Change, str]] = [
    (payment(amount="199900"), "money_not_integer"),
    (payment(amount=[199900]), "money_not_integer"),
    (payment(amount={"paise": 199900}), "money_not_integer"),
    (payment(amount=True), "money_not_integer"),
    (payment(amount=199900.0), "money_not_integer"),
    (payment(amount=-1), "money_negative"),
    (payment(amount=2**63), "money_absurd"),
    (payment(amount=10**4000), "money_absurd"),
    (payment(amount=None), "money_missing"),
    (payment(amount_refunded=CANARY), "money_not_integer"),
    (payment(id=17), "id_not_text"),
    (payment(id=None), "id_missing"),
    (payment(id=f"pay_\x00{CANARY}"), "id_malformed"),
    (payment(id=f"pay_\ud800{CANARY}"), "id_malformed"),
    (payment(id="pay_" + "x" * 300), "id_malformed"),
    (payment(created_at=-5), "time_malformed"),
    (payment(created_at=10**15), "time_malformed"),
    (payment(created_at=CANARY), "time_malformed"),
    (payment(created_at=1.5), "time_malformed"),
    (payment(order_id=[CANARY]), "id_not_text"),
    (subscription(paid_count=CANARY), "count_malformed"),
    (subscription(paid_count=2**64), "count_malformed"),
    (subscription(current_end={}), "time_malformed"),
    (subscription(customer_id=CANARY + " with blanks"), "id_malformed"),
    (top(created_at="yesterday"), "time_malformed"),
    (top(account_id=["acc"]), "id_not_text"),
    (top(event=None), "event_type_missing"),
    (top(event=["subscription.charged"]), "event_type_missing"),
    (without("event"), "event_type_missing"),
    (without("payload", "subscription"), "entity_missing"),
    (top(payload=None), "entity_missing"),
    (top(payload=[{"subscription": CANARY}]), "entity_missing"),
    (top(payload={"subscription": {"entity": CANARY}}), "entity_missing"),
]
DEEP = 100_000
BODIES: list[tuple[bytes, str]] = [
    (b"", "body_empty"),
    (b" \n ", "body_empty"),
    (b"null", "body_not_object"),
    (b"17", "body_not_object"),
    (b'"subscription.charged"', "body_not_object"),
    (b'[{"event":"subscription.charged"}]', "body_not_object"),
    (b'{"event":"subscription.charged"', "body_not_json"),
    (b'{"event":NaN}', "body_not_json"),
    (b'{"amount":' + b"9" * 1_000_000 + b"}", "body_not_json"),
    (b"\xef\xbb\xbf{}", "body_not_json"),
    ('{"event":"subscription.charged"}'.encode("utf-16"), "body_not_utf8"),
    (b'{"event":"\xff"}', "body_not_utf8"),
    (b'{"event":"subscription.\x00charged"}', "body_not_json or body_not_utf8"),
    (b"[" * DEEP + b"]" * DEEP, "body_too_deep"),
    (b'{"event":' * DEEP + b"1" + b"}" * DEEP, "body_too_deep"),
    (b'{"event":"subscription.charged","payload":{},"payload":[1]}', "entity_missing"),
    (b"{}", "event_type_missing"),
]


async def test_every_beast_is_set_aside_at_once_and_blocks_nobody(room: Running, tenant: str) -> None:
    expected = {}
    for number, (change, reason) in enumerate(DOCUMENTS):
        same = f"sub_{tenant}_{number}"
        document = json.loads(charged(tenant, subscription=same, payment=f"pay_{tenant}_{number}"))
        change(document)
        poison = json.dumps(document).encode()
        assert (await room.post(poison)).status_code == 200
        assert (await room.post(charged(tenant, subscription=same))).status_code == 200
        expected[hashlib.sha256(poison).hexdigest()] = reason
    for body, reason in BODIES:
        assert (await room.post(body)).status_code == 200
        expected[hashlib.sha256(body).hexdigest()] = reason

    rows = await room.settled(2 * len(DOCUMENTS) + len(BODIES), seconds=30)

    dead = {row["body_sha256"]: row for row in rows if row["outcome"] == "dead"}
    assert set(dead) == set(expected)
    for sha256, reason in expected.items():
        assert dead[sha256]["outcome_reason"] in reason.split(" or "), dead[sha256]
        assert dead[sha256]["retry_count"] == 1
    assert len(room.subscriptions.effects) == len(DOCUMENTS)
    letters = await room.rows(LETTERS)
    assert len(letters) == len(expected)
    assert all(letter["last_error"].startswith(letter["reason"]) for letter in letters)
    assert CANARY not in str(letters)


ODD_BUT_GOOD: list[Change] = [
    payment(notes=[CANARY] * 20_000),
    payment(notes={"\x00": "\ud800", "deep": {"er": [1]}, "number": 1e300}),
    payment(status={"captured": True}, method=17, error_code=[1]),
    payment(captured="yes", fee=10**4000, tax=-1.5),
    subscription(notes="tenant_id"),
    subscription(has_scheduled_changes="perhaps", payment_method=None),
    top(contains="everything", huge=list(range(100_000))),
    top(unknown={"nested": [[[[[[]]]]]]}),
]


async def test_what_is_only_odd_is_applied(room: Running, tenant: str) -> None:
    for number, change in enumerate(ODD_BUT_GOOD):
        document = json.loads(charged(tenant, payment=f"pay_{tenant}_{number}"))
        change(document)
        assert (await room.post(json.dumps(document).encode())).status_code == 200
    twice = charged(tenant, payment=f"pay_{tenant}_twice")[:-1] + b',"event":"subscription.charged"}'
    overflowing = charged(tenant, payment=f"pay_{tenant}_overflow")[:-1] + b',"ratio":1e400}'
    for body in (twice, overflowing):
        assert (await room.post(body)).status_code == 200

    rows = await room.settled(len(ODD_BUT_GOOD) + 2, seconds=30)

    assert [row["outcome"] for row in rows] == ["applied"] * len(rows)
    assert await room.rows(LETTERS) == []


@pytest.mark.parametrize("error", [FailedPrecondition, RuntimeError])
async def test_what_may_work_later_is_tried_ten_times_and_its_neighbours_are_not(
    start: Start, tenant: str, error: type[Exception]
) -> None:
    room = await start(webhooks_delivery_backoff_seconds=0.0002, webhooks_delivery_poll_seconds=0.02)

    async def crash(request: Any) -> None:
        if request.event.payment.id == f"pay_{tenant}_bad":
            raise error(f"{CANARY} of {request.event.payment.id}")

    room.subscriptions.before = crash
    same = f"sub_{tenant}"
    await room.post(charged(tenant, subscription=same, payment=f"pay_{tenant}_bad"))
    for number in range(10):
        await room.post(charged(tenant, subscription=same, payment=f"pay_{tenant}_{number}"))

    rows = await room.settled(11, seconds=30)

    attempts = [request.event.payment.id for request in room.subscriptions.requests]
    assert attempts.count(f"pay_{tenant}_bad") == 10
    assert len(attempts) == 20
    assert [row["outcome"] for row in rows] == ["dead"] + ["applied"] * 10
    [letter] = await room.rows(LETTERS)
    assert (letter["reason"], letter["retry_count"]) == ("attempts_exhausted", 10)
    assert CANARY not in str(letter)
    assert tenant in letter["tenant_id"]


async def test_a_refused_event_is_requeued_once_however_often_that_is_asked(
    room: Running, tenant: str
) -> None:
    async def refuse(_request: Any) -> None:
        raise InvalidArgument("no", violations=[("event.payment.id", CANARY)])

    room.subscriptions.before = refuse
    await room.post(charged(tenant))
    await room.settled(1)
    [letter] = await room.rows(LETTERS)
    room.subscriptions.before = None
    request = admin.RequeueDeadLettersRequest(
        idempotency_key=f"requeue-{tenant}",
        actor="asha@example.com",
        reason="mended",
        dead_letters=admin.DeadLetterIds(ids=[letter["id"]]),
    )

    answers = [await room.admin.RequeueDeadLetters(request) for _ in range(3)]
    [row] = await room.settled(1)

    assert [answer.requeued_count for answer in answers] == [1, 1, 1]
    assert (row["outcome"], len(room.subscriptions.effects)) == ("applied", 1)
    assert await room.rows(LETTERS) == []
    request.idempotency_key += "-again"
    with pytest.raises(BillingError) as refusal:
        await room.admin.RequeueDeadLetters(request)
    assert refusal.value.reason == "DEAD_LETTER_NOT_FOUND"
    assert len(room.subscriptions.requests) == 2
