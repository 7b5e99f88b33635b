"""Runbook 6: a tenant is past due for longer than the ladder allows and was not put on free."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from billctl.desk import Desk, refusal
from billctl.diagnosis import Diagnosis, Fact, NotDone, Order, Step, Verdict
from billctl.fixes import moves
from shared.errors import BillingError

STUCK = """
SELECT tenant_id, past_due_since,
       EXTRACT(epoch FROM NOW() - past_due_since) / 86400 AS days_past_due
FROM subscriptions
WHERE status = 'past_due'
  AND past_due_since < NOW() - INTERVAL '14 days'
ORDER BY past_due_since
LIMIT 200;
"""
RUNS = """
SELECT id, trigger, dry_run, scheduled_for, finished_at, outcome
FROM job_runs
WHERE job = 'escalation'
ORDER BY scheduled_for DESC
LIMIT 5;
"""
JOB = """
SELECT j.schedule, j.paused,
       (SELECT MAX(finished_at) FROM job_runs
        WHERE job = j.name AND outcome = 'succeeded' AND NOT dry_run) AS last_success,
       (SELECT MAX(finished_at) > NOW() - INTERVAL '2 hours' FROM job_runs
        WHERE job = j.name AND outcome = 'succeeded' AND NOT dry_run) AS lately
FROM jobs j
WHERE j.name = 'escalation';
"""
# A ladder belongs to a cycle: what was sent for an earlier one says nothing of this one.
NOTICES = """
SELECT n.tenant_id, n.kind, n.cycle_ref, n.cycle_ref = p.id || ':' || p.failing_paid_count AS this_cycle,
       n.sent_at, n.skipped_at, n.id
FROM billing_notifications n
JOIN subscriptions s USING (tenant_id)
LEFT JOIN provider_subscriptions p ON p.id = s.razorpay_subscription_id
WHERE n.tenant_id = ANY(%(tenants)s)
  AND n.kind IN ('past_due_day_1', 'past_due_day_3', 'past_due_day_7', 'auto_downgraded')
ORDER BY n.tenant_id, n.created_at DESC
LIMIT 400;
"""
LEFT = """
SELECT tenant_id, status
FROM subscriptions
WHERE tenant_id = ANY(%(tenants)s)
  AND status = 'past_due';
"""
JOB_NAME = "escalation"
CALL = "subscriptions.EscalatePastDue"


async def diagnose(desk: Desk) -> Diagnosis:
    """Who is stuck and how far the ladder got, whether the job runs, what it would do, and one run of it as the plan."""
    stuck, runs, job = await desk.rows(STUCK), await desk.rows(RUNS), await desk.rows(JOB)
    facts = [
        Fact("past due for more than 14 days", stuck, STUCK),
        Fact("the job", job, JOB),
        Fact("runs of escalation", runs, RUNS),
    ]
    following = _about_the_job(job)
    if not stuck:
        summary = "nobody is past due for longer than 14 days"
        return Diagnosis("escalation", Verdict.OK, summary, facts, next_steps=following)
    tenants = [row["tenant_id"] for row in stuck]
    notices = await desk.rows(NOTICES, tenants=tenants)
    broken = {row["tenant_id"] for row in notices if row["kind"] == "auto_downgraded" and row["this_cycle"]}
    would, why_not = await _would_do(desk)
    facts += [
        Fact("steps of the ladder that were taken", notices, NOTICES),
        Fact("what the job would do now", would, "SchedulerService.RunJob escalation, dry_run"),
    ]
    for tenant in sorted(broken):
        following.append(
            f"call an engineer about {tenant}: `auto_downgraded` is written for this cycle and the row still says"
            " past_due, so a run will not try again; give them the rows of `steps of the ladder` above"
        )
    following += [f"the job says no: {why_not}"] if why_not else []
    mendable = [tenant for tenant in tenants if tenant not in broken]
    plan = [_step(desk, mendable)] if mendable else []
    summary = f"{len(stuck)} tenant(s) are past due for longer than 14 days"
    if broken:
        summary += f", of whom {len(broken)} were downgraded in the notices only"
    return Diagnosis("escalation", Verdict.CRITICAL, summary, facts, plan, following)


def _step(desk: Desk, tenants: Sequence[str]) -> Step:
    async def act(order: Order) -> str:
        run = await moves.ran(desk, JOB_NAME, key=order.key(JOB_NAME), actor=order.actor, reason=order.told)
        left = [row["tenant_id"] for row in await desk.rows(LEFT, tenants=list(tenants))]
        if left:
            raise NotDone(
                f"{run.id} ran ({moves.told(run)}), and still past due: {', '.join(left)}."
                " Look again; what the ladder has not taken is for an engineer"
            )
        return f"{run.id} succeeded: {len(tenants)} tenant(s) are past due no more"

    does = f"run the escalation job now: {len(tenants)} tenant(s) should come to free"
    return Step(JOB_NAME, does, "subscriptions, billing_notifications", act)


async def _would_do(desk: Desk) -> tuple[list[Mapping[str, Any]], str]:
    """The steps of a dry run, and why there are none where the job did not answer."""
    try:
        # Nobody's change: the run is written down as one that did nothing.
        run = await moves.ran(
            desk, JOB_NAME, key=f"billctl:{uuid4().hex}", actor="billctl", reason="a look", dry_run=True
        )
    except (BillingError, NotDone) as error:
        return [], refusal(error) if isinstance(error, BillingError) else str(error)
    answer = moves.answers(run).get(CALL, {})
    steps: list[Mapping[str, Any]] = [
        {
            "tenant_id": step.get("tenantId"),
            "kind": step.get("kind"),
            "past_due_since": step.get("pastDueSinceAt"),
            "skipped": bool(step.get("skipped")),
        }
        for step in answer.get("steps", ())
        if isinstance(step, dict)
    ]
    return steps, ""


def _about_the_job(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["the scheduler never ran here: it makes its jobs when it starts"]
    [job] = rows
    if job["paused"]:
        return ["the job is paused: billctl jobs resume escalation"]
    if not job["lately"]:
        return ["no run succeeded for two hours: billctl jobs runs escalation; is the scheduler up?"]
    return []
