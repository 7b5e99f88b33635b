"""Runbook 2: the integrity audit found something. Each check has its own way, and none is closed before it is well."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from billing.ledger.v1 import ledger_admin_pb2 as ledger_pb
from billing.ledger.v1.ledger_admin_pb2_grpc import LedgerAdminServiceStub
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from billing.subscriptions.v1.subscriptions_admin_pb2_grpc import SubscriptionsAdminServiceStub
from billing.subscriptions.v1.subscriptions_pb2_grpc import SubscriptionsServiceStub

from billctl.desk import Desk
from billctl.diagnosis import Diagnosis, Fact, NotDone, Order, Step, Verdict
from billctl.fixes import everyday, moves
from billctl.looks import asking, checks, findings, jobs
from billctl.screen import Screen, shown

MIRRORS = """
SELECT tenant_id, balance, subscription_balance, subscription_expires_at,
       permanent_balance FROM tenant_credits WHERE tenant_id = %(tenant)s;
"""
LOTS = """
SELECT bucket, COUNT(*) AS lots, SUM(remaining)::bigint AS remaining, SUM(held)::bigint AS held,
       MAX(expires_at) AS latest_end
FROM credit_buckets
WHERE tenant_id = %(tenant)s AND NOT closed
GROUP BY bucket
ORDER BY bucket DESC;
"""
BY_STATUS = """
SELECT tx_status, COUNT(*), SUM(amount)
FROM credit_transactions
WHERE tenant_id = %(tenant)s
GROUP BY tx_status
"""
SUMS = """
SELECT balance,
       (SELECT SUM(amount)::bigint FROM credit_transactions WHERE tenant_id = %(tenant)s) AS ledger_sum,
       (SELECT SUM(d_posted)::bigint FROM credit_entries WHERE tenant_id = %(tenant)s) AS sum_of_lines,
       (SELECT SUM(remaining)::bigint FROM credit_buckets WHERE tenant_id = %(tenant)s) AS sum_of_lots
FROM tenant_credits
WHERE tenant_id = %(tenant)s;
"""
# A row that was added, changed or lost disagrees with the lines that were written with it.
AGAINST_LINES = """
SELECT transactions.id, transactions.kind, transactions.tx_status, transactions.amount,
       COALESCE(SUM(entries.d_posted), 0)::bigint AS amount_of_lines, transactions.reason, transactions.created_at
FROM credit_transactions AS transactions
LEFT JOIN credit_entries AS entries
    ON entries.tenant_id = transactions.tenant_id AND entries.transaction_id = transactions.id
WHERE transactions.tenant_id = %(tenant)s
GROUP BY transactions.tenant_id, transactions.id
HAVING transactions.amount <> COALESCE(SUM(entries.d_posted), 0)
ORDER BY transactions.id DESC
LIMIT 20;
"""
LOST_ROWS = """
SELECT entries.transaction_id, SUM(entries.d_posted)::bigint AS amount_of_lines, MIN(entries.at) AS at
FROM credit_entries AS entries
LEFT JOIN credit_transactions AS transactions
    ON transactions.tenant_id = entries.tenant_id AND transactions.id = entries.transaction_id
WHERE entries.tenant_id = %(tenant)s AND transactions.id IS NULL
GROUP BY entries.transaction_id
ORDER BY at DESC
LIMIT 20;
"""
UNRESOLVED_HOLDS = """
SELECT id, status, reserved, captured, released, created_at
FROM credit_holds AS holds
WHERE tenant_id = %(tenant)s AND NOT open
  AND NOT EXISTS (SELECT FROM credit_transactions AS ends
                  WHERE ends.tenant_id = %(tenant)s AND ends.hold_id = holds.id
                    AND ends.kind IN ('capture', 'void', 'lapse'))
ORDER BY created_at DESC
LIMIT 20;
"""
DOUBLE_CAPTURES = """
SELECT hold_id, COUNT(*) AS captures, SUM(-amount)::bigint AS taken, MAX(holds.captured) AS captured,
       MAX(holds.reserved) AS reserved
