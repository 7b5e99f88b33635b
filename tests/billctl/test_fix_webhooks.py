"""Runbooks 3 and 5 and the rotation of secrets as commands: each against its incident."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from billctl.fixes import backlog
from tests.billctl.conftest import Books
from tests.billctl.fixing import Fixer, begun, broken, delivered, provisioned, until
from tests.journeys.test_hostile_deliveries import paid
from tests.journeys.test_kill import clients_of
from tests.suite.running import RunningSuite

LETTERS = "SELECT COUNT(*) FROM webhook_dead_letter_queue"


@pytest.fixture(scope="module")
def fixer(suite: RunningSuite, books: Books) -> Fixer:
    return Fixer(suite, books)


async def test_dead_letters_are_requeued_and_what_nobody_can_read_is_left_to_a_person(
    fixer: Fixer, tenant: str
) -> None:
    async with clients_of(fixer.suite) as clients:
        bodies = await paid(clients, tenant)
    with broken(fixer):
        for body in (*bodies, f'{{"event": "{tenant}'.encode()):
            assert await delivered(fixer.suite, body) == 200
        await until(fixer.books, LETTERS, len(bodies) + 1)

    looked = await asyncio.to_thread(fixer.looked, "backlog", exit=3)
    done = await asyncio.to_thread(fixer.applied, "backlog", ticket=f"B-{tenant}")

    assert looked["verdict"] == "warning"
    assert [step["step"] for step in looked["plan"]] == ["requeue:attempts_exhausted"]
    assert any(step.startswith("1 body_not_json") for step in looked["next"])
    [unreadable] = fixer.books.rows("SELECT id FROM webhook_dead_letter_queue WHERE reason = 'body_not_json'")
    assert unreadable["id"] in json.dumps(looked)
    assert done["applied"][0]["result"] == f"{len(bodies)} requeued; nothing waits any more"
    assert fixer.books.rows(f"{LETTERS} WHERE reason = 'attempts_exhausted'") == [{"count": 0}]
    assert len(fixer.audited(f"B-{tenant}", "webhook.requeue")) == 1
    [row] = fixer.books.rows("SELECT plan_id FROM subscriptions WHERE tenant_id = %s", tenant)
    assert row["plan_id"] == "pro"
    again = await asyncio.to_thread(fixer.applied, "backlog", ticket=f"B-{tenant}", exit=3)
    assert (again["plan"], again["applied"]) == ([], [])
    fixer.by_hand("DELETE FROM webhooks.webhook_dead_letter_queue")
    assert (await asyncio.to_thread(fixer.looked, "backlog", exit=0))["verdict"] == "ok"


async def test_more_letters_than_one_call_takes_are_requeued_in_portions(
    fixer: Fixer, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "SELECTION_MAX", 2)
    monkeypatch.setattr(backlog, "PORTION", 2)
    async with clients_of(fixer.suite) as clients:
        bodies = await paid(clients, tenant)
    with broken(fixer):
        for body in bodies:
            assert await delivered(fixer.suite, body) == 200
        await until(fixer.books, LETTERS, len(bodies))
    assert len(bodies) > 2

    done = await asyncio.to_thread(fixer.applied_twice, "backlog", ticket=f"M-{tenant}")
    everything = ("--replay-since", "2020-01-01T00:00Z", "--replay-until", "2999-01-01T00:00Z")
    wide = await asyncio.to_thread(fixer.typed, "backlog", *everything)

    assert done["applied"][0]["result"] == f"{len(bodies)} requeued; nothing waits any more"
    assert len(fixer.audited(f"M-{tenant}", "webhook.requeue")) == -(-len(bodies) // 2)
    assert (wide.exit_code, "name smaller ranges" in wide.stderr) == (1, True)


async def test_dead_letters_that_nobody_can_read_are_given_up_one_by_one(fixer: Fixer, tenant: str) -> None:
    for number in range(3):
        assert await delivered(fixer.suite, f'{{"event": "{tenant}{number}'.encode()) == 200
    await until(fixer.books, LETTERS, 3)
    first, second, kept = (
        row["id"] for row in fixer.books.rows("SELECT id FROM webhook_dead_letter_queue ORDER BY id")
    )
    words = ("backlog", "--discard", first, "--discard", second)

    looked = await asyncio.to_thread(fixer.looked, *words, exit=3)
    done = await asyncio.to_thread(fixer.applied_twice, *words, ticket=f"G-{tenant}")
    unknown = await asyncio.to_thread(fixer.typed, "backlog", "--discard", kept, "--discard", "dead_none")
    both = fixer.typed("backlog", "--discard", kept, "--replay-since", "2026-01-01T00:00Z")

    assert len(looked["plan"]) == 1
    assert done["applied"][0]["result"] == "2 discarded"
    assert fixer.books.rows("SELECT id FROM webhook_dead_letter_queue") == [{"id": kept}]
    assert len(fixer.audited(f"G-{tenant}", "webhook.discard")) == 1
    assert (unknown.exit_code, "there is no dead letter dead_none" in unknown.stderr) == (1, True)
    assert both.exit_code == 2
    fixer.by_hand("DELETE FROM webhooks.webhook_dead_letter_queue")


async def test_a_range_is_delivered_once_more_under_its_ticket(fixer: Fixer, tenant: str) -> None:
    began = datetime.now(UTC)
    async with clients_of(fixer.suite) as clients:
        bodies = await paid(clients, tenant)
    for body in bodies:
        assert await delivered(fixer.suite, body) == 200
    await until(fixer.books, "SELECT COUNT(*) FROM webhook_events WHERE NOT processed", 0)
    window = [f"{began:%Y-%m-%dT%H:%M:%S.%fZ}", f"{began + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"]
    words = ("backlog", "--replay-since", window[0], "--replay-until", window[1])
    only = ("--event-type", "subscription.charged")

    looked = await asyncio.to_thread(fixer.looked, *words, *only, exit=3)
    for _ in range(2):
        done = await asyncio.to_thread(fixer.applied, *words, *only, ticket=f"R-{tenant}")
        assert done["applied"][0]["result"] == "1 replayed"

    assert "deliver 1 subscription.charged event(s)" in looked["plan"][0]["does"]
    [line] = fixer.audited(f"R-{tenant}", "webhook.replay")
    assert line["resource_id"]
    assert fixer.typed(*words[:3]).exit_code == 2


async def test_silence_asks_the_provider_for_what_it_did(fixer: Fixer, tenant: str) -> None:
    async with clients_of(fixer.suite) as clients:
        await provisioned(clients, tenant)
        subscription = await begun(clients, tenant, "pro")
        paid_unheard = await clients.sandbox.post(
            f"/_sandbox/subscriptions/{subscription}/pay", json={"method": "card", "deliver": False}
        )
    assert paid_unheard.status_code == 200
    fixer.by_hand(
        "INSERT INTO scheduler.alerts (id, source, key, severity, title, evidence, reports, created_at,"
        " last_reported_at) VALUES ('alr_' || %s, 'webhook_health', 'webhooks.silence', 'warning',"
        " 'No provider event', '{}', 1, now(), now())",
        tenant,
    )
    try:
        looked = await asyncio.to_thread(fixer.looked, "backlog", exit=3)
        done = await asyncio.to_thread(fixer.applied, "backlog", ticket=f"S-{tenant}")
    finally:
        fixer.by_hand("UPDATE scheduler.alerts SET recovered_at = now() WHERE key = 'webhooks.silence'")

    assert looked["verdict"] == "critical"
    assert [step["step"] for step in looked["plan"]] == ["sync_provider", "reconcile"]
    assert all(each["ok"] for each in done["applied"])
    assert any("dashboard" in step for step in looked["next"])
    await until(fixer.books, "SELECT plan_id FROM subscriptions WHERE tenant_id = %s", "pro", tenant)


# (rows of refusals: how many, endpoint, tenants, addresses, agent), whether deliveries go on, verdict, what is said
PATTERNS: dict[str, tuple[tuple[str, list[str | None], list[str | None], str], bool, str, str]] = {
    "strangers": (
        ("webhook", [None], ["198.51.100.7"], "curl/8"),
        True,
        "warning",
        "one stranger, 198.51.100.7",
    ),
    "our-secret": (
        ("webhook", [None], ["52.66.75.174", "52.66.76.63"], "Razorpay-Webhook/v1"),
        False,
        "critical",
        "the secret here is not the provider's",
    ),
    "a-stolen-key": (
        ("/payment/verify", ["zenith"], ["198.51.100.7", "198.51.100.8"], "curl/8"),
        True,
        "warning",
        "2 addresses in the name of zenith",
    ),
    "untold": (
        ("/payment/verify", ["zenith"], [None], "Mozilla/5.0"),
        True,
        "warning",
        "addresses that the product did not tell",
    ),
    "our-key": (
        ("/payment/verify", ["one", "two", "three"], ["10.0.0.1"], "Mozilla/5.0"),
        True,
        "critical",
        "our key or the page is wrong",
    ),
}


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_a_spike_of_refusals_is_told_for_what_it_is(fixer: Fixer, pattern: str) -> None:
    (endpoint, tenants, addresses, agent), goes_on, verdict, said = PATTERNS[pattern]
    fixer.by_hand("DELETE FROM ops.billing_signature_failures")
    fixer.by_hand("UPDATE webhooks.webhook_events SET received_at = received_at - interval '2 hours'")
    for number in range(12):
        fixer.by_hand(
            "INSERT INTO ops.billing_signature_failures"
            " (id, room, endpoint, tenant_id, remote_ip, user_agent, created_at)"
            " VALUES (%s, 'webhooks', %s, %s, %s, %s, now() - interval '10 minutes')",
            *(f"sig_{pattern}_{number}", endpoint, tenants[number % len(tenants)]),
            *(addresses[number % len(addresses)], agent),
        )
    if goes_on:
        assert await delivered(fixer.suite, f'{{"event": "x.{pattern}"}}'.encode()) == 200
        await until(fixer.books, "SELECT COUNT(*) FROM webhook_events WHERE NOT processed", 0)

    looked = await asyncio.to_thread(fixer.looked, "signatures", exit=3)

    assert (looked["verdict"], looked["plan"]) == (verdict, [])
    assert said in looked["summary"]
    assert looked["next"][-1].startswith("nothing of this is mended by a program")
    fixer.by_hand("DELETE FROM ops.billing_signature_failures")
    assert (await asyncio.to_thread(fixer.looked, "signatures", exit=0))["verdict"] == "ok"


# days since the last delivery by each secret, and how many days ago the first by the previous one was
STAGES = {
    "one-secret": ((0, None), 0, "one secret signs everything"),
    "ours-alone": ((None, 0), 3, "step 2, now"),
    "both": ((0, 0), 3, "step 3, watch"),
    "silent": ((0, 3), 3, "step 4 comes at"),
    "done": ((0, 10), 0, "step 4, if it was not done"),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_rotation_is_told_where_it_stands(fixer: Fixer, stage: str) -> None:
    (current, previous), status, said = STAGES[stage]
    fixer.by_hand("DELETE FROM webhooks.webhook_events WHERE account_id = 'rotating'")
    fixer.by_hand("UPDATE webhooks.webhook_events SET signed_with = 'current'")
    for secret, days in (("previous", previous), ("current", current)):
        if days is not None:
            fixer.by_hand(
                "INSERT INTO webhooks.webhook_events (id, provider, account_id, mode, body, body_sha256, request_id,"
                " received_at, processed, processed_at, outcome, outcome_reason, next_retry_at, signed_with)"
                " VALUES (%s, 'razorpay', 'rotating', 'live', '', encode(sha256(%s), 'hex'), 'req_1',"
                " now() - make_interval(days => %s, mins => %s), true, now(), 'applied', 'granted', NULL, %s)",
                *(f"evt_rot_{secret}", secret.encode(), days, 1 if secret == "previous" else 0, secret),
            )

    looked = await asyncio.to_thread(fixer.looked, "rotation", exit=status)

    assert looked["plan"] == []
    assert said in looked["summary"] + " ".join(looked["next"])
    fixer.by_hand("DELETE FROM webhooks.webhook_events WHERE account_id = 'rotating'")
