"""The operators' door: who may enter, what they can ask, and that a key is spent once."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import grpc
import psycopg
import pytest
from billing.scheduler.v1 import scheduler_pb2 as pb
from billing.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from google.protobuf import json_format

from services.scheduler.jobs import JOBS
from services.scheduler.loop import Loop
from shared import clock
from shared.config import RoomSettings
from shared.errors import (
    BillingError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from shared.rpc.client import open_channel
from tests.scheduler.conftest import Rooms

REQUESTS = {
    "ListJobs": pb.ListJobsRequest(),
    "ListRuns": pb.ListRunsRequest(),
    "RunJob": pb.RunJobRequest(idempotency_key="k", job="escalation"),
    "PauseJob": pb.PauseJobRequest(idempotency_key="k", job="escalation"),
    "ResumeJob": pb.ResumeJobRequest(idempotency_key="k", job="escalation"),
    "SetJobSchedule": pb.SetJobScheduleRequest(idempotency_key="k", job="escalation", deadline_seconds=5),
    "ListAlerts": pb.ListAlertsRequest(),
}


@pytest.mark.parametrize("method", REQUESTS)
async def test_only_operators_enter(address: str, settings: RoomSettings, rooms: Rooms, method: str) -> None:
    assert set(REQUESTS) == set(pb.DESCRIPTOR.services_by_name["SchedulerService"].methods_by_name)
    for key in (settings.gateway_secret, settings.room_secret):
        channel = open_channel(address, key)
        with pytest.raises(PermissionDenied):
            await getattr(pb_grpc.SchedulerServiceStub(channel), method)(REQUESTS[method])
        await channel.close()
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await getattr(pb_grpc.SchedulerServiceStub(channel), method)(REQUESTS[method])
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert rooms.asked == []
    assert Unauthenticated.code == error.value.code().name


async def test_jobs_are_listed_in_pages_with_next_tick_and_last_run(operator: Any, rooms: Rooms) -> None:
    await operator.RunJob(pb.RunJobRequest(idempotency_key="ticket-1", job="escalation"))
    listed: list[pb.Job] = []
    token = ""
    while True:
        page = await operator.ListJobs(pb.ListJobsRequest(page_size=4, page_token=token))
        assert len(page.jobs) <= 4
        listed += page.jobs
        token = page.next_page_token
        if not token:
            break
    assert [job.name for job in listed] == sorted(job.name for job in JOBS)
    escalation = next(job for job in listed if job.name == "escalation")
    assert list(escalation.calls) == [
        "billing.subscriptions.v1.SubscriptionsMaintenanceService/EscalatePastDue"
    ]
    assert escalation.last_run.outcome == pb.RUN_OUTCOME_SUCCEEDED
    next_at = escalation.next_at.ToDatetime(tzinfo=UTC)
    assert next_at > clock.now()
    assert (next_at.minute, escalation.schedule) == (0, "0 * * * *")


async def test_a_run_by_hand_answers_what_the_room_answered_and_its_key_starts_no_other(
    operator: Any, rooms: Rooms, admin: psycopg.Connection
) -> None:
    asked = pb.RunJobRequest(
        idempotency_key="ticket-7", job="escalation", dry_run=True, actor="asha", reason="runbook 6"
    )
    first = await operator.RunJob(asked)
    assert first.run.trigger == pb.RUN_TRIGGER_MANUAL
    assert first.run.outcome == pb.RUN_OUTCOME_SUCCEEDED
    assert first.run.dry_run is True
    assert json_format.MessageToDict(first.run.summary)["subscriptions.EscalatePastDue"] == {
        "outcome": "succeeded",
        "pastDue": 2,
        "reminders": 0,
        "autoDowngraded": 1,
        "trialsEnding": 0,
        "noticesSent": 0,
        "stillDue": 0,
        "steps": [],
        "alerts": 0,
    }
    again = await operator.RunJob(asked)
    assert (again.run, again.replayed, first.replayed) == (first.run, True, False)
    assert len(rooms.asked) == 1
    with pytest.raises(FailedPrecondition) as reused:
        await operator.RunJob(pb.RunJobRequest(idempotency_key="ticket-7", job="escalation"))
    assert (reused.value.reason, reused.value.metadata) == ("IDEMPOTENCY_KEY_REUSED", {"field": "dry_run"})
    audit = admin.execute(
        "SELECT actor_id, resource_id, metadata->>'reason', metadata->'after'->>'run_id'"
        " FROM ops.billing_audit_log WHERE action = 'job.run' ORDER BY created_at DESC LIMIT 1"
    ).fetchone()
    assert audit == ("asha", "escalation", "runbook 6", first.run.id)


async def test_ten_operators_with_one_key_start_one_run(operator: Any, rooms: Rooms) -> None:
    asked = pb.RunJobRequest(idempotency_key="one-key", job="escalation")
    answers = await asyncio.gather(*(operator.RunJob(asked) for _ in range(10)))
    assert len({answer.run.id for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 9
    assert len(rooms.asked) == 1


async def test_a_long_run_is_answered_as_running_goes_on_and_refuses_a_second_one(
    operator: Any, rooms: Rooms
) -> None:
    gate = rooms.wait_for["subscriptions.EscalatePastDue"] = asyncio.Event()
    asked = pb.RunJobRequest(idempotency_key="long", job="escalation")
    answer = await operator.RunJob(asked, timeout=1.0)
    assert answer.run.outcome == pb.RUN_OUTCOME_RUNNING
    with pytest.raises(FailedPrecondition) as refused:
        await operator.RunJob(pb.RunJobRequest(idempotency_key="second", job="escalation"))
    assert refused.value.reason == "JOB_RUNNING"
    assert refused.value.metadata == {"job": "escalation", "run_id": answer.run.id}
    running = await operator.ListRuns(pb.ListRunsRequest(outcome=pb.RUN_OUTCOME_RUNNING))
    assert [run.id for run in running.runs] == [answer.run.id]
    gate.set()
    ended = await operator.RunJob(asked)
    assert (ended.run.id, ended.run.outcome) == (answer.run.id, pb.RUN_OUTCOME_SUCCEEDED)
    after = await operator.RunJob(pb.RunJobRequest(idempotency_key="second", job="escalation"))
    assert after.run.id != answer.run.id, "a refusal spends no key"


async def test_runs_are_listed_newest_first_in_pages_and_by_outcome(operator: Any, rooms: Rooms) -> None:
    started = []
    for number in range(5):
        job = "escalation" if number % 2 else "deliver_webhooks"
        answer = await operator.RunJob(pb.RunJobRequest(idempotency_key=f"n{number}", job=job))
        started.append(answer.run.id)
    first = await operator.ListRuns(pb.ListRunsRequest(page_size=3))
    rest = await operator.ListRuns(pb.ListRunsRequest(page_size=3, page_token=first.next_page_token))
    assert [run.id for run in [*first.runs, *rest.runs]] == started[::-1]
    assert rest.next_page_token == ""
    unserved = await operator.ListRuns(pb.ListRunsRequest(outcome=pb.RUN_OUTCOME_UNIMPLEMENTED))
    assert {run.job for run in unserved.runs} == {"deliver_webhooks"}
    mine = await operator.ListRuns(pb.ListRunsRequest(job="escalation"))
    assert [run.id for run in mine.runs] == [started[3], started[1]]


async def test_pausing_stops_ticks_once_per_key_and_is_audited(
    operator: Any, loop: Loop, rooms: Rooms, admin: psycopg.Connection
) -> None:
    pause = pb.PauseJobRequest(idempotency_key="p1", job="escalation", actor="asha", reason="incident")
    assert await operator.PauseJob(pause) == pb.PauseJobResponse(changed=True)
    jobs = (await operator.ListJobs(pb.ListJobsRequest())).jobs
    paused = next(job for job in jobs if job.name == "escalation")
    assert paused.paused
    assert not paused.HasField("next_at")
    await loop.tick()
    await loop.drain()
    assert admin.execute("SELECT count(*) FROM job_runs WHERE job = 'escalation'").fetchone() == (0,)
    by_hand = await operator.RunJob(pb.RunJobRequest(idempotency_key="r1", job="escalation"))
    assert by_hand.run.outcome == pb.RUN_OUTCOME_SUCCEEDED
    resume = pb.ResumeJobRequest(idempotency_key="r1", job="escalation")
    assert await operator.ResumeJob(resume) == pb.ResumeJobResponse(changed=True)
    assert await operator.PauseJob(pause) == pb.PauseJobResponse(changed=True, replayed=True)
    assert admin.execute("SELECT paused FROM jobs WHERE name = 'escalation'").fetchone() == (False,)
    with pytest.raises(FailedPrecondition, match="another job"):
        await operator.PauseJob(pb.PauseJobRequest(idempotency_key="p1", job="reconcile"))
    await loop.tick()
    await loop.drain()
    assert rooms.keys("subscriptions.EscalatePastDue")[1:] == [
        f"job:escalation:{datetime.now(UTC).replace(minute=0, second=0, microsecond=0):%Y-%m-%dT%H:%M:%SZ}"
    ]
    audit = admin.execute(
        "SELECT action, actor_id, metadata FROM ops.billing_audit_log"
        " WHERE action IN ('job.pause', 'job.resume') ORDER BY created_at DESC LIMIT 2"
    ).fetchall()
    assert [row[:2] for row in audit] == [("job.resume", "operator"), ("job.pause", "asha")]
    assert audit[1][2] == {"before": {"paused": False}, "after": {"paused": True}, "reason": "incident"}


@pytest.mark.parametrize(
    ("method", "request_", "error", "says"),
    [
        ("RunJob", pb.RunJobRequest(idempotency_key="k", job="nobody"), NotFound, "UNKNOWN_JOB"),
        ("PauseJob", pb.PauseJobRequest(idempotency_key="k", job="nobody"), NotFound, "UNKNOWN_JOB"),
        ("ListRuns", pb.ListRunsRequest(job="nobody"), NotFound, "UNKNOWN_JOB"),
        ("RunJob", pb.RunJobRequest(job="escalation"), InvalidArgument, "idempotency_key"),
        ("RunJob", pb.RunJobRequest(idempotency_key="k"), InvalidArgument, "job"),
        ("ListRuns", pb.ListRunsRequest(page_size=-1), InvalidArgument, "page_size"),
        ("ListRuns", pb.ListRunsRequest(page_size=1001), InvalidArgument, "page_size"),
        ("ListRuns", pb.ListRunsRequest(page_token="%%%"), InvalidArgument, "page_token"),
        ("ListJobs", pb.ListJobsRequest(page_token="é"), InvalidArgument, "page_token"),
        ("ListRuns", pb.ListRunsRequest(outcome=99), InvalidArgument, "outcome"),
    ],
)
async def test_what_is_refused(
    operator: Any, rooms: Rooms, method: str, request_: Any, error: type[BillingError], says: str
) -> None:
    with pytest.raises(error) as refused:
        await getattr(operator, method)(request_)
    if isinstance(refused.value, InvalidArgument):
        assert [field for field, _ in refused.value.violations] == [says]
    else:
        assert (refused.value.reason, refused.value.metadata) == (says, {"job": "nobody"})
    assert rooms.asked == []


def test_every_refusal_is_in_the_contract() -> None:
    from services.scheduler import errors

    raised = {
        f"ERROR_REASON_{each.reason}"
        for each in vars(errors).values()
        if isinstance(each, type) and each.__module__ == errors.__name__
    }
    assert raised == set(pb.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
