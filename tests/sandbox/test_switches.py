"""The clock, the habits, draining, replays, and what is remembered."""

import json
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sandbox.state import charges, due
from sandbox.webhooks import outbox
from sandbox.webhooks.outbox import Outbox
from tests.sandbox.conftest import Builder
from tests.sandbox.running import WEBHOOK_SECRET, Received, Sandbox, listening
from tests.sandbox.test_deliveries import builder, patient_sandbox, signature, status
from tests.sandbox.test_lifecycle import Life, life

__all__ = ["life"]


def test_a_clock_of_its_own_moves_forward_and_survives_a_restart(tmp_path: Path) -> None:
    sandbox = Sandbox(SANDBOX_STATE=str(tmp_path / "state.jsonl"))
    try:
        a = builder(sandbox)
        subscription_id = a.paid_subscription()
        began = datetime.fromisoformat(sandbox.http.get("/_sandbox/clock").json()["now"])

        sandbox.set("clock", days=32, hours=1)
        charged = sandbox.act("tick")
        sandbox.restart(kill=True)
        moved = datetime.fromisoformat(sandbox.http.get("/_sandbox/clock").json()["now"])
        to = (moved + timedelta(days=1)).isoformat()
        reached = datetime.fromisoformat(sandbox.set("clock", to=to)["now"])

        assert charged[-1]["event"] == "subscription.charged"
        assert a.sdk.subscription.fetch(subscription_id)["paid_count"] == 2
        assert timedelta(days=32, hours=1) <= moved - began < timedelta(days=32, hours=1, minutes=1)
        assert timedelta(0) <= reached - datetime.fromisoformat(to) < timedelta(seconds=10)
        assert "does not go back" in sandbox.refusal("clock", days=-1)
        assert "time zone" in sandbox.refusal("clock", to="2036-01-01T00:00:00")
        assert "not by weeks" in sandbox.refusal("clock", weeks=1)
    finally:
        sandbox.close()


def test_a_clock_that_a_file_moves_is_not_moved_here(tmp_path: Path) -> None:
    (tmp_path / "offset").write_text("0")
    sandbox = Sandbox(BILLING_TEST_CLOCK=str(tmp_path / "offset"))
    try:
        assert "BILLING_TEST_CLOCK" in sandbox.refusal("clock", days=1)
    finally:
        sandbox.close()


def test_drain_answers_when_all_is_acknowledged(a: Builder) -> None:
    with listening() as endpoint:
        a.sandbox.set("webhook_endpoint", url=endpoint.url)
        for _ in range(10):
            a.paid_subscription()
        drained = a.sandbox.set("drain", timeout=10)

    assert drained == {"drained": True, "pending": 0, "disabled": False}
    assert len(endpoint.received) == 70
    by_subscription: dict[str, list[str]] = {}
    for received in endpoint.received:
        payload = json.loads(received.body)["payload"]
        if "payment" in payload:
            by_subscription.setdefault(payload["payment"]["entity"]["id"], []).append(received.event)
    # Subscriptions side by side, each in its order.
    in_order = ["payment.authorized", "payment.captured", "order.paid", "invoice.paid"]
    assert {tuple(events[:4]) for events in by_subscription.values()} == {tuple(in_order)}


def test_drain_says_when_patience_ran_out_and_hurry_skips_the_waiting(a: Builder) -> None:
    refused: list[Received] = []

    def refuse_once(received: Received) -> int:
        if received.event == "payment.failed" and not refused:
            refused.append(received)
            return 503
        return 200

    with listening(refuse_once) as endpoint:
        a.sandbox.set("webhook_endpoint", url=endpoint.url)
        a.sandbox.act(f"orders/{a.order()}/fail")
        # The slow tier waits six seconds.
        impatient = a.sandbox.set("drain", timeout=0.2)
        waiting = a.sandbox.http.get("/_sandbox/deliveries", params={"pending": 1}).json()
        began = time.monotonic()
        hurried = a.sandbox.set("drain", timeout=5, hurry=True)

    assert impatient == {"drained": False, "pending": 1, "disabled": False}
    assert [(each["event"], each["status"]) for each in waiting] == [("payment.failed", "retrying")]
    assert hurried["drained"]
    assert time.monotonic() - began < 3
    attempts = [attempt.get("status") for attempt in newest(a.sandbox, "payment.failed")["attempts"]]
    assert attempts == [503, 200]


def newest(sandbox: Sandbox, event: str) -> dict[str, Any]:
    listed = sandbox.http.get("/_sandbox/deliveries", params={"event": event, "bodies": 0}).json()
    found: dict[str, Any] = listed[-1]
    assert "body_base64" not in found
    return found


def test_habits_let_the_same_share_of_charges_fail_for_the_same_seed(life: Life) -> None:
    def year(seed: int) -> list[str]:
        due.set_habits(life.world, fail_share=0.4, seed=seed)
        subscription_id = life.subscribe(total_count=120)
        life.world.edit("subscription", subscription_id).inner["number"] = 7
        charges.pay(life.world, subscription_id, method="card")
        life.events()
        told: list[str] = []
        for _ in range(200):
            life.clock.at += timedelta(days=1)
            told += [event for event in life.tick() if event.startswith("subscription.")]
        life.clock.at -= timedelta(days=200)
        life.world.edit("subscription", subscription_id).entity["status"] = "cancelled"
        life.world.commit()
        return told

    first, again, other = year(1), year(1), year(2)

    assert first == again != other
    assert {"subscription.pending", "subscription.charged"} <= set(first)


