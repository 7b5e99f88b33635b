"""Runbook 1: a customer was charged twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from billing.ledger.v1 import ledger_admin_pb2 as ledger_pb
from billing.ledger.v1.ledger_admin_pb2_grpc import LedgerAdminServiceStub
from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb
from billing.subscriptions.v1.subscriptions_admin_pb2_grpc import SubscriptionsAdminServiceStub

from billctl.desk import Desk
from billctl.diagnosis import Diagnosis, Fact, NotDone, NotThere, Order, Step, Verdict
from billctl.fixes import double_charge_sql as sql
from billctl.fixes import moves

# The provider's words for what never charges again.
ENDED = frozenset({"cancelled", "completed", "expired"})
OURS = ("live", "pending")
BESIDE = "RPC SubscriptionsAdminService.DiagnoseTenant"


@dataclass(frozen=True)
class Asked:
    """What was typed beside the tenant; empty and None stand for nothing."""

    tenant_id: str
    subscription_id: str = ""
    payment_id: str = ""
    amount_paise: int | None = None
    credits: int | None = None


@dataclass(frozen=True)
class Seen:
    """Everything that the plan is made of."""

    asked: Asked
    told: pb.DiagnoseTenantResponse
    tasks: Sequence[Mapping[str, Any]]
    payments: Sequence[Mapping[str, Any]]
    twice: Sequence[Mapping[str, Any]]

    @property
    def ours(self) -> set[str]:
        """Subscriptions that the tenant relies on."""
        return {view.subscription_id for view in self.told.theirs if view.role in OURS}

    @property
    def charging(self) -> list[str]:
        """What may take money at the provider: one is as it should be."""
        return [
            view.subscription_id
            for view in self.told.theirs
            if view.status not in ENDED and (view.role != "pending" or view.paid_count > 0)
        ]

    @property
    def unclaimed(self) -> list[str]:
        """Those that may be what the customer pays with: paid, never to be ended, and nothing else of the tenant's is.

        A row that was edited by hand, or a switch that was lost, looks like this; ended it would take the plan away.
        """
        if any(view.role in OURS and view.status not in ENDED for view in self.told.theirs):
            return []
        return [
            view.subscription_id
            for view in self.told.theirs
            if view.role == "orphan"
            and view.status not in ENDED
            and view.paid_count > 0
            and not self.cancels(view.subscription_id)
            and view.subscription_id != self.asked.subscription_id
        ]

    @property
    def orphans(self) -> list[str]:
        """Subscriptions at the provider that nobody relies on, and the one that was named."""
        found = [
            view.subscription_id
            for view in self.told.theirs
            if view.role == "orphan" and view.status not in ENDED
        ]
        # Without the provider's own word a difference names it.
        differing = [each.theirs.split()[0] for each in self.told.differences if each.field == "orphan"]
        found += [each for each in differing if each not in found]
        named = self.asked.subscription_id
        if named and named not in found and named not in self.ours and not self.is_settled(named):
            found.append(named)
        unclaimed = self.unclaimed
        return [each for each in found if each not in unclaimed and (not named or each == named)]

    def is_settled(self, subscription_id: str) -> bool:
        """Whether its end is done as far as we and the provider say."""
        of_it = self.cancels(subscription_id)
        return bool(of_it) and all(task["completed_at"] for task in of_it)

    def cancels(self, subscription_id: str) -> list[Mapping[str, Any]]:
        """The tasks that end it, oldest first."""
        return [
            task
            for task in self.tasks
            if task["task_type"] == "cancel_provider_subscription" and task["subscription"] == subscription_id
        ]


async def diagnose(desk: Desk, asked: Asked) -> Diagnosis:
    """Which of the tenant's subscriptions are orphans and which of its payments are double, and what mends both."""
    told = await moves.diagnose_tenant(desk, asked.tenant_id)
    whose = {"tenant": asked.tenant_id}
    row, tasks = await desk.rows(sql.OURS, **whose), await desk.rows(sql.TASKS, **whose)
    payments = await desk.rows(sql.PAYMENTS, **whose)
    if asked.payment_id and asked.payment_id not in {each["id"] for each in payments}:
        payments += await _older(desk, asked)
    twice = await desk.rows(sql.TWICE, **whose)
    after_end = {each.theirs for each in told.differences if each.field == "charged_after_end"}
    known = {each["id"] for each in twice}
    twice += [each for each in payments if each["id"] in after_end - known and not each["back_paise"]]
    findings = await desk.rows(sql.FINDINGS, **whose)
    facts = [
        Fact("in our books", row, sql.OURS),
        Fact("subscriptions at the provider", [_view(each) for each in told.theirs], BESIDE),
        Fact("where we differ", [_difference(each) for each in told.differences], BESIDE),
        Fact("tasks about subscriptions", tasks, sql.TASKS),
        Fact("payments", payments, sql.PAYMENTS),
        Fact("payments that look double", twice, sql.TWICE),
        Fact("open findings", findings, sql.FINDINGS),
    ]
    seen = Seen(asked, told, tasks, payments, twice)
    unclaimed = seen.unclaimed
    seen = replace(seen, twice=[each for each in twice if each["subscription"] not in unclaimed])
    if told.provider_unavailable:
        summary = "the provider does not answer, so nobody knows what it charges for"
        again = (
            f"billctl fix double-charge {asked.tenant_id}, when it answers again: https://status.razorpay.com"
        )
        return Diagnosis(asked.tenant_id, Verdict.UNKNOWN, summary, facts, next_steps=[again])
    _refuse_nonsense(seen)
    plan = _plan(desk, seen)
    if not plan and unclaimed:
        summary = (
            f"{', '.join(unclaimed)} is paid, and is all that the tenant pays with, though our books rely on"
            f" {'another' if seen.ours else 'none'}: not ended"
        )
        return Diagnosis(
            asked.tenant_id, Verdict.CRITICAL, summary, facts, next_steps=_following(seen, findings)
        )
    if not plan:
        summary = f"{_count(seen.charging)} at the provider, and no payment that looks double"
        verdict = Verdict.OK if len(seen.charging) <= 1 else Verdict.CRITICAL
        if strange := _strange_charges(findings):
            verdict = max(verdict, Verdict.WARNING, key=list(Verdict).index)
            summary += f"; but {len(strange)} payment(s) of subscriptions that are not in our books"
        return Diagnosis(asked.tenant_id, verdict, summary, facts, next_steps=_following(seen, findings))
    plan.append(_look_again(desk, asked.tenant_id))
    return Diagnosis(
        asked.tenant_id, Verdict.CRITICAL, _summary(seen), facts, plan, _following(seen, findings)
    )