FROM credit_transactions AS transactions
JOIN credit_holds AS holds ON holds.tenant_id = transactions.tenant_id AND holds.id = transactions.hold_id
WHERE transactions.tenant_id = %(tenant)s AND kind = 'capture'
GROUP BY hold_id
HAVING COUNT(*) > 1 AND SUM(-amount) > MAX(holds.captured)
LIMIT 20;
"""
ACCOUNT = """
SELECT tenant_id, state, frozen_at, frozen_reason, balance, held
FROM tenant_credits
WHERE tenant_id = %(tenant)s;
"""
PENDING = """
SELECT pending_razorpay_subscription_id, pending_plan_id, pending_kind, pending_since FROM subscriptions
WHERE tenant_id = %(tenant)s;
"""
TASKS = """
SELECT id, task_type, attempts, last_error, abandoned_at
FROM billing_reconciliation_queue
WHERE tenant_id = %(tenant)s AND completed_at IS NULL
ORDER BY position
LIMIT 50;
"""
CALL_SECONDS = 30.0
# Differences that nobody sees while the provider is silent.
OF_PROVIDER = frozenset({"missing_grant", "payment_without_grant", "granted_without_payment"})
VERIFY_SECONDS = 120.0

Row = Mapping[str, Any]
Plan = tuple[list[Fact], list[Step], list[str]]


async def diagnose(desk: Desk, screen: Screen, finding_id: str) -> Diagnosis:
    """What is wrong, whether it still is, and what mends it."""
    row = await findings.find(desk, finding_id)
    check = checks.of(row["check_type"])
    facts = [Fact("finding", [row], asking.typed(findings.ONE, {"finding": finding_id}))]
    if row["resolved_at"] is not None:
        words = f"{finding_id} ({row['check_type']}) was closed by {row['resolved_by']} at {shown(row['resolved_at'])}"
        return Diagnosis(finding_id, Verdict.OK, words, facts)
    plan = PLANS.get(row["check_type"]) if row["tenant_id"] is not None else None
    if plan is None:
        more, steps, following = await _for_a_person(desk, row)
    else:
        more, steps, following = await plan(desk, screen, row)
    return Diagnosis(
        finding_id,
        Verdict(row["severity"]),
        f"{row['check_type']}: {check.means}; {check.cure}",
        [*facts, *more],
        steps,
        following,
    )


async def _fact(desk: Desk, title: str, statement: str, tenant: str) -> Fact:
    values = {"tenant": tenant}
    return Fact(title, await desk.rows(statement, **values), asking.typed(statement, values))


async def _mirrors(desk: Desk, _screen: Screen, row: Row) -> Plan:
    tenant = row["tenant_id"]
    facts = [
        await _fact(desk, "what people read", MIRRORS, tenant),
        await _fact(desk, "what the lots come to", LOTS, tenant),
    ]

    async def rebuild(order: Order) -> str:
        ledger = desk.stub("ledger", LedgerAdminServiceStub)
        request = ledger_pb.RebuildMirrorsRequest(
            tenant_id=tenant,
            idempotency_key=order.key(f"mirrors:{tenant}"),
            actor=order.actor,
            reason=order.told,
        )
        answer = await desk.ask(ledger.RebuildMirrors, request, seconds=CALL_SECONDS)
        return f"balance {answer.before.balance} → {answer.after.balance}"

    step = Step(
        f"mirrors:{tenant}",
        "write the columns that people read anew from the lots",
        "tenant_credits",
        rebuild,
    )
    return facts, [step, _proof(desk, row), everyday.closing(desk, row["id"], row["room"])], []


def _proof(desk: Desk, row: Row) -> Step:
    """The step that recomputes the tenant, and fails where this check still finds something."""
    tenant, check_type = row["tenant_id"], row["check_type"]

    async def verify(_order: Order) -> str:
        ledger = desk.stub("ledger", LedgerAdminServiceStub)
        request = ledger_pb.VerifyLedgerRequest(tenant_id=tenant)
        answer = await desk.ask(ledger.VerifyLedger, request, seconds=VERIFY_SECONDS)
        seen = [each for one in answer.verifications for each in one.findings]
        if any(each.check_type == check_type for each in seen):
            raise NotDone(f"it is wrong still: {', '.join(sorted({each.check_type for each in seen}))}")
        lines = sum(one.entries for one in answer.verifications)
        beside = f"; beside it: {', '.join(sorted({each.check_type for each in seen}))}" if seen else ""
        return f"{check_type} is gone, {lines} lines recomputed{beside}"

    does = "recompute the tenant from its lines and their hashes"
    return Step(f"verify:{tenant}", does, "nothing; what disagrees becomes a finding", verify)


async def _sums(desk: Desk, _screen: Screen, row: Row) -> Plan:
    tenant = row["tenant_id"]
    titles = {
        "by status": BY_STATUS,
        "sums": SUMS,
        "transactions that disagree with their lines": AGAINST_LINES,
        "lines without their transaction": LOST_ROWS,
        "holds that ended without a transaction": UNRESOLVED_HOLDS,
        "holds that were captured for more than they had": DOUBLE_CAPTURES,
    }
    facts = [await _fact(desk, title, statement, tenant) for title, statement in titles.items()]
    (sums,) = facts[1].rows or [{"balance": 0, "ledger_sum": 0, "sum_of_lots": 0}]
    following = [
        "the row that is missing or too much stands above, or nobody can see it: then call an engineer",
        "never edit a row. Where the balance is wrong for the customer, it is corrected by a row of its own:"
        f" billctl account adjust {tenant} --credits N",
        f"then billctl findings resolve {row['id']}",
    ]
    if sums["ledger_sum"] != sums["sum_of_lots"]:
        return facts, [], following
    return facts, [_proof(desk, row), everyday.closing(desk, row["id"], row["room"])], following[:1]


async def _frozen(desk: Desk, _screen: Screen, row: Row) -> Plan:
    tenant = row["tenant_id"]
    facts = [await _fact(desk, "account", ACCOUNT, tenant)]
    following = [
        "call an engineer: a line, lot or hold is not what the history says, so no credits of this tenant move",
        f"what moved: billctl tenant timeline {tenant}",
        f"once it is explained: billctl account unfreeze {tenant}",
        f"if its credits are to be corrected: billctl account adjust {tenant} --credits N",
        f"then billctl findings resolve {row['id']}",
    ]
    return facts, [], following


async def _pending(desk: Desk, _screen: Screen, row: Row) -> Plan:
    tenant = row["tenant_id"]
    fact = await _fact(desk, "pending change", PENDING, tenant)
    close = everyday.closing(desk, row["id"], row["room"])
    if not any(each["pending_razorpay_subscription_id"] for each in fact.rows):
        return [fact], [close], ["nothing is pending any more"]

    async def cancel(order: Order) -> str:
        subscriptions = desk.stub("subscriptions", SubscriptionsServiceStub)
        request = pb.CancelPendingChangeRequest(
            tenant_id=tenant, idempotency_key=order.key(f"pending:{tenant}")
        )
        answer = await desk.ask(subscriptions.CancelPendingChange, request, seconds=CALL_SECONDS)
        return f"the change to {answer.cancelled.plan_code} will not happen"

    async def verify(_order: Order) -> str:
        (now,) = await desk.rows(PENDING, tenant=tenant)
        if now["pending_razorpay_subscription_id"]:
            raise NotDone(f"{now['pending_razorpay_subscription_id']} is pending still")
        return "nothing is pending; the provider's subscription ends by a task"

    touches = "subscriptions, and the provider's subscription that hangs"
    steps = [
        Step(f"pending:{tenant}", "cancel the change that nobody authorised", touches, cancel),
        Step(f"verify:{tenant}", "look whether anything is pending", "nothing", verify),
    ]
    note = "CancelPendingChange names no actor: the audit log has you by the closed finding"
    return [fact], [*steps, close], [note]


async def _entitlements(desk: Desk, _screen: Screen, row: Row) -> Plan:
    tenant = row["tenant_id"]

    async def rebuild(order: Order) -> str:
        await moves.refuse_unpaid(desk, tenant)
        subscriptions = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
        request = admin_pb.RebuildEntitlementsRequest(
            tenant_id=tenant,
            idempotency_key=order.key(f"entitlements:{tenant}"),
            actor=order.actor,
            reason=order.told,
        )
        answer = await desk.ask(subscriptions.RebuildEntitlements, request, seconds=CALL_SECONDS)
        if not answer.pushed:
            raise NotDone(f"the ledger does not have them yet: billctl tasks retry {answer.task_id}")
        return f"version {answer.version} is in the ledger"

    step = Step(
        f"entitlements:{tenant}",
        "compute the entitlements anew and push them",
        "subscriptions, ledger: tenant_services",
        rebuild,
    )
    proof = _undisputed(desk, tenant, {"entitlements_differ"})
    return [], [step, proof, everyday.closing(desk, row["id"], row["room"])], []


def _undisputed(desk: Desk, tenant: str, fields: set[str]) -> Step:
    """The step that compares the tenant with the ledger and the provider, and fails where these differ."""

    async def verify(_order: Order) -> str:
        subscriptions = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
        request = admin_pb.DiagnoseTenantRequest(tenant_id=tenant)
        answer = await desk.ask(subscriptions.DiagnoseTenant, request, seconds=CALL_SECONDS)
        if answer.provider_unavailable and fields & OF_PROVIDER:
            raise NotDone("the provider does not answer, so nobody knows whether it is well")
        if await moves.ledger_is_silent(desk):
            raise NotDone("the ledger does not answer, so nobody knows whether it is well")
        left = [each for each in answer.differences if each.field in fields]
        if left:
            raise NotDone("; ".join(f"{each.field}: {each.ours}, {each.theirs}" for each in left))
        beside = sorted({each.field for each in answer.differences})
        return "it is well" + (f"; beside it: {', '.join(beside)}" if beside else "")

    return Step(f"verify:{tenant}", "compare with the ledger and the provider", "nothing", verify)


async def _stuck(desk: Desk, _screen: Screen, row: Row) -> Plan:
    tenant = row["tenant_id"]
    fact = await _fact(desk, "tasks that are not done", TASKS, tenant)
    steps = [
        everyday.retrying(desk, each["id"], each["task_type"]) for each in fact.rows if each["abandoned_at"]
    ]
    note = "settled elsewhere instead? billctl tasks resolve TSK"
    return [fact], [*steps, everyday.closing(desk, row["id"], row["room"])], [note] if steps else []


async def _unfunded(desk: Desk, screen: Screen, row: Row) -> Plan:
    tenant = row["tenant_id"]
    fact = await _fact(desk, "tasks that are not done", TASKS, tenant)
    steps = [
        everyday.retrying(desk, each["id"], each["task_type"])
        for each in fact.rows
        if each["task_type"] == "grant_credits"
    ]
    fields = {"missing_grant", "payment_without_grant"}
    proof = [_undisputed(desk, tenant, fields), everyday.closing(desk, row["id"], row["room"])]
    note = (
        f"if it stays wrong: give the money back (billctl fix double-charge {tenant} --payment pay_…), or the credits"
        f" (billctl account adjust {tenant} --credits N)"
    )
    return [fact], [*(steps or [_synchronise(desk, screen)]), *proof], [note]


async def _unpaid(desk: Desk, screen: Screen, row: Row) -> Plan:
    proof = _undisputed(desk, row["tenant_id"], {"granted_without_payment"})
    note = (
        "if the provider knows of no payment either, take the credits back:"
        f" billctl account adjust {row['tenant_id']} --credits -N"
    )
    close = everyday.closing(desk, row["id"], row["room"])
    return [], [_synchronise(desk, screen), proof, close], [note]


def _synchronise(desk: Desk, screen: Screen) -> Step:
    return _job(desk, screen, "sync_provider", "ask the provider for everything it did")


def _job(desk: Desk, screen: Screen, job: str, does: str) -> Step:
    async def run(order: Order) -> str:
        key = order.key(f"run:{job}")
        row = await jobs.run(desk, screen, job, key=key, actor=order.actor, reason=order.told, dry=False)
        if row["outcome"] != "succeeded":
            raise NotDone(f"{row['id']} {row['outcome']}: billctl jobs runs {job}")
        return f"{row['id']} succeeded"

    return Step(f"run:{job}", does, f"what the job {job} changes", run)


async def _overdue(desk: Desk, screen: Screen, row: Row) -> Plan:
    settle = _job(desk, screen, "settle_expired", "write down every end that passed")
    return [], [settle, _proof(desk, row), everyday.closing(desk, row["id"], row["room"])], []


async def _twice(_desk: Desk, _screen: Screen, row: Row) -> Plan:
    return [], [], [f"billctl fix double-charge {row['tenant_id']}"]


async def _escalation(_desk: Desk, _screen: Screen, _row: Row) -> Plan:
    return [], [], ["billctl fix escalation"]


async def _checkout(_desk: Desk, _screen: Screen, row: Row) -> Plan:
    return [], [], [f"billctl fix wrong-plan {row['tenant_id']}"]


async def _overdue_task(desk: Desk, _screen: Screen, row: Row) -> Plan:
    fact = await _fact(desk, "tasks that are not done", TASKS, row["tenant_id"])
    return [fact], [], ["billctl jobs list", *(f"billctl tasks retry {each['id']}" for each in fact.rows[:3])]


async def _charged(_desk: Desk, _screen: Screen, row: Row) -> Plan:
    observed = row["observed"]
    payments = observed.get("paymentIds") or [observed.get("paymentId") or "pay_…"]
    tenant, closing = row["tenant_id"], f"then billctl findings resolve {row['id']}"
    return [], [], [*(f"billctl fix double-charge {tenant} --payment {each}" for each in payments), closing]


async def _for_a_person(_desk: Desk, row: Row) -> Plan:
    tenant = row["tenant_id"]
    following = [f"what happened: billctl tenant timeline {tenant}"] if tenant else []
    return [], [], [*following, f"once it is settled: billctl findings resolve {row['id']}"]


PLANS: dict[str, Callable[[Desk, Screen, Row], Awaitable[Plan]]] = {
    **dict.fromkeys(("balance_mismatch", "mirror_mismatch"), _mirrors),
    "ledger_sum_mismatch": _sums,
    **{name: _frozen for name, check in checks.CHECKS.items() if check.freezes},
    "orphan_pending_sub": _pending,
    **dict.fromkeys(("entitlements_differ", "active_without_entitlements"), _entitlements),
    "stuck_task": _stuck,
    "paid_without_grant": _unfunded,
    "granted_without_payment": _unpaid,
    "overdue_expiry": _overdue,
    **dict.fromkeys(("charged_after_end", "charged_after_scheduled_end"), _charged),
    "missed_escalation": _escalation,
    "stuck_checkout": _checkout,
    "overdue_task": _overdue_task,
    **dict.fromkeys(("two_live_subscriptions", "orphan_provider_sub"), _twice),
}
