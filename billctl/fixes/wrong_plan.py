"""Runbook 4: a customer is on the wrong plan, or says so."""

from collections.abc import Mapping, Sequence
from typing import Any

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb
from billing.subscriptions.v1 import subscriptions_pb2 as standing_pb

from billctl.desk import Desk
from billctl.diagnosis import Diagnosis, Fact, NotDone, Order, Step, Verdict
from billctl.fixes import double_charge, moves

ROW = """
SELECT tenant_id, plan_id, pending_plan_id, pending_billing_cycle,
       razorpay_subscription_id, pending_razorpay_subscription_id, status
FROM subscriptions
WHERE tenant_id = %(tenant)s;
"""
SERVICES = """
SELECT service_code, limits
FROM tenant_services
WHERE tenant_id = %(tenant)s
ORDER BY service_code;
"""
# Add-ons and overrides are the good reasons for a difference.
LIMITS = """
SELECT l.service_id || '.' || l.limit_key AS "limit", l.value AS of_plan,
       ts.limits -> l.limit_key -> 'limit' AS enforced,
       (SELECT string_agg(o.value::text, ', ') FROM tenant_overrides o
        WHERE o.tenant_id = s.tenant_id AND o.service_id = l.service_id AND o.limit_key = l.limit_key
          AND o.removed_at IS NULL AND (o.expires_at IS NULL OR o.expires_at > NOW())) AS override,
       (SELECT string_agg(a.addon_id || ' x' || a.units, ', ') FROM tenant_addons a
        JOIN addon_catalog c ON c.id = a.addon_id
        WHERE a.tenant_id = s.tenant_id AND a.status IN ('active', 'canceling')
          AND c.service_id = l.service_id AND c.limit_key = l.limit_key) AS addons
FROM subscriptions s
JOIN plan_service_limits l ON l.plan_id = s.plan_id
LEFT JOIN tenant_services ts ON ts.tenant_id = s.tenant_id AND ts.service_code = l.service_id
WHERE s.tenant_id = %(tenant)s
ORDER BY 1;
"""
# What was built for the tenant and what the ledger has of it; nothing while it is on its way.
STALE = """
WITH built AS (
    SELECT (e ->> 'serviceCode') || '.' || (l ->> 'key') AS "limit", NULLIF(l -> 'value', 'null') AS built
    FROM subscriptions s
    CROSS JOIN jsonb_array_elements(s.entitlements) AS e
    CROSS JOIN jsonb_array_elements(e -> 'limits') AS l
    WHERE s.tenant_id = %(tenant)s
), held AS (
    SELECT ts.service_code || '.' || each.key AS "limit", NULLIF(each.value -> 'limit', 'null') AS enforced
    FROM tenant_services ts
    CROSS JOIN jsonb_each(ts.limits) AS each
    WHERE ts.tenant_id = %(tenant)s
)
SELECT "limit", built, enforced
FROM built
FULL JOIN held USING ("limit")
WHERE built IS DISTINCT FROM enforced
  AND NOT EXISTS (SELECT FROM billing_reconciliation_queue q
                  WHERE q.tenant_id = %(tenant)s AND q.task_type = 'push_entitlements' AND q.completed_at IS NULL)
ORDER BY "limit";
"""
TRANSACTIONS = """
SELECT amount, reason, description, created_at
FROM credit_transactions
WHERE tenant_id = %(tenant)s
  AND created_at > NOW() - INTERVAL '7 days'
ORDER BY created_at DESC
LIMIT 20;
"""
EVENTS = """
SELECT event_type, outcome, reason, razorpay_subscription_id, occurred_at, processed_at
FROM processed_payment_events
WHERE tenant_id = %(tenant)s
ORDER BY processed_at DESC
LIMIT 20;
"""
BESIDE = "RPC SubscriptionsAdminService.DiagnoseTenant"
TERMS = {
    "RebuildEntitlements": "its limits are stale",
    "PromotePendingChange": "its change is paid and not made",
}