def _plan(desk: Desk, seen: Seen) -> list[Step]:
    steps = [_cancel(desk, seen, each) for each in seen.orphans]
    steps += [_resolve(desk, task) for task in _needless(seen)]
    steps += [_refund(desk, seen.asked, payment) for payment in _to_refund(seen)]
    if seen.asked.credits is not None:
        steps.append(_credit(desk, seen.asked.tenant_id, seen.asked.credits))
    return steps


def _cancel(desk: Desk, seen: Seen, subscription_id: str) -> Step:
    owed = [task for task in seen.cancels(subscription_id) if task["completed_at"] is None]

    async def act(order: Order) -> str:
        results = [await moves.retry_task(desk, task["id"], order) for task in owed]
        if owed and subscription_id not in (await _charging(desk, seen.asked.tenant_id)):
            return "; ".join(results)
        admin = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
        request = pb.CancelOrphanSubscriptionRequest(
            tenant_id=seen.asked.tenant_id,
            subscription_id=subscription_id,
            idempotency_key=order.key(f"cancel:{subscription_id}"),
            actor=order.actor,
            reason=order.told,
        )
        task = (await desk.ask(admin.CancelOrphanSubscription, request)).task
        if not task.HasField("completed_at"):
            raise NotDone(f"{task.task_id} failed ({task.last_error}), and is attempted again by reconcile")
        return f"cancelled at the provider by {task.task_id}"

    how = "cancel at once"
    if owed:
        words = "given up" if any(task["abandoned_at"] for task in owed) else "owed"
        how = f"retry the cancellation, which is {words} after {owed[0]['attempts']} attempts, of"
    return Step(f"cancel:{subscription_id}", f"{how} {subscription_id}", "the provider, tasks", act)


