"""Runbook 6: a tenant is past due for longer than the ladder allows and was not put on free."""

from billing.scheduler.v1 import scheduler_pb2 as pb
from billing.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub

from billctl.desk import Desk
from billctl.diagnosis import Diagnosis, Fact, Order, Step, Verdict

STUCK = """
SELECT tenant_id, past_due_since,
       EXTRACT(epoch FROM NOW() - past_due_since) / 86400 AS days_past_due
FROM subscriptions
WHERE status = 'past_due'
  AND past_due_since < NOW() - INTERVAL '14 days'
ORDER BY past_due_since
LIMIT 50;
"""
RUNS = """
SELECT id, trigger, scheduled_for, finished_at, outcome
FROM job_runs
WHERE job = 'escalation'
ORDER BY scheduled_for DESC
LIMIT 5;
"""
SECONDS = 600


async def diagnose(desk: Desk) -> Diagnosis:
    """Who is stuck, whether the job ran, and one run of it as the plan."""
    stuck, runs = await desk.rows(STUCK), await desk.rows(RUNS)
    facts = [Fact("past due for more than 14 days", stuck, STUCK), Fact("runs of escalation", runs, RUNS)]
    if not stuck:
        return Diagnosis("escalation", Verdict.OK, "nobody is past due for longer than 14 days", facts)

    async def run(order: Order) -> str:
        scheduler = desk.stub("scheduler", SchedulerServiceStub)
        request = pb.RunJobRequest(
            idempotency_key=order.key("escalation"), job="escalation", actor=order.actor, reason=order.told
        )
        answer = await desk.ask(scheduler.RunJob, request, seconds=SECONDS)
        outcome = pb.RunOutcome.Name(answer.run.outcome).removeprefix("RUN_OUTCOME_").lower()
        return f"{answer.run.id} {outcome}"

    step = Step("escalation", "run the escalation job now", "subscriptions, billing_notifications", run)
    return Diagnosis(
        "escalation",
        Verdict.CRITICAL,
        f"{len(stuck)} tenant(s) are past due for longer than 14 days",
        facts,
        [step],
        ["afterwards: billctl health; if they are still past due, call an engineer with the rows above"],
    )