async def diagnose(desk: Desk, tenant_id: str) -> Diagnosis:
    """Which of the runbook's four cases it is, by our books, the ledger's and the provider's word."""
    told = await moves.diagnose_tenant(desk, tenant_id)
    found = {
        sql: await desk.rows(sql, tenant=tenant_id)
        for sql in (ROW, LIMITS, SERVICES, STALE, TRANSACTIONS, EVENTS)
    }
    facts = [
        Fact("in our books", found[ROW], ROW),
        Fact("subscriptions at the provider", [_view(view) for view in told.theirs], BESIDE),
        Fact("where we differ", [_difference(each) for each in told.differences], BESIDE),
        Fact("limits of the plan, and those enforced", found[LIMITS], LIMITS),
        Fact("what the ledger holds", found[SERVICES], SERVICES),
        Fact("limits that are stale", found[STALE], STALE),
        Fact("credits of seven days", found[TRANSACTIONS], TRANSACTIONS),
        Fact("events of the provider", found[EVENTS], EVENTS),
    ]
    lost = [f"if credits were lost: billctl fix double-charge {tenant_id} --credits N"]
    if told.provider_unavailable:
        summary = "the provider does not answer, so nobody knows what was paid"
        again = f"billctl fix wrong-plan {tenant_id}, when it answers again: https://status.razorpay.com"
        return Diagnosis(tenant_id, Verdict.UNKNOWN, summary, facts, next_steps=[again])
    if await moves.ledger_is_silent(desk):
        summary = "the ledger does not answer, so nobody knows what the tenant was given"
        return Diagnosis(tenant_id, Verdict.UNKNOWN, summary, facts, next_steps=["billctl health"])
    stale = [row["limit"] for row in found[STALE]]
    plan = _plan(desk, tenant_id, told, stale)
    unpaid = await moves.unpaid_plan(desk, tenant_id)
    facts.append(Fact("a plan that nobody pays for", [{"plan_id": unpaid}] if unpaid else [], moves.UNPAID))
    if unpaid and {step.name for step in plan} <= {f"rebuild:{tenant_id}"}:
        words = f"the row says {unpaid}, which costs something, and no subscription pays for it"
        person = (
            "call an engineer: the row was edited by hand, or its subscription was lost; push nothing of it"
        )
        return Diagnosis(
            tenant_id, Verdict.CRITICAL, words, facts, next_steps=[*_for_people(tenant_id, told), person]
        )
    following = [*_for_people(tenant_id, told), *lost]
    if plan:
        plan.append(_look_again(desk, tenant_id))
        return Diagnosis(tenant_id, Verdict.CRITICAL, _why(told, stale), facts, plan, following)
    if unclaimed := _unclaimed(told):
        words = f"paid for {', '.join(sorted(unclaimed))}, which our books do not rely on"
        return Diagnosis(tenant_id, Verdict.CRITICAL, words, facts, next_steps=following)
    if any(_matters(each) for each in told.differences):
        return Diagnosis(tenant_id, Verdict.WARNING, _why(told, stale), facts, next_steps=following)
    return Diagnosis(tenant_id, Verdict.OK, _explained(told), facts, next_steps=following)


def _plan(desk: Desk, tenant_id: str, told: pb.DiagnoseTenantResponse, stale: Sequence[str]) -> list[Step]:
    """One step for each different command that the room names; limits come last, for a plan brings its own."""
    wanted: dict[str, None] = {}
    for each in told.differences:
        method, request = moves.named(each.next_command)
        if method == "RetryReconciliationTask":
            wanted.setdefault(f"retry:{request['taskId']}")
        elif method in {"PromotePendingChange", "RunJob", "RebuildEntitlements"}:
            wanted.setdefault(method)
    steps = [_promote(desk, tenant_id)] if "PromotePendingChange" in wanted else []
    if "RunJob" in wanted:
        comparing = "ask the provider about every subscription, and queue what differs"
        steps.append(moves.run_job(desk, "sync_provider", comparing, "reads the provider; tasks"))
        steps.append(
            moves.run_job(desk, "reconcile", "apply what was queued", "subscriptions, ledger, provider")
        )
    steps += [_retry(desk, each.removeprefix("retry:")) for each in wanted if each.startswith("retry:")]
    if stale or "RebuildEntitlements" in wanted:
        steps.append(_rebuild(desk, tenant_id))
    return steps


def _promote(desk: Desk, tenant_id: str) -> Step:
    async def act(order: Order) -> str:
        return await moves.promote(desk, tenant_id, order)

    does = "make the pending change real, after the room asked the provider whether it is paid"
    return Step(f"promote:{tenant_id}", does, "subscriptions, tenant_services, credits of the new plan", act)


def _retry(desk: Desk, task_id: str) -> Step:
    async def act(order: Order) -> str:
        return await moves.retry_task(desk, task_id, order)

    return Step(f"retry:{task_id}", f"try {task_id} again", "what the task owes: ledger or provider", act)