def _needless(seen: Seen) -> list[Mapping[str, Any]]:
    """Cancellations given up of what the provider ended meanwhile; only what we hold is surely among its answers."""
    going = {view.subscription_id for view in seen.told.theirs if view.status not in ENDED}
    return [
        task
        for task in seen.tasks
        if task["task_type"] == "cancel_provider_subscription"
        and task["abandoned_at"]
        and not task["completed_at"]
        and task["held"]
        and task["subscription"] not in going
        and task["subscription"] not in seen.orphans
    ]


def _resolve(desk: Desk, task: Mapping[str, Any]) -> Step:
    async def act(order: Order) -> str:
        admin = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
        request = pb.ResolveReconciliationTaskRequest(
            task_id=task["id"],
            idempotency_key=order.key(f"resolve:{task['id']}"),
            actor=order.actor,
            reason=order.told,
        )
        await desk.ask(admin.ResolveReconciliationTask, request)
        return f"{task['id']} is closed"

    does = f"close {task['id']}: the provider shows {task['subscription']} as ended"
    return Step(f"resolve:{task['id']}", does, "tasks", act)


def _to_refund(seen: Seen) -> list[Mapping[str, Any]]:
    if not seen.asked.payment_id:
        return list(seen.twice)
    payment = _named_payment(seen)
    wanted = seen.asked.amount_paise or payment["amount_paise"]
    return [payment] if payment["back_paise"] < wanted and not payment["disputed"] else []


def _named_payment(seen: Seen) -> Mapping[str, Any]:
    return next(payment for payment in seen.payments if payment["id"] == seen.asked.payment_id)


async def _older(desk: Desk, asked: Asked) -> list[dict[str, Any]]:
    """The payment that was named, of whatever year; what our books do not have only the provider can refund."""
    found = await desk.rows(sql.PAYMENT, tenant=asked.tenant_id, payment=asked.payment_id)
    if not found:
        raise NotThere(
            f"{asked.payment_id} is no payment of {asked.tenant_id} in our books: if the provider took it, refund it in"
            " its dashboard, and close its finding with billctl findings resolve"
        )
    return found


def _refund(desk: Desk, asked: Asked, payment: Mapping[str, Any]) -> Step:
    async def act(order: Order) -> str:
        admin = desk.stub("subscriptions", SubscriptionsAdminServiceStub)
        request = pb.RefundPaymentRequest(
            tenant_id=asked.tenant_id,
            payment_id=payment["id"],
            idempotency_key=order.key(f"refund:{payment['id']}"),
            actor=order.actor,
            reason=order.told,
        )
        if asked.payment_id and asked.amount_paise is not None:
            request.amount_paise = asked.amount_paise
        answer = await desk.ask(admin.RefundPayment, request)
        if answer.status == "failed":
            raise NotDone(f"{answer.refund_id} is refused for good by the provider: ask its support")
        taken = f", {answer.credits_to_revoke} credits it bought are taken back" * bool(
            answer.credits_to_revoke
        )
        return f"{rupees(answer.amount_paise)} {answer.status} as {answer.provider_refund_id or answer.refund_id}{taken}"

    named = bool(asked.payment_id) and asked.amount_paise is not None
    amount = rupees(asked.amount_paise or 0) if named else "all that is left"
    does = f"refund {amount} of {payment['id']}" + f" ({payment['plan_id']})" * bool(payment["plan_id"])
    touches = "the provider, billing_refunds, an invoice's credit note; the credits it bought"
    return Step(f"refund:{payment['id']}", does, touches, act)


def _credit(desk: Desk, tenant_id: str, credits: int) -> Step:
    async def act(order: Order) -> str:
        admin = desk.stub("ledger", LedgerAdminServiceStub)
        request = ledger_pb.AdjustCreditsRequest(
            tenant_id=tenant_id,
            idempotency_key=order.key(f"credits:{tenant_id}"),
            credits=credits,
            reason="admin.refund",
            description=order.told,
            actor=order.actor,
        )
        answer = await desk.ask(admin.AdjustCredits, request)
        when = "earlier under this ticket" if answer.replayed else "now"
        return f"{answer.transaction.id}, given {when}; {answer.balance.available} available"

    does = f"give {credits} permanent credits"
    return Step(f"credits:{tenant_id}", does, "ledger: one adjustment, admin.refund", act)