def test_the_dashboards_replay_brings_what_was_missed_and_enables_again(tmp_path: Path) -> None:
    with listening(lambda _: 500) as endpoint:
        sandbox = patient_sandbox(tmp_path, endpoint.url, 1e-6)
        try:
            a = builder(sandbox)
            a.sandbox.act(f"orders/{a.order()}/fail")
            sandbox.set("drain", timeout=10)
            a.paid_order()
            before = status(sandbox)
            endpoint.answer = lambda _: 200
            endpoint.received.clear()
            sandbox.set("webhook_endpoint", url=endpoint.url, secret="new")
            replayed = sandbox.act("replay")
            sandbox.set("drain", timeout=10)
            more = [len(sandbox.act("replay")) for _ in range(4)]
            too_often = sandbox.refusal("replay")
        finally:
            sandbox.close()

    assert before == ["abandoned", "missed", "missed", "missed"]
    assert [each["event"] for each in replayed] == [received.event for received in endpoint.received]
    assert len(replayed) == 4
    assert {received.headers["x-razorpay-signature"] for received in endpoint.received} == {
        signature(received.body, "new") for received in endpoint.received
    }
    assert more == [0] * 4
    assert "5 times in 24 hours" in too_often


def test_one_event_nobody_wants_does_not_disable_the_endpoint(tmp_path: Path) -> None:
    def picky(received: Received) -> int:
        return 422 if received.event == "order.paid" else 200

    with listening(picky) as endpoint:
        sandbox = patient_sandbox(tmp_path, endpoint.url, 1e-5)
        try:
            a = builder(sandbox)
            a.paid_order()
            for _ in range(20):
                a.sandbox.act(f"orders/{a.order()}/fail")
            drained = sandbox.set("drain", timeout=20)
            statuses = {
                each["event"]: each["status"] for each in sandbox.http.get("/_sandbox/deliveries").json()
            }
        finally:
            sandbox.close()

    assert drained == {"drained": True, "pending": 0, "disabled": False}
    assert statuses["order.paid"] == "abandoned"
    assert statuses["payment.captured"] == "delivered"


def test_only_the_events_that_were_asked_for_are_sent(a: Builder, sdk: Any) -> None:
    with listening() as endpoint:
        a.sandbox.set("webhook_endpoint", url=endpoint.url, events=["subscription.charged"])
        a.paid_subscription()
        a.sandbox.set("drain", timeout=5)
        chosen = [received.event for received in endpoint.received]
        endpoint.received.clear()
        # What the API can do: create and list.
        made = sdk.webhook.create(
            {"url": endpoint.url, "secret": "of-the-api", "events": {"order.paid": True}}
        )
        a.paid_order()
        a.sandbox.set("drain", timeout=5)
        listed = sdk.webhook.all()["items"]
        a.sandbox.set("webhook_endpoint", url=endpoint.url, secret=WEBHOOK_SECRET)

    assert chosen == ["subscription.charged"]
    assert [received.event for received in endpoint.received] == ["order.paid"]
    assert endpoint.received[0].headers["x-razorpay-signature"] == signature(
        endpoint.received[0].body, "of-the-api"
    )
    assert listed == [made]


def test_without_a_secret_nothing_is_signed(a: Builder) -> None:
    with listening() as endpoint:
        a.sandbox.set("webhook_endpoint", url=endpoint.url, secret="")
        a.paid_order()
        a.sandbox.set("drain", timeout=5)
        a.sandbox.set("webhook_endpoint", url=None, secret=WEBHOOK_SECRET)

    assert len(endpoint.received) == 3
    assert not any("x-razorpay-signature" in received.headers for received in endpoint.received)


def test_any_other_event_can_be_told(a: Builder) -> None:
    link = {"id": "plink_1", "url": "https://rzp.io/i/1", "amount": 5, "name": "भूमि"}

    (told,) = a.sandbox.act("events", event="payment_link.paid", payload={"payment_link": link})
    (downtime,) = a.sandbox.act(
        "events", event="payment.downtime.started", payload={"payment.downtime": {"id": "down_1"}}
    )

    # Sorted keys, nothing escaped: the third of Razorpay's JSON writers.
    assert list(told["parsed"]) == sorted(told["parsed"])
    assert (
        '"entity":{"amount":5,"id":"plink_1","name":"भूमि","url":"https://rzp.io/i/1"}'.encode()
        in told["body"]
    )
    assert downtime["parsed"]["payload"] == {"payment.downtime": {"entity": {"id": "down_1"}}}
    assert a.sandbox.refusal("events", event="", payload={})
    assert a.sandbox.refusal("events", event="x", payload={"y": 1})


def test_what_is_remembered_is_bounded(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "KEPT_DELIVERIES", 20)
    monkeypatch.setattr(outbox, "_FORGOTTEN_AT_ONCE", 5)
    box = Outbox(life.world, url="http://127.0.0.1:9/", secret="s")
    waiting = None

    for number in range(100):
        life.world.emit("payment.failed", ["payment"], payment={"id": str(number)})
        (delivery,) = box.build(life.world.events(), deliver=number == 0)
        life.world.commit()
        waiting = waiting or delivery

    kept = box.all()
    assert len(kept) <= 26
    # What is still on its way is never forgotten.
    assert waiting
    assert kept[0].event_id == waiting.event_id
    assert json.loads(kept[-1].body)["payload"]["payment"]["entity"]["id"] == "99"
