"""How webhooks leave: signed, retried on the measured ladder, twice or shuffled on request, never forgotten."""

import hashlib
import hmac
import io
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout, suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path

import pytest
import requests

from sandbox.state import catalogue
from sandbox.state.world import Journal, World
from sandbox.webhooks.sender import LADDER
from shared import clock
from tests.sandbox.conftest import Builder
from tests.sandbox.running import ROOT, WEBHOOK_SECRET, Received, Sandbox, listening, until


def signature(body: bytes, secret: str = WEBHOOK_SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def patient_sandbox(tmp_path: Path, url: str, scale: float) -> Sandbox:
    return Sandbox(
        SANDBOX_STATE=str(tmp_path / "state.jsonl"), SANDBOX_WEBHOOK_URL=url, SANDBOX_RETRY_SCALE=str(scale)
    )


def builder(sandbox: Sandbox) -> Builder:
    sdk = sandbox.sdk
    item = {"name": "Pro Monthly", "amount": 235_882, "currency": "INR"}
    return Builder(sandbox, sdk, sdk.plan.create({"period": "monthly", "interval": 1, "item": item}))


def status(sandbox: Sandbox) -> list[str]:
    return [delivery["status"] for delivery in sandbox.http.get("/_sandbox/deliveries").json()]


def test_a_registered_endpoint_receives_the_very_bytes_that_were_returned(a: Builder) -> None:
    with listening() as endpoint:
        a.sandbox.set("webhook_endpoint", url=endpoint.url, secret=WEBHOOK_SECRET)
        deliveries = a.sandbox.act(f"subscriptions/{a.subscription()}/pay", method="card", deliver=True)
        until(lambda: len(endpoint.received) == 7)

    assert [received.body for received in endpoint.received] == [each["body"] for each in deliveries]
    for received, delivery in zip(endpoint.received, deliveries, strict=True):
        sent = {name.lower(): value for name, value in delivery["headers"].items()}
        assert sent.items() <= received.headers.items()
        assert received.headers["x-razorpay-signature"] == signature(received.body)
        assert received.headers["accept-encoding"] == "gzip"


def test_deliver_false_sends_nothing(a: Builder) -> None:
    with listening() as endpoint:
        a.sandbox.set("webhook_endpoint", url=endpoint.url)
        a.sandbox.act(f"orders/{a.order()}/pay", method="upi", deliver=False)
        a.sandbox.act(f"orders/{a.order()}/fail", method="upi", deliver=True)
        until(lambda: endpoint.received)
        time.sleep(0.05)

    assert [received.event for received in endpoint.received] == ["payment.failed"]


def test_what_the_api_causes_is_told_too(a: Builder) -> None:
    subscription_id = a.paid_subscription()
    with listening() as endpoint:
        a.sandbox.set("webhook_endpoint", url=endpoint.url)
        a.sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": False})
        until(lambda: endpoint.received)

    told = json.loads(endpoint.received[0].body)
    assert told["event"] == "subscription.cancelled"
    assert told["payload"]["subscription"]["entity"]["cancel_initiated_by"] == "self"


def test_duplicates_and_reordering_come_on_request(a: Builder) -> None:
    with listening() as endpoint:
        a.sandbox.set("webhook_endpoint", url=endpoint.url)
        deliveries = a.sandbox.act(
            f"subscriptions/{a.subscription()}/pay", method="card", duplicates=1, shuffle=True, seed=7
        )
        until(lambda: len(endpoint.received) == 14)

    received = [each.event_id for each in endpoint.received]
    in_order = [each["event_id"] for each in deliveries]
    assert sorted(received) == sorted(in_order * 2)
    assert list(dict.fromkeys(received)) != in_order


def test_retries_climb_the_measured_ladder_with_one_event_id(tmp_path: Path) -> None:
    scale = 0.02
    with listening(lambda _: 500) as endpoint:
        sandbox = patient_sandbox(tmp_path, endpoint.url, scale)
        try:
            builder(sandbox).paid_order()
            until(lambda: len(endpoint.received) >= 15)
        finally:
            sandbox.close()

    captured = [received for received in endpoint.received if received.event == "payment.captured"]
    since = [received.at - captured[0].at for received in captured]
    assert len({(received.event_id, received.body) for received in captured}) == 1
    assert {received.headers["x-razorpay-signature"] for received in captured} == {
        signature(captured[0].body)
    }
    assert len(captured) >= 5
    for waited, step in zip(since[1:5], LADDER, strict=False):
        assert scale * step <= waited < scale * step + 0.25


def test_an_endpoint_that_never_accepts_is_disabled_until_somebody_registers_it_again(tmp_path: Path) -> None:
    with listening(lambda _: 400) as endpoint:
        sandbox = patient_sandbox(tmp_path, endpoint.url, 1e-6)
        try:
            a = builder(sandbox)
            a.sandbox.act(f"orders/{a.order()}/fail", method="upi")
            until(lambda: sandbox.http.get("/_sandbox/webhook_endpoint").json()["disabled"])
            attempts = len(endpoint.received)
            a.paid_order()
            silent = status(sandbox)
            endpoint.answer = lambda _: 200
            sandbox.set("webhook_endpoint", url=endpoint.url)
            a.paid_order()
            until(lambda: len(endpoint.received) == attempts + 3)
        finally:
            sandbox.close()

    # payment.failed waits for the slower tier: one step less than the sixteen of a capture.
    assert attempts == 15
    assert silent == ["abandoned", "missed", "missed", "missed"]


def test_a_retry_keeps_the_old_secret_and_a_replay_takes_the_new_one(tmp_path: Path) -> None:
    refuse = {"yes": True}

    def answer(_: Received) -> int:
        return 503 if refuse["yes"] else 200

    with listening(answer) as endpoint:
        sandbox = patient_sandbox(tmp_path, endpoint.url, 0.05)
        try:
            a = builder(sandbox)
            event_id = a.sandbox.act(f"orders/{a.order()}/fail", method="upi")[0]["event_id"]
            until(lambda: endpoint.received)
            sandbox.set("webhook_endpoint", url=endpoint.url, secret="the-new-secret")
            refuse["yes"] = False
            until(lambda: status(sandbox) == ["delivered"])
            sandbox.http.post(f"/_sandbox/deliveries/{event_id}/replay")
            until(lambda: len(endpoint.received) == 3)
        finally:
            sandbox.close()

    first, retried, replayed = endpoint.received
    assert first.body == retried.body == replayed.body
    assert {first.event_id, retried.event_id, replayed.event_id} == {event_id}
    assert retried.headers["x-razorpay-signature"] == signature(first.body)
    assert replayed.headers["x-razorpay-signature"] == signature(first.body, "the-new-secret")


@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "SIGTERM"])
def test_a_restart_loses_nothing(tmp_path: Path, kill: bool) -> None:
    refuse = {"yes": True}
    with listening(lambda _: 500 if refuse["yes"] else 200) as endpoint:
        sandbox = patient_sandbox(tmp_path, endpoint.url, 0.05)
        try:
            a = builder(sandbox)
            subscription_id = a.paid_subscription(notes={"name": "भूमि टेक — नई दिल्ली"})
            a.sdk.subscription.cancel(subscription_id, {"cancel_at_cycle_end": True})
            before = a.sdk.subscription.fetch(subscription_id)
            until(lambda: len(endpoint.received) >= 7)
            sandbox.restart(kill=kill)
            refuse["yes"] = False
            until(lambda: status(sandbox) == ["delivered"] * 7)

            assert a.sdk.subscription.fetch(subscription_id) == before
            assert a.sdk.plan.fetch(a.plan["id"]) == a.plan
            assert len(a.sdk.invoice.all({"subscription_id": subscription_id})["items"]) == 1
            assert len({received.event_id for received in endpoint.received}) == 7
        finally:
            sandbox.close()


