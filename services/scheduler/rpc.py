"""The operators' door: request → plain values → one action → response."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from billing.scheduler.v1 import scheduler_pb2 as pb
from billing.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import actions
from services.scheduler.jobs import BY_NAME
from services.scheduler.rules import JobState, Kept, Outcome, Policy, Run, Trigger, next_tick
from shared import clock, paging
from shared.clock import Clock
from shared.rpc.context import remaining_seconds

JOBS_PAGE = 100
DEFAULTS = Policy()
# What RunJob keeps of the caller's deadline to answer that the run goes on.
ANSWER_SECONDS = 0.5
TRIGGERS = {Trigger.SCHEDULE: pb.RUN_TRIGGER_SCHEDULE, Trigger.MANUAL: pb.RUN_TRIGGER_MANUAL}
OUTCOMES = {
    None: pb.RUN_OUTCOME_RUNNING,
    Outcome.SUCCEEDED: pb.RUN_OUTCOME_SUCCEEDED,
    Outcome.FAILED: pb.RUN_OUTCOME_FAILED,
    Outcome.SKIPPED: pb.RUN_OUTCOME_SKIPPED,
    Outcome.UNIMPLEMENTED: pb.RUN_OUTCOME_UNIMPLEMENTED,
}
OUTCOME_WORDS = {value: "running" if word is None else word.value for word, value in OUTCOMES.items()}


class SchedulerService(pb_grpc.SchedulerServiceServicer):
    """Jobs and runs for operators."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        owner: str,
        start: Callable[[Run], asyncio.Task[None]],
        now: Clock = clock.now,
        policy: Policy = DEFAULTS,
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._start = start
        self._now = now
        self._policy = policy

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        after, limit = paging.position(request.page_token), request.page_size or JOBS_PAGE
        listed = await actions.list_jobs(self._engine, now=self._now())
        rest = [pair for pair in listed if after is None or pair[0].name > after]
        return pb.ListJobsResponse(
            jobs=[self._job(state, last) for state, last in rest[:limit]],
            next_page_token=paging.token(rest[limit - 1][0].name) if len(rest) > limit else "",
        )

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        limit = paging.size(request.page_size)
        runs = await actions.list_runs(
            self._engine,
            job=request.job or None,
            outcome=OUTCOME_WORDS.get(request.outcome),
            before=paging.position(request.page_token),
            limit=limit + 1,
        )
        return pb.ListRunsResponse(
            runs=[_run(run) for run in runs[:limit]],
            next_page_token=paging.token(runs[limit - 1].id) if len(runs) > limit else "",
        )

    async def RunJob(self, request: pb.RunJobRequest, context: Any) -> pb.RunJobResponse:
        run, replayed = await actions.claim_by_hand(
            self._engine,
            job=request.job,
            idempotency_key=request.idempotency_key,
            dry_run=request.dry_run,
            owner=self._owner,
            actor=request.actor,
            reason=request.reason,
            now=self._now(),
            lease=self._policy.lease,
        )
        ends_at = time.monotonic() + (remaining_seconds() or 0) - ANSWER_SECONDS
        if not replayed:
            # Ours to execute, so that its end need not be looked for.
            await asyncio.wait({self._start(run)}, timeout=max(0.0, ends_at - time.monotonic()))
        run = await actions.wait_for(self._engine, run, seconds=ends_at - time.monotonic())
        return pb.RunJobResponse(run=_run(run), replayed=replayed)

    async def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> pb.PauseJobResponse:
        changed, replayed = await self._set_paused(request, paused=True)
        return pb.PauseJobResponse(changed=changed, replayed=replayed)

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.ResumeJobResponse:
        changed, replayed = await self._set_paused(request, paused=False)
        return pb.ResumeJobResponse(changed=changed, replayed=replayed)

    async def SetJobSchedule(
        self, request: pb.SetJobScheduleRequest, context: Any
    ) -> pb.SetJobScheduleResponse:
        state, last, changed, replayed = await actions.set_schedule(
            self._engine,
            job=request.job,
            schedule=" ".join(request.schedule.split()) if request.schedule else None,
            deadline_seconds=request.deadline_seconds or None,
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
            now=self._now(),
        )
        return pb.SetJobScheduleResponse(job=self._job(state, last), changed=changed, replayed=replayed)

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:
        limit = paging.size(request.page_size)
        alerts = await actions.list_alerts(
            self._engine,
            tenant_id=request.tenant_id or None,
            with_recovered=request.include_recovered,
            before=paging.position(request.page_token),
            limit=limit + 1,
        )
        return pb.ListAlertsResponse(
            alerts=[_alert(alert) for alert in alerts[:limit]],
            next_page_token=paging.token(alerts[limit - 1].id) if len(alerts) > limit else "",
        )

    async def _set_paused(
        self, request: pb.PauseJobRequest | pb.ResumeJobRequest, *, paused: bool
    ) -> tuple[bool, bool]:
        return await actions.set_paused(
            self._engine,
            job=request.job,
            paused=paused,
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
        )

    def _job(self, state: JobState, last: Run | None) -> pb.Job:
        return pb.Job(
            name=state.name,
            schedule=state.schedule,
            calls=[target.path for target in BY_NAME[state.name].targets],
            deadline_seconds=int(state.deadline.total_seconds()),
            paused=state.paused,
            next_at=None if state.paused else _at(next_tick(state.schedule, self._now())),
            last_run=None if last is None else _run(last),
        )


def _run(run: Run) -> pb.Run:
    message = pb.Run(
        id=run.id,
        job=run.job,
        trigger=TRIGGERS[run.trigger],
        scheduled_for=_at(run.scheduled_for),
        started_at=_at(run.started_at),
        finished_at=None if run.finished_at is None else _at(run.finished_at),
        outcome=OUTCOMES[run.outcome],
        dry_run=run.dry_run,
        owner=run.owner,
        fence=run.fence,
    )
    json_format.ParseDict(dict(run.summary), message.summary)
    return message


def _alert(alert: Kept) -> pb.Alert:
    return pb.Alert(
        id=alert.id,
        source=alert.source,
        key=alert.key,
        severity=alert.severity,
        title=alert.title,
        tenant_id=alert.tenant_id or "",
        evidence=alert.evidence,
        reports=alert.reports,
        created_at=_at(alert.created_at),
        last_reported_at=_at(alert.last_reported_at),
        recovered_at=None if alert.recovered_at is None else _at(alert.recovered_at),
        is_event=alert.is_event,
        sent=alert.sent,
    )


def _at(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message
