"""What operators do every day: plans of one step."""

from billing.ledger.v1 import ledger_admin_pb2 as ledger_pb
from billing.ledger.v1.ledger_admin_pb2_grpc import LedgerAdminServiceStub
from billing.scheduler.v1 import scheduler_pb2
from billing.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb
from billing.subscriptions.v1.subscriptions_admin_pb2_grpc import SubscriptionsAdminServiceStub

from billctl.desk import Desk
from billctl.diagnosis import Diagnosis, Fact, NotDone, Order, Step, Verdict
from billctl.looks import asking, checks, findings, jobs, lists
from billctl.screen import Screen, shown

CALL_SECONDS = 30.0


async def resolve_finding(desk: Desk, finding_id: str) -> Diagnosis:
    """Close a finding in somebody's name, in the room that opened it."""
    row = await findings.find(desk, finding_id)
    facts = [Fact("finding", [row], asking.typed(findings.ONE, {"finding": finding_id}))]
    if row["resolved_at"] is not None:
        words = f"{finding_id} was closed by {row['resolved_by']} at {shown(row['resolved_at'])}"
        return Diagnosis(finding_id, Verdict.OK, words, facts)
    step = closing(desk, finding_id, row["room"])
    means = checks.of(row["check_type"]).means
    note = "what is still wrong comes back with the next audit; billctl fix finding mends it first"
    return Diagnosis(
        finding_id, Verdict(row["severity"]), f"{row['check_type']} is open: {means}", facts, [step], [note]
    )


def closing(desk: Desk, finding_id: str, room: str) -> Step:
    """The step that closes a finding."""

    async def close(order: Order) -> str:
        now = await findings.find(desk, finding_id)
        if now["resolved_at"] is not None:
            return f"closed by {now['resolved_by']}"  # the audit saw that it is well
        if room == "ledger":
            ledger = desk.stub("ledger", LedgerAdminServiceStub)
            request = ledger_pb.ResolveFindingRequest(
                finding_id=finding_id,
                idempotency_key=order.key(f"resolve:{finding_id}"),
                actor=order.actor,
                description=order.told,
            )
            answer = await desk.ask(ledger.ResolveFinding, request, seconds=CALL_SECONDS)
        else:
            subscriptions = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
            asked = pb.ResolveFindingRequest(
                finding_id=finding_id,
                idempotency_key=order.key(f"resolve:{finding_id}"),
                actor=order.actor,
                reason=order.told,
            )
            answer = await desk.ask(subscriptions.ResolveFinding, asked, seconds=CALL_SECONDS)
        return f"closed by {answer.finding.resolved_by}"

    return Step(f"resolve:{finding_id}", f"close {finding_id}", f"{room}: billing_integrity_reports", close)


async def retry_task(desk: Desk, task_id: str) -> Diagnosis:
    """Ten attempts more, the first at once."""
    row = await lists.find_task(desk, task_id)
    facts = [Fact("task", [row], asking.typed(lists.TASK, {"task": task_id}))]
    if row["completed_at"] is not None:
        return Diagnosis(task_id, Verdict.OK, f"{task_id} was done at {shown(row['completed_at'])}", facts)
    state = "was given up" if row["abandoned_at"] else "waits for its next attempt"
    words = (
        f"{row['task_type']} {state} after {row['attempts']} attempts: {row['last_error'] or 'no error yet'}"
    )
    verdict = Verdict.CRITICAL if row["abandoned_at"] else Verdict.WARNING
    return Diagnosis(task_id, verdict, words, facts, [retrying(desk, task_id, row["task_type"])])


def retrying(desk: Desk, task_id: str, task_type: str) -> Step:
    """The step that attempts a task, and fails unless it is done then."""

    async def retry(order: Order) -> str:
        subscriptions = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
        request = pb.RetryReconciliationTaskRequest(
            task_id=task_id,
            idempotency_key=order.key(f"retry:{task_id}"),
            actor=order.actor,
            reason=order.told,
        )
        answer = await desk.ask(subscriptions.RetryReconciliationTask, request, seconds=CALL_SECONDS)
        row = await lists.find_task(desk, task_id)
        if row["completed_at"] is None:
            raise NotDone(f"it fails still: {row['last_error'] or answer.task.last_error}")
        return f"done at {shown(row['completed_at'])}"

    touches = "subscriptions, and the ledger or the provider that it is for"
    return Step(f"retry:{task_id}", f"attempt {task_type} {task_id} again", touches, retry)


async def resolve_task(desk: Desk, task_id: str) -> Diagnosis:
    """Close a task that was settled elsewhere."""
    row = await lists.find_task(desk, task_id)
    facts = [Fact("task", [row], asking.typed(lists.TASK, {"task": task_id}))]
    if row["completed_at"] is not None:
        return Diagnosis(task_id, Verdict.OK, f"{task_id} was done at {shown(row['completed_at'])}", facts)

    async def resolve(order: Order) -> str:
        subscriptions = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
        request = pb.ResolveReconciliationTaskRequest(
            task_id=task_id,
            idempotency_key=order.key(f"resolve:{task_id}"),
            actor=order.actor,
            reason=order.told,
        )
        await desk.ask(subscriptions.ResolveReconciliationTask, request, seconds=CALL_SECONDS)
        return "closed; nothing of it was done"

    step = Step(
        f"resolve:{task_id}",
        f"close {task_id} undone",
        "subscriptions: billing_reconciliation_queue",
        resolve,
    )
    note = "only when somebody settled it elsewhere: it is never attempted again"
    words = f"{row['task_type']} is open after {row['attempts']} attempts"
    return Diagnosis(task_id, Verdict.WARNING, words, facts, [step], [note])


