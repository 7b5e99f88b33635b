"""Trouble at the ingress, from the refused request to the channel where people read: told once, and so is its end."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import actions
from services.scheduler.clients import AlertSink, Maintenance
from services.scheduler.rules import Outcome
from shared import clock
from shared.database import create_engine, transaction
from shared.ops.store import record_signature_failure
from shared.rpc.client import open_channel
from tests.scheduler.test_actions import sink, tick
from tests.webhooks.conftest import Start, db, start
from tests.webhooks.harness import Running, charged, eventually

__all__ = ["db", "sink", "start"]
NOON = datetime(2026, 11, 23, 12, 0, 5, tzinfo=UTC)
VERIFY = "/payment/verify"


class Watch:
    """The scheduler beside a real ingress: one look every five minutes, and what people were told."""

    def __init__(self, engine: AsyncEngine, maintenance: Maintenance, sink: Any) -> None:
        self._engine, self._maintenance, self._sink = engine, maintenance, sink
        self._now = NOON

    async def look(self, times: int = 1) -> list[str]:
        """The lines that came to the channel."""
        told = len(self._sink.lines)
        for _ in range(times):
            self._now += timedelta(minutes=5)
            run = await tick(self._engine, self._maintenance, "webhook_health", self._now)
            assert run.outcome is Outcome.SUCCEEDED
            await actions.tell_sink(self._engine, AlertSink(self._sink.url), now=self._now)
        lines: list[str] = self._sink.lines[told:]
        return lines


@pytest.fixture
async def room(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("BILLING_TEST_CLOCK", str(tmp_path / "clock"))
    clock.move_to(tmp_path / "clock", timedelta())
    return await start(deliver=False)


@pytest.fixture
async def watch(room: Running, engine: AsyncEngine, sink: Any) -> AsyncIterator[Watch]:
    async with open_channel(room.grpc_address, room.settings.room_secret) as channel:
        yield Watch(engine, Maintenance({"webhooks": channel}), sink)


@pytest.fixture
async def verifying(database: Any) -> AsyncIterator[AsyncEngine]:
    """The subscriptions room's own sessions, which record forged confirmations."""
    engine = create_engine(database.url("subscriptions_rw"), application_name="test_verifying")
    yield engine
    await engine.dispose()


async def refuse(room: Running, times: int) -> None:
    """Forged deliveries, recorded."""

    async def recorded() -> int:
        [row] = await room.rows("SELECT count(*) AS n FROM billing_signature_failures")
        return int(row["n"])

    before = await recorded()
    for _ in range(times):
        assert (await room.post(b"{}", secret="of somebody else")).status_code in (401, 429)

    async def all_of_them() -> bool:
        return await recorded() == before + times

    await eventually(all_of_them)


async def forge(engine: AsyncEngine, tenant: str, times: int) -> None:
    """Forged confirmations of one tenant, as the subscriptions room records them."""
    for number in range(times):
        async with transaction(engine) as session:
            await record_signature_failure(
                session,
                room="subscriptions",
                endpoint="/payment/verify",
                tenant_id=tenant,
                remote_ip="203.0.113.7",
                user_agent="curl/8.5.0",
                payload_id=f"pay_{number}",
            )


async def age(room: Running, by: timedelta) -> None:
    await room.db.execute("UPDATE billing_signature_failures SET created_at = created_at - %s", (by,))


async def test_fifteen_forged_deliveries_are_one_alert_and_one_recovery(room: Running, watch: Watch) -> None:
    await refuse(room, 5)
    assert await watch.look(2) == []

    await refuse(room, 1)
    [line] = await watch.look(3)
    assert line.startswith("[critical] Signature-failure spike on webhook: 6 in five minutes: ")
    await refuse(room, 9)
    assert await watch.look(4) == []

    await age(room, timedelta(minutes=59))
    assert await watch.look(2) == []
    await age(room, timedelta(minutes=2))
    [line] = await watch.look(3)
    assert line.startswith("[recovery] Signature-failure spike on webhook")

    await refuse(room, 10)
    assert [line.split("]")[0] for line in await watch.look(2)] == ["[critical"]


async def test_a_tenants_forged_confirmations_are_one_alert_beside_the_endpoints(
    room: Running, watch: Watch, verifying: AsyncEngine, tenant: str
) -> None:
    await forge(verifying, tenant, 12)
    [line] = await watch.look(2)
    assert line.startswith("[critical] Signature-failure spike: 12 in an hour for one tenant")
    assert tenant in line

    await forge(verifying, f"{tenant}_other", 5)
    assert await watch.look(2) == []
    await refuse(room, 10)
    [line] = await watch.look(2)
    assert "on webhook" in line


async def test_an_alert_has_one_row_for_as_long_as_it_holds(
    room: Running, watch: Watch, admin: psycopg.Connection
) -> None:
    await refuse(room, 20)
    await watch.look(5)
    rows = "SELECT key, severity, reports, recovered_at IS NULL FROM alerts WHERE key LIKE 'webhooks.%'"

    assert admin.execute(rows).fetchall() == [
        ("webhooks.signature_spike:endpoint:webhook", "critical", 5, True)
    ]
    await age(room, timedelta(hours=3))
    await watch.look(2)
    assert [row[3] for row in admin.execute(rows).fetchall()] == [False]


async def test_silence_is_one_warning_until_an_event_comes(
    room: Running, watch: Watch, tmp_path: Path
) -> None:
    """By the rooms' clock, wherever it stands."""
    file = tmp_path / "clock"
    clock.move_to(file, datetime(2027, 3, 1, 6, 30, tzinfo=UTC) - clock.now())  # a Monday, 12:00 in India
    await room.post(charged("somebody"))
    assert await watch.look() == []
    clock.move_to(file, clock.offset() + timedelta(minutes=31))
    [line] = await watch.look(3)
    assert line.startswith("[warning] No provider event for 31 minutes in business hours")

    clock.move_to(file, clock.offset() + timedelta(hours=12))  # at night
    assert await watch.look(3) == []
    clock.move_to(file, clock.offset() + timedelta(hours=12))
    await room.post(b"{}", secret="of somebody else")
    assert await watch.look(3) == []
    await room.post(charged("another"))
    [line] = await watch.look(3)
    assert line.startswith("[recovery] No provider event")
