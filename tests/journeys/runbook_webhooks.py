"""Incidents of the webhooks' room, and of the whole house, brought about in a running suite."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta

from shared import clock
from tests.journeys.runbook_operator import Given, Operator
from tests.journeys.test_hostile_deliveries import paid
from tests.journeys.test_kill import clients_of
from tests.webhooks.harness import sample

TENANT = "zenith"
FORGED = 12


async def a_signature_spike(operator: Operator) -> None:
    """Twelve deliveries that somebody signed with another secret, and one of the provider's."""
    for number in range(FORGED):
        assert await operator.post(b'{"n": %d}' % number, secret=b"not-the-secret") == 401
    await operator.until("SELECT count(*) FROM billing_signature_failures", FORGED)
    assert await operator.post(sample("payment.failed.json")) == 200
    await operator.until("SELECT count(*) FROM webhook_events WHERE NOT processed", 0)
    await operator.runs("webhook_health")


async def dead_letters(operator: Operator) -> Given:
    """A first charge that subscriptions could not take in while it was broken, and a body that is no JSON."""
    async with clients_of(operator.suite) as clients:
        bodies = await paid(clients, TENANT)
    operator.break_or_mend("ALTER TABLE subscriptions.processed_payment_events RENAME TO broken")
    try:
        began = datetime.now(UTC)
        for body in (*bodies, b'{"event": "subscription.cha'):
            assert await operator.post(body) == 200
        await operator.until("SELECT count(*) FROM webhook_dead_letter_queue", len(bodies) + 1)
    finally:
        operator.break_or_mend("ALTER TABLE subscriptions.broken RENAME TO processed_payment_events")
    [(charge,)] = operator.rows(
        "SELECT id FROM webhook_events WHERE event_type = 'subscription.charged' AND tenant_id = %s", TENANT
    )
    [(letter,)] = operator.rows("SELECT id FROM webhook_dead_letter_queue WHERE reason = 'body_not_json'")
    return {
        "evt_…": charge,
        "dead_…": letter,
        "2026-11-21T09:00:00Z": (began - timedelta(seconds=1)).isoformat(),
        "2026-11-21T10:00:00Z": (began + timedelta(hours=1)).isoformat(),
    }


async def silence(operator: Operator) -> None:
    """A Monday afternoon in India, forty minutes after the last event."""
    now = clock.now()
    monday = (now + timedelta(days=7 - now.weekday())).replace(hour=7, minute=0, second=0, microsecond=0)
    clock.move_to(operator.suite.clock, monday - now)
    assert await operator.post(sample("payment.authorized.json")) == 200
    await operator.until("SELECT count(*) FROM webhook_events WHERE NOT processed", 0)
    clock.move_to(operator.suite.clock, monday - now + timedelta(minutes=40))
    # The watch of every five minutes is due at once, and so is everything that days bring.
    await operator.until("SELECT count(*) FROM alerts WHERE key = 'webhooks.silence'", 1)
    await operator.until("SELECT count(*) FROM job_runs WHERE finished_at IS NULL", 0)


async def a_room_that_does_not_answer(operator: Operator) -> None:
    """The ledger's process hangs: it neither ends nor answers."""
    pid = operator.suite.pid("ledger")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)


def answers_again(operator: Operator) -> None:
    """Whatever held the room is over."""
    pid = operator.suite.pid("ledger")
    if pid is not None:
        os.kill(pid, signal.SIGCONT)