def test_nothing_that_was_answered_is_lost_in_a_kill(tmp_path: Path) -> None:
    sandbox = Sandbox(SANDBOX_STATE=str(tmp_path / "state.jsonl"))
    answered: list[list[str]] = [[] for _ in range(4)]
    try:
        a = builder(sandbox)

        def ask(turn: int) -> None:
            with suppress(requests.RequestException), redirect_stdout(io.StringIO()):
                while True:
                    answered[turn].append(a.subscription())

        threads = [threading.Thread(target=ask, args=(turn,)) for turn in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: all(answered))
        sandbox.process.kill()
        for thread in threads:
            thread.join()
        sandbox.restart(kill=True)

        for subscription_id in chain.from_iterable(answered):
            assert a.sdk.subscription.fetch(subscription_id)["status"] == "created"
    finally:
        sandbox.close()


def test_a_torn_last_line_is_a_change_that_never_was(tmp_path: Path) -> None:
    journal = tmp_path / "state.jsonl"
    sandbox = Sandbox(SANDBOX_STATE=str(journal))
    try:
        a = builder(sandbox)
        first, second = a.subscription(), a.subscription()
        sandbox.process.kill()
        sandbox.process.wait(10)
        journal.write_bytes(journal.read_bytes()[:-20])
        sandbox.restart(kill=True)
        third = a.subscription()
        sandbox.restart(kill=True)

        ids = [item["id"] for item in a.sdk.subscription.all({})["items"]]
        assert ids == [third, first]
        assert second not in ids
    finally:
        sandbox.close()


