"""What people are told: events once, what flaps seldom, a flood in a few messages, and nothing that a bad sink can harm."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from billing.maintenance.v1 import alert_pb2
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from services.scheduler import actions
from services.scheduler.actions import telling
from services.scheduler.clients import AlertSink, Maintenance
from services.scheduler.rules import Alert, Severity
from services.scheduler.store import alerts as alert_store
from shared.database import create_engine, transaction
from tests.scheduler import sinks
from tests.scheduler.conftest import Rooms
from tests.scheduler.sinks import Sink
from tests.scheduler.test_actions import NOON, alert, sink, tick

__all__ = ["sink"]
CALL, JOB = "ledger.SettleExpired", "settle_expired"
MINUTE = timedelta(minutes=1)


class Town:
    """The job that reports alerts, the sink that is told, and the time between them."""

    def __init__(self, engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, chat: Any) -> None:
        self._engine, self._maintenance, self._rooms, self._chat = engine, maintenance, rooms, chat
        self._sink = AlertSink(chat.url)
        self.now = NOON

    async def run(self, *reported: alert_pb2.Alert, after: timedelta = MINUTE) -> list[str]:
        """One run that reports these, later; answers what the sink was told then."""
        self.now += after
        self._rooms.alerts[CALL] = list(reported)
        await tick(self._engine, self._maintenance, JOB, self.now)
        return await self.tell()

    async def tell(self, *, per_minute: int = 600) -> list[str]:
        """Tell the sink; answers what."""
        known = len(self._chat.lines)
        await actions.tell_sink(self._engine, self._sink, now=self.now, per_minute=per_minute)
        lines: list[str] = self._chat.lines[known:]
        return lines


@pytest.fixture
def town(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, sink: Any, admin: psycopg.Connection
) -> Town:
    admin.execute("UPDATE jobs SET paused = name <> %s", [JOB])
    return Town(engine, maintenance, rooms, sink)


async def open_many(engine: AsyncEngine, count: int, *, now: datetime = NOON) -> None:
    """So many warnings and a critical alert, the last of all."""
    async with transaction(engine) as db:
        for number in range(count - 1):
            await alert_store.report(
                db, "a.Room", Alert(f"w{number}", Severity.WARNING, f"W{number}"), now=now
            )
        await alert_store.report(db, "a.Room", Alert("c", Severity.CRITICAL, "C"), now=now)


async def test_an_event_is_told_once_and_never_recovers(town: Town, admin: psycopg.Connection) -> None:
    downgraded = alert("downgraded:t1:7", tenant_id="t1", is_event=True)
    with capture_logs() as logged:
        assert await town.run(downgraded) == ["[critical] Title of downgraded:t1:7 (tenant t1)"]
        assert await town.run() == []
        assert await town.run(downgraded, after=timedelta(hours=1)) == []
        assert await town.run(alert("downgraded:t1:8", tenant_id="t1", is_event=True)) == [
            "[critical] Title of downgraded:t1:8 (tenant t1)"
        ]
        assert await town.run(after=timedelta(minutes=30)) == []

        assert admin.execute("SELECT count(*) FROM alerts WHERE recovered_at IS NULL").fetchone() == (2,)
        await actions.prune(town._engine, now=town.now + timedelta(days=2))
        assert admin.execute("SELECT count(*) FROM alerts WHERE recovered_at IS NULL").fetchone() == (0,)
        assert await town.run(downgraded, after=timedelta(days=2)) == []
    assert [line["event"] for line in logged if line["event"].startswith("alert")] == ["alert", "alert"]


async def test_events_of_a_run_are_kept_apart_from_what_holds(town: Town) -> None:
    held, happened = alert("held"), alert("happened:1", is_event=True)
    assert len(await town.run(held, happened)) == 2
    assert await town.run(held) == []
    assert await town.run() == ["[recovery] Title of held"]


async def test_a_key_that_was_a_condition_and_becomes_an_event_stops_no_job(
    town: Town, admin: psycopg.Connection
) -> None:
    assert len(await town.run(alert("same"))) == 1
    assert await town.run(alert("same", is_event=True)) == ["[recovery] Title of same"]
    assert await town.run(alert("same", is_event=True)) == ["[critical] Title of same"]
    assert await town.run(alert("same")) == []
    assert admin.execute("SELECT count(*) FROM job_runs WHERE outcome = 'failed'").fetchone() == (0,)


async def test_what_comes_and_goes_is_told_as_coming_back_once_and_as_over_when_it_stayed_away(
    town: Town, admin: psycopg.Connection
) -> None:
    five = timedelta(minutes=5)
    assert await town.run(alert("flaps")) == ["[critical] Title of flaps"]
    assert await town.run(after=five) == ["[recovery] Title of flaps"]
    [again] = await town.run(alert("flaps"), after=five)
    assert again.startswith("[critical] Title of flaps (it comes and goes; ")
    for _ in range(3):
        assert await town.run(after=five) == []
        assert await town.run(alert("flaps"), after=five) == []
    assert await town.run(after=five) == []
    assert await town.run(after=five) == []
    assert await town.run(after=five) == ["[recovery] Title of flaps"]
    assert await town.run(after=five) == []
    assert admin.execute("SELECT count(*), max(flaps) FROM alerts").fetchone() == (1, 4)

    assert await town.run(alert("flaps"), after=five) == ["[critical] Title of flaps"], "a new one"


async def test_a_flood_is_told_in_the_minutes_messages_and_loses_nothing(
    town: Town, engine: AsyncEngine, admin: psycopg.Connection
) -> None:
    await open_many(engine, 60)
    lines = await town.tell(per_minute=20)
    assert len(lines) == 20
    assert lines[0] == "[critical] C", "the most urgent first"
    assert lines[-1] == "… and 41 more (41 warning); billctl alerts"
    assert admin.execute("SELECT sent, count(*) FROM alerts GROUP BY 1 ORDER BY 2").fetchall() == [
        ("critical", 1),
        ("warning", 59),
    ]

    await open_many(engine, 90)  # thirty more
    assert await town.tell(per_minute=20) == [], "the minute is not over"
    admin.execute("UPDATE sink_posts SET posted_at = posted_at - interval '61 seconds'")
    assert (await town.tell(per_minute=20))[-1] == "… and 11 more (11 warning); billctl alerts"

    async with transaction(engine) as db:
        await alert_store.recover(db, "a.Room", still=["w1", "w2"], now=town.now)
    admin.execute("UPDATE sink_posts SET posted_at = posted_at - interval '61 seconds'")
    assert (await town.tell(per_minute=1)) == ["… and 88 more (88 recovery); billctl alerts"]
    assert admin.execute("SELECT count(*) FROM alerts WHERE sent = 'nothing'").fetchone() == (0,)


async def test_three_replicas_tell_each_alert_once_and_share_the_minute(
    database: Any, engine: AsyncEngine, sink: Any
) -> None:
    await open_many(engine, 40)
    replicas = [create_engine(database.url("scheduler_rw"), application_name=f"teller {n}") for n in range(3)]
    told = await asyncio.gather(
        *(actions.tell_sink(each, AlertSink(sink.url), now=NOON, per_minute=25) for each in replicas)
    )
    for each in replicas:
        await each.dispose()
    assert sum(told) == 40
    assert len(sink.lines) == len(set(sink.lines)) == 25
    assert sum("more" in line for line in sink.lines) == 1


async def test_a_minute_is_counted_when_nobody_else_posts(
    engine: AsyncEngine, sink: Any, admin: psycopg.Connection
) -> None:
    await open_many(engine, 3)
    with admin.transaction():
        admin.execute("LOCK TABLE sink_posts IN SHARE ROW EXCLUSIVE MODE")
        posting = asyncio.create_task(actions.tell_sink(engine, AlertSink(sink.url), now=NOON, per_minute=2))
        await asyncio.sleep(0.3)
        admin.execute("INSERT INTO sink_posts (id, alerts) VALUES ('pst_1', 1), ('pst_2', 1)")
    assert await posting == 0
    assert sink.lines == []


async def test_who_dies_before_it_notes_that_it_told_leaves_the_alert_to_be_told_again(
    engine: AsyncEngine, sink: Any, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_many(engine, 1)

    async def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(telling.alert_store, "mark_told", die)
        with pytest.raises(KeyboardInterrupt):
            await actions.tell_sink(engine, AlertSink(sink.url), now=NOON)
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 0, "not at once"
    admin.execute("UPDATE alerts SET next_attempt_at = next_attempt_at - interval '1 minute'")
    assert await actions.tell_sink(engine, AlertSink(sink.url), now=NOON) == 1
    assert sink.lines == ["[critical] C"] * 2


@pytest.mark.parametrize(
    "answer",
    [
        *(sinks.hangs, sinks.drips, sinks.redirects, sinks.fails, sinks.endless_headers),
        *(sinks.hangs_up, sinks.rambles),
    ],
    ids=lambda answer: answer.__name__,
)
async def test_what_a_bad_sink_does_not_take_comes_later(
    engine: AsyncEngine, admin: psycopg.Connection, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await open_many(engine, 5)
    async with Sink(sinks.takes) as elsewhere, Sink(answer) as bad:
        bad.elsewhere = elsewhere.url
        out = AlertSink(bad.url, timeout_seconds=0.3)
        async with asyncio.timeout(3):
            with capture_logs() as logged:
                assert await actions.tell_sink(engine, out, now=NOON) == 0
        assert (bad.requests, out.failures) == (1, 1), "one is enough to know"
        assert elsewhere.requests == 0, "nobody sends our alerts to another address"
        assert bad.secret not in str(logged) + caplog.text
        await out.close()

        admin.execute("UPDATE alerts SET next_attempt_at = now()")
        better = AlertSink(elsewhere.url)
        assert await actions.tell_sink(engine, better, now=NOON + timedelta(hours=2)) == 5


async def test_a_sink_that_never_stops_talking_is_not_listened_to(engine: AsyncEngine) -> None:
    await open_many(engine, 1)
    async with Sink(sinks.babbles) as bad:
        assert await actions.tell_sink(engine, AlertSink(bad.url), now=NOON) == 1
        await asyncio.sleep(0.2)
        sent = bad.sent
        await asyncio.sleep(0.2)
        assert sent == bad.sent < 20_000_000, "what fits into the sockets, and then nobody reads"


async def test_what_slack_would_read_as_a_command_is_text(engine: AsyncEngine) -> None:
    rude = Alert(
        "k", Severity.CRITICAL, "<!channel> R&D", evidence={"said": "<https://evil.example|here>\n\nnew line"}
    )
    long = Alert("l", Severity.WARNING, "Long", evidence={"said": "é" * 1_000_000})
    async with transaction(engine) as db:
        await alert_store.report(db, "a.Room", rude, now=NOON)
        await alert_store.report(db, "a.Room", long, now=NOON)
    async with Sink(sinks.takes) as good:
        assert await actions.tell_sink(engine, AlertSink(good.url), now=NOON) == 2
    first, second = (json.loads(body) for body in good.bodies)
    assert first == {
        "text": "[critical] &lt;!channel&gt; R&amp;D: said=&lt;https://evil.example|here&gt; new line"
    }
    assert len(second["text"]) == 3000


async def test_alerts_are_listed_by_tenant_newest_first_in_pages(
    operator: Any, town: Town, rooms: Rooms
) -> None:
    from billing.scheduler.v1 import scheduler_pb2 as pb

    await town.run(alert("a", tenant_id="t1", evidence={"x": "1"}), alert("b", tenant_id="t2"))
    await town.run(alert("b", tenant_id="t2"), alert("c:1", tenant_id="t1", is_event=True))

    async def listed(**asked: Any) -> list[pb.Alert]:
        found: list[pb.Alert] = []
        token = ""
        while True:
            page = await operator.ListAlerts(pb.ListAlertsRequest(page_size=1, page_token=token, **asked))
            found += page.alerts
            token = page.next_page_token
            if not token:
                return found

    assert [each.key for each in await listed()] == ["c:1", "b"]
    everything = await listed(include_recovered=True)
    assert everything[0].key == "c:1"
    assert {each.key for each in everything} == {"a", "b", "c:1"}
    [over] = [each for each in await listed(tenant_id="t1", include_recovered=True) if each.key == "a"]
    assert (over.source, over.severity, over.sent, over.reports) == (CALL, "critical", "recovery", 1)
    assert (over.is_event, dict(over.evidence)) == (False, {"x": "1"})
    assert over.recovered_at.ToDatetime(tzinfo=UTC) == town.now
    [event] = await listed(tenant_id="t1")
    assert (event.is_event, event.HasField("recovered_at"), event.sent) == (True, False, "critical")
