"""Schedules that operators change: checked at the door, audited, taken up by everybody, and owing nothing from before."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from billing.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import actions
from services.scheduler.clients import Maintenance
from services.scheduler.loop import Loop
from shared.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.scheduler.conftest import Rooms

NOON = datetime(2026, 11, 20, 12, 0, 5, tzinfo=UTC)
LINES = (
    "SELECT action, actor_id, resource_id, metadata FROM ops.billing_audit_log"
    " WHERE room = 'scheduler' AND metadata ->> 'reason' = %s ORDER BY id"
)


def asked(key: str, *, job: str = "escalation", **values: Any) -> pb.SetJobScheduleRequest:
    """A change, for the ticket that is its key."""
    return pb.SetJobScheduleRequest(idempotency_key=key, job=job, actor="asha", reason=key, **values)


async def test_a_change_is_audited_and_its_repeat_changes_nothing(
    operator: Any, admin: psycopg.Connection
) -> None:
    request = asked("T-40", schedule=" */10  * * * * ", deadline_seconds=30)
    first = await operator.SetJobSchedule(request)
    assert (first.job.schedule, first.job.deadline_seconds) == ("*/10 * * * *", 30)
    assert (first.changed, first.replayed) == (True, False)
    assert first.job.next_at.ToDatetime().minute % 10 == 0

    await operator.SetJobSchedule(asked("T-41", deadline_seconds=40))
    again = await operator.SetJobSchedule(request)
    assert (again.job.schedule, again.job.deadline_seconds) == ("*/10 * * * *", 30), "the first answer"
    assert (again.changed, again.replayed) == (True, True)
    [job] = [job for job in (await operator.ListJobs(pb.ListJobsRequest())).jobs if job.name == "escalation"]
    assert (job.schedule, job.deadline_seconds) == ("*/10 * * * *", 40)

    assert admin.execute(LINES, ["T-40"]).fetchall() == [
        (
            "job.schedule",
            "asha",
            "escalation",
            {
                "before": {"schedule": "0 * * * *", "deadline_seconds": 600},
                "after": {"schedule": "*/10 * * * *", "deadline_seconds": 30},
                "reason": "T-40",
            },
        )
    ]
    same = await operator.SetJobSchedule(asked("T-42", schedule="*/10 * * * *"))
    assert (same.changed, same.replayed) == (False, False)


async def test_ten_operators_with_one_key_change_it_once(operator: Any, admin: psycopg.Connection) -> None:
    answers = await asyncio.gather(
        *(operator.SetJobSchedule(asked("T-50", schedule="1 * * * *")) for _ in range(10))
    )
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 9
    assert all(answer.changed for answer in answers)
    assert len(admin.execute(LINES, ["T-50"]).fetchall()) == 1


@pytest.mark.parametrize(
    "schedule",
    ["* * * *", "* * * * * *", "61 * * * *", "0 0 31 2 *", "@hourly", "x", " ", "*/0 * * * *", "5-1 * * * *"],
)
async def test_what_is_no_schedule_is_refused_by_name_and_spends_no_key(
    operator: Any, admin: psycopg.Connection, schedule: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await operator.SetJobSchedule(asked("T-60", schedule=schedule))
    if schedule.strip():
        assert refused.value.reason == "BAD_SCHEDULE"
    assert [field for field, _ in refused.value.violations] == ["schedule"]
    assert admin.execute(LINES, ["T-60"]).fetchall() == []
    assert admin.execute("SELECT count(*) FROM operator_requests").fetchone() == (0,)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "schedule"),
        ({"deadline_seconds": -1}, "deadline_seconds"),
        ({"deadline_seconds": 3601}, "deadline_seconds"),
        ({"schedule": "* " * 65}, "schedule"),
    ],
    ids=["nothing", "negative", "too long", "too much"],
)
async def test_what_the_door_refuses(operator: Any, values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await operator.SetJobSchedule(asked("T-61", **values))
    named = {
        name for violation in refused.value.violations for name in (violation[0], *violation[1].split(":"))
    }
    assert field in named


async def test_a_key_is_for_one_change(operator: Any) -> None:
    await operator.SetJobSchedule(asked("T-70", schedule="1 * * * *"))
    for other, field in (
        (asked("T-70", schedule="2 * * * *"), "schedule"),
        (asked("T-70", schedule="1 * * * *", deadline_seconds=9), "deadline_seconds"),
        (asked("T-70", schedule="1 * * * *", job="cleanup"), "job"),
    ):
        with pytest.raises(FailedPrecondition) as reused:
            await operator.SetJobSchedule(other)
        assert (reused.value.reason, reused.value.metadata) == ("IDEMPOTENCY_KEY_REUSED", {"field": field})
    with pytest.raises(FailedPrecondition):
        await operator.PauseJob(pb.PauseJobRequest(idempotency_key="T-70", job="escalation"))
    with pytest.raises(NotFound):
        await operator.SetJobSchedule(asked("T-71", schedule="1 * * * *", job="nobody"))


async def test_another_schedule_begins_with_its_next_tick_at_every_replica_and_after_a_restart(
    engine: AsyncEngine, maintenance: Maintenance, rooms: Rooms, admin: psycopg.Connection
) -> None:
    admin.execute("UPDATE jobs SET paused = name <> 'settle_expired'")
    moment = NOON
    replicas = [Loop(engine, maintenance, sink=None, now=lambda: moment) for _ in range(2)]

    async def look() -> list[str]:
        known = len(rooms.asked)
        for each in replicas:
            await each.tick()
            await each.drain()
        return [key[-9:-4] for _, key, _ in rooms.asked[known:]]

    async def schedule(text: str) -> None:
        await actions.set_schedule(
            engine,
            job="settle_expired",
            schedule=text,
            deadline_seconds=None,
            idempotency_key=text,
            actor="asha",
            reason="",
            now=moment,
        )

    assert await look() == ["12:00"]
    await schedule("30 * * * *")
    assert await look() == [], "11:30 is not owed"
    moment += timedelta(minutes=29)
    assert await look() == []
    await actions.prepare(engine)
    replicas.append(Loop(engine, maintenance, sink=None, now=lambda: moment))
    moment += timedelta(minutes=1)
    assert await look() == ["12:30"]
    await schedule("*/5 * * * *")
    assert await look() == []
    moment += timedelta(minutes=3)
    await schedule("32 * * * *")
    assert await look() == [], "12:32 is newer than the last tick, and older than the change"
    await schedule("*/5 * * * * ")
    moment += timedelta(minutes=2)
    assert await look() == ["12:35"]
    moment += timedelta(minutes=55)
    assert await look() == ["13:30"], "of those missed the newest"
    await schedule("* * * * *")
    moment -= timedelta(days=90)
    assert await look() == ["13:30"], "the clock was turned back: time goes on from here"