def _rebuild(desk: Desk, tenant_id: str) -> Step:
    async def act(order: Order) -> str:
        return await moves.rebuild_entitlements(desk, tenant_id, order)

    does = "build the limits of its plan anew and push them to the ledger"
    return Step(f"rebuild:{tenant_id}", does, "subscriptions, tenant_services", act)


def _look_again(desk: Desk, tenant_id: str) -> Step:
    async def act(order: Order) -> str:
        told = await moves.diagnose_tenant(desk, tenant_id)
        if told.provider_unavailable:
            raise NotDone("the provider does not answer any more, so what is left is not known")
        if await moves.ledger_is_silent(desk):
            raise NotDone("the ledger does not answer any more, so what is left is not known")
        left = [f"{each.field} ({each.ours} / {each.theirs})" for each in told.differences if _matters(each)]
        left += [f"{row['limit']} is stale" for row in await desk.rows(STALE, tenant=tenant_id)]
        if left:
            raise NotDone(
                f"still different: {'; '.join(left)}. Look again in a minute, then call an engineer"
            )
        return _agreed(told)

    return Step(f"look:{tenant_id}", "diagnose again: nothing differs", "nothing", act)


def _unclaimed(told: pb.DiagnoseTenantResponse) -> set[str]:
    """Subscriptions that are paid and that nobody relies on, where the tenant pays with nothing else."""
    going = [view for view in told.theirs if view.status not in double_charge.ENDED]
    if any(view.role != "orphan" for view in going):
        return set()
    return {view.subscription_id for view in going if view.paid_count > 0}


def _matters(each: pb.Difference) -> bool:
    """Whether a difference is about what the tenant has; the others belong to runbook 1, or mend themselves."""
    return each.field not in {"orphan", "open_task", "charged_after_end", "payment_without_grant"}


def _why(told: pb.DiagnoseTenantResponse, stale: Sequence[str]) -> str:
    methods = [moves.named(each.next_command)[0] for each in told.differences]
    methods += ["RebuildEntitlements"] if stale else []
    words = [word for method, word in TERMS.items() if method in methods]
    if "RunJob" in methods:
        missed = [each.field for each in told.differences if moves.named(each.next_command)[0] == "RunJob"]
        words.append(
            f"the provider says otherwise about {', '.join(dict.fromkeys(missed))}: an event was missed"
        )
    if any(method == "RetryReconciliationTask" for method in methods):
        words.append("tasks wait that failed")
    return "; ".join(words) or f"differs: {', '.join(each.field for each in told.differences)}"


def _agreed(told: pb.DiagnoseTenantResponse) -> str:
    ours = told.ours
    status = standing_pb.SubscriptionStatus.Name(ours.status).removeprefix("SUBSCRIPTION_STATUS_").lower()
    words = f"all agree: {ours.plan_code}, {status}"
    if ours.HasField("current_period_end_at"):
        words += f", paid until {moves.shown(ours.current_period_end_at)}"
    if ours.HasField("pending_change"):
        words += f"; a change to {ours.pending_change.plan_code} waits and is not paid"
    return words


def _explained(told: pb.DiagnoseTenantResponse) -> str:
    """What to write to the customer."""
    return f"{_agreed(told)}. The customer is mistaken, or looked before it was so: explain"


def _for_people(tenant_id: str, told: pb.DiagnoseTenantResponse) -> list[str]:
    steps = []
    unclaimed = _unclaimed(told)
    for each in told.differences:
        method = moves.named(each.next_command)[0]
        if each.field == "orphan" and each.theirs.split()[0] in unclaimed:
            steps.append(
                f"orphan: {each.theirs} is all that the customer pays with, so end nothing; if the steps above do not"
                " adopt it, call an engineer"
            )
        elif method in {"CancelOrphanSubscription", "RefundPayment"}:
            steps.append(f"{each.field}: billctl fix double-charge {tenant_id}")
        elif method == "CancelPendingChange":
            steps.append(
                f"{each.field}: the customer undoes it, or, with the product's key: {each.next_command}"
            )
        elif not method and _matters(each):
            steps.append(f"call an engineer: {each.field}, ours {each.ours}, theirs {each.theirs}")
    return list(dict.fromkeys(steps))


def _view(view: pb.ProviderView) -> Mapping[str, Any]:
    return {
        "subscription": view.subscription_id,
        "role": view.role,
        "status": view.status,
        "plan": view.provider_plan_id,
        "paid_count": view.paid_count,
        "current_end": moves.shown(view.current_end_at) if view.HasField("current_end_at") else None,
    }


def _difference(each: pb.Difference) -> Mapping[str, Any]:
    return {"field": each.field, "ours": each.ours, "theirs": each.theirs}