def test_an_endpoint_gets_five_seconds_and_holds_up_nobody_meanwhile(a: Builder) -> None:
    woken = threading.Event()
    hung: list[Received] = []

    def answer(received: Received) -> int:
        if received.event == "payment.captured" and not hung:
            hung.append(received)
            woken.wait(60)
        return 200

    with listening(answer) as endpoint:
        a.sandbox.set("webhook_endpoint", url=endpoint.url)
        a.paid_order()
        until(lambda: len(endpoint.received) == 3, 4)
        until(lambda: len(endpoint.received) == 4, 30)
        woken.set()

    first, retried = (each for each in endpoint.received if each.event == "payment.captured")
    assert first.event_id == retried.event_id
    assert retried.at - first.at >= 5.1


def test_one_journal_has_one_owner(tmp_path: Path) -> None:
    first = Journal(tmp_path / "state.jsonl")

    with pytest.raises(RuntimeError, match="belongs to a sandbox that is running"):
        Journal(tmp_path / "state.jsonl")

    first.close()
    Journal(tmp_path / "state.jsonl").close()


def test_a_long_history_is_compacted_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    world = World(clock.now, account_id="acc", journal=Journal(path))
    item = {"name": "Pro", "amount": 235_882, "currency": "INR"}
    plan = catalogue.create_plan(world, {"period": "monthly", "interval": 1, "item": item})
    world.commit()
    for number in range(1_200):
        world.edit("plan", plan.entity["id"]).inner["turn"] = number
        world.commit()
    world.close()
    long = path.stat().st_size

    grown = World(clock.now, account_id="acc", journal=Journal(path))
    grown.compact()
    grown.close()
    again = World(clock.now, account_id="acc", journal=Journal(path))

    assert path.stat().st_size < long / 100
    assert again.get("plan", plan.entity["id"]).inner == {"turn": 1_199}
    again.close()


def test_the_sandbox_follows_the_test_clock(tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    clock.move_to(offset, timedelta())
    sandbox = Sandbox(BILLING_TEST_CLOCK=str(offset))
    try:
        a = builder(sandbox)
        subscription_id = a.paid_subscription()
        assert sandbox.act("tick") == []

        clock.move_to(offset, timedelta(days=32))
        told = sandbox.act("tick")

        assert [each["event"] for each in told][-1:] == ["subscription.charged"]
        assert told[-1]["parsed"]["created_at"] > time.time() + 31 * 86_400
        assert a.sdk.subscription.fetch(subscription_id)["paid_count"] == 2
    finally:
        sandbox.close()


def test_missing_settings_are_named_all_at_once() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "sandbox"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "SANDBOX_LISTEN": "nowhere"},
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert answer.returncode != 0
    for name in (
        "SANDBOX_LISTEN",
        "RAZORPAY_KEY_ID",
        "RAZORPAY_KEY_SECRET",
        "RAZORPAY_WEBHOOK_SECRET",
    ):
        assert name in answer.stderr