def _look_again(desk: Desk, tenant_id: str) -> Step:
    async def act(order: Order) -> str:
        left = await _charging(desk, tenant_id)
        if len(left) > 1:
            raise NotDone(f"{_count(left)} are left: {', '.join(left)}; call an engineer")
        return f"{_count(left)} left at the provider"

    return Step(f"look:{tenant_id}", "diagnose again: at most one live subscription is left", "nothing", act)


async def _charging(desk: Desk, tenant_id: str) -> list[str]:
    told = await moves.diagnose_tenant(desk, tenant_id)
    if told.provider_unavailable:
        raise NotDone("the provider does not answer any more, so what is left is not known")
    return Seen(Asked(tenant_id), told, (), (), ()).charging


def _refuse_nonsense(seen: Seen) -> None:
    if seen.asked.subscription_id in seen.ours:
        raise NotThere(
            f"{seen.asked.subscription_id} is no orphan: the tenant relies on it, and ends it as a customer does"
        )


def _strange_charges(findings: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(payment, finding) of money that the provider took for what we never sold; only the provider can refund it."""
    return [
        (str(each["observed"].get("paymentId")), each["id"])
        for each in findings
        if each["check_type"] == "charge_without_subscription"
    ]


def _summary(seen: Seen) -> str:
    words = []
    if seen.orphans:
        words.append(f"{len(seen.orphans)} subscription(s) at the provider that nobody relies on")
    if refunds := _to_refund(seen):
        words.append(f"{len(refunds)} payment(s) to give back")
    if needless := _needless(seen):
        words.append(f"{len(needless)} cancellation(s) given up that are no longer needed")
    if seen.asked.credits is not None:
        words.append(f"{seen.asked.credits} credits to give back")
    return ", ".join(words)


def _following(seen: Seen, findings: Sequence[Mapping[str, Any]]) -> list[str]:
    tenant, steps = seen.asked.tenant_id, []
    for each in seen.unclaimed:
        steps += [
            f"is {each} what the customer pays with? billctl fix wrong-plan {tenant}, or call an engineer",
            f"is it surely nobody's? billctl fix double-charge {tenant} --subscription {each}",
        ]
    if any(not seen.cancels(each) for each in seen.orphans):
        steps.append("tell an engineer: a cancellation of that subscription was never attempted")
    for payment in seen.payments:
        if payment["disputed"]:
            steps.append(f"{payment['id']} is disputed: the bank decides, so refund nothing of it")
    if seen.orphans and not seen.asked.payment_id:
        steps.append(
            f"did an orphan charge before we heard of it? then name it: billctl fix double-charge {tenant} --payment pay_…"
        )
    for payment_id, finding_id in _strange_charges(findings):
        steps.append(
            f"refund {payment_id} in the provider's dashboard, for our books do not have it; then"
            f" billctl findings resolve {finding_id}"
        )
    if seen.asked.credits is None:
        steps.append(f"if the customer lost credits by it: billctl fix double-charge {tenant} --credits N")
    if len(findings) > len(_strange_charges(findings)):
        steps.append("the findings close with the next comparison: billctl jobs run sync_provider")
    return steps


def _count(subscriptions: Sequence[str]) -> str:
    return f"{len(subscriptions) or 'no'} live subscription{'s' * (len(subscriptions) != 1)}"


def _view(view: pb.ProviderView) -> dict[str, Any]:
    return {
        "subscription": view.subscription_id,
        "role": view.role,
        "status": view.status,
        "paid_count": view.paid_count,
        "current_end": moves.shown(view.current_end_at) if view.HasField("current_end_at") else None,
    }


def _difference(each: pb.Difference) -> dict[str, Any]:
    return {"field": each.field, "ours": each.ours, "theirs": each.theirs}


def rupees(paise: int) -> str:
    """An amount as people read it."""
    return f"₹{paise / 100:,.2f}"