async def run_job(desk: Desk, screen: Screen, job: str, *, actor: str, applying: bool) -> Diagnosis:
    """What a run would do, by the job's own dry run; the plan is the run itself."""
    await jobs.known(desk, job)

    async def really(order: Order) -> str:
        row = await jobs.run(
            desk, screen, job, key=order.key(f"run:{job}"), actor=order.actor, reason=order.told, dry=False
        )
        told = "; ".join(f"{call['call']}: {call['answer']}" for call in jobs.calls(row["summary"]))
        if row["outcome"] not in {"succeeded"}:
            raise NotDone(f"{row['id']} {row['outcome']}: {told}")
        return f"{row['id']} succeeded: {told}"

    step = Step(f"run:{job}", f"run {job} now", "what the job changes", really)
    if applying:
        return Diagnosis(job, Verdict.OK, f"{job} is run now", (), [step])
    row = await jobs.run(
        desk, screen, job, key=jobs.dry_key(), actor=actor or "billctl", reason="a look", dry=True
    )
    fact = Fact("what a run would do", jobs.calls(row["summary"]), "SchedulerService.RunJob with dry_run")
    if row["outcome"] != "succeeded":
        return Diagnosis(job, Verdict.WARNING, f"the dry run {row['outcome']}", [fact], [step])
    return Diagnosis(job, Verdict.OK, f"the dry run {row['id']} succeeded", [fact], [step])


async def pause_job(desk: Desk, job: str, *, pause: bool) -> Diagnosis:
    """Stop a job's ticks, or let them run again."""
    row = await jobs.known(desk, job)
    facts = [Fact("job", [row], jobs.DEADLINES)]
    if row["paused"] == pause:
        words = f"{job} is paused already" if pause else f"{job} is not paused"
        return Diagnosis(job, Verdict.OK, words, facts)

    async def act(order: Order) -> str:
        scheduler = desk.stub("scheduler", SchedulerServiceStub)
        who = {"job": job, "actor": order.actor, "reason": order.told}
        if pause:
            asked = scheduler_pb2.PauseJobRequest(idempotency_key=order.key(f"pause:{job}"), **who)
            await desk.ask(scheduler.PauseJob, asked, seconds=CALL_SECONDS)
            await _must_be(desk, job, paused=True)
            return "paused"
        request = scheduler_pb2.ResumeJobRequest(idempotency_key=order.key(f"resume:{job}"), **who)
        await desk.ask(scheduler.ResumeJob, request, seconds=CALL_SECONDS)
        await _must_be(desk, job, paused=False)
        return "resumed; of the ticks that passed the newest runs at once"

    verb = "pause" if pause else "resume"
    step = Step(f"{verb}:{job}", f"{verb} {job}", "scheduler: jobs", act)
    words = f"{job} runs at {row['schedule']}" if pause else f"{job} is paused: its ticks do not run"
    return Diagnosis(job, Verdict.OK if pause else Verdict.WARNING, words, facts, [step])


async def _must_be(desk: Desk, job: str, *, paused: bool) -> None:
    """A ticket's repeat changes nothing, also where somebody turned it round since."""
    if (await jobs.known(desk, job))["paused"] != paused:
        raise NotDone(f"this ticket did so before, and {job} was turned round since: use another ticket")


async def schedule_job(desk: Desk, job: str, schedule: str, deadline_seconds: int) -> Diagnosis:
    """Change when a job runs, or how long its calls may take."""
    row = await jobs.known(desk, job)
    facts = [Fact("job", [row], jobs.DEADLINES)]
    wanted = {
        "schedule": schedule or row["schedule"],
        "deadline_seconds": deadline_seconds or row["deadline_seconds"],
    }
    changes = [f"{name} {row[name]} → {value}" for name, value in wanted.items() if row[name] != value]
    if not changes:
        return Diagnosis(job, Verdict.OK, f"{job} is so already", facts)

    async def act(order: Order) -> str:
        scheduler = desk.stub("scheduler", SchedulerServiceStub)
        request = scheduler_pb2.SetJobScheduleRequest(
            idempotency_key=order.key(f"schedule:{job}"),
            job=job,
            schedule=schedule,
            deadline_seconds=deadline_seconds,
            actor=order.actor,
            reason=order.told,
        )
        answer = await desk.ask(scheduler.SetJobSchedule, request, seconds=CALL_SECONDS)
        if not answer.job.HasField("next_at"):
            return "changed; it is paused"
        return f"changed; the next tick is {answer.job.next_at.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"

    step = Step(f"schedule:{job}", f"{job}: {', '.join(changes)}", "scheduler: jobs", act)
    return Diagnosis(job, Verdict.OK, f"{job} runs at {row['schedule']}", facts, [step])
