"""What people do to an account: its credits by hand, a freeze and its end. Each is a plan of one step."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing.ledger.v1 import ledger_admin_pb2 as pb
from billing.ledger.v1 import ledger_pb2, types_pb2
from billing.ledger.v1.ledger_admin_pb2_grpc import LedgerAdminServiceStub
from billing.ledger.v1.ledger_pb2_grpc import LedgerServiceStub

from billctl.desk import Desk
from billctl.diagnosis import Diagnosis, Fact, NotDone, NotThere, Order, Step, Verdict
from billctl.looks import asking
from billctl.looks.tenant import must_be_known
from billctl.screen import shown

ACCOUNT = """
SELECT tenant_id, state, frozen_at, NULLIF(frozen_reason, '') AS frozen_reason, balance, held
FROM tenant_credits
WHERE tenant_id = %(tenant)s;
"""
# What an account is frozen for, where no person did it.
FINDINGS = """
SELECT id, check_type, severity::text, created_at
FROM billing_integrity_reports
WHERE tenant_id = %(tenant)s AND resolved_at IS NULL
ORDER BY billing_integrity_reports.severity DESC, created_at DESC
LIMIT 20;
"""
BALANCE = "RPC LedgerService.GetBalance"
FROZEN = "frozen"
CALL_SECONDS = 30.0


@dataclass(frozen=True)
class Adjustment:
    """What was typed: signed credits; with `expires_at` they go to the subscription's bucket."""

    tenant_id: str
    credits: int
    is_refund: bool = False
    expires_at: datetime | None = None


async def adjust(desk: Desk, asked: Adjustment) -> Diagnosis:
    """Add credits, or take them in the usual order, as a transaction of its own."""
    tenant, credits = asked.tenant_id, asked.credits
    row = await _account(desk, tenant)
    ledger = desk.stub("ledger", LedgerServiceStub)
    request = ledger_pb2.GetBalanceRequest(tenant_id=tenant)
    available = (await desk.ask(ledger.GetBalance, request, seconds=CALL_SECONDS)).balance.available
    facts = [
        _fact(row, tenant),
        Fact("what it can spend", [{"before": available, "after": available + credits}], BALANCE),
    ]
    if row["state"] == FROZEN:
        words = f"{tenant} is frozen ({row['frozen_reason']}), and takes no adjustment"
        steps = [
            f"billctl findings list --tenant {tenant}",
            f"once it is explained: billctl account unfreeze {tenant}",
        ]
        return Diagnosis(tenant, Verdict.CRITICAL, words, facts, next_steps=steps)
    step = _booking(desk, asked)
    if available + credits < 0:
        # Whether this ticket took them already only the ledger knows: the step is shown, and refused there.
        note = f"{available} are available: the ledger refuses to take more, but for a ticket that took them already"
        return Diagnosis(
            tenant, Verdict.WARNING, f"{-credits} credits are more than it has", facts, [step], [note]
        )
    words = f"{available} credits available, {available + credits} afterwards"
    return Diagnosis(tenant, Verdict.OK, words, facts, [step])


def _booking(desk: Desk, asked: Adjustment) -> Step:
    reason = "admin.refund" if asked.is_refund else "admin.adjustment"

    async def act(order: Order) -> str:
        admin = desk.stub("ledger", LedgerAdminServiceStub)
        request = pb.AdjustCreditsRequest(
            tenant_id=asked.tenant_id,
            idempotency_key=order.key(f"adjust:{asked.tenant_id}"),
            credits=asked.credits,
            reason=reason,
            description=order.told,
            actor=order.actor,
        )
        if asked.expires_at is not None:
            request.bucket = types_pb2.BUCKET_SUBSCRIPTION
            request.expires_at.FromDatetime(asked.expires_at)
        answer = await desk.ask(admin.AdjustCredits, request, seconds=CALL_SECONDS)
        when = "booked earlier under this ticket" if answer.replayed else "booked now"
        return f"{answer.transaction.id} {when}; {answer.balance.available} available"

    if asked.credits < 0:
        does = f"take {-asked.credits} credits, in the order in which they are spent"
    else:
        until = (
            f"until {shown(asked.expires_at)}, of the subscription"
            if asked.expires_at
            else "for ever, permanent"
        )
        does = f"give {asked.credits} credits, {until}"
    return Step(f"adjust:{asked.tenant_id}", does, f"ledger: one adjustment, {reason}", act)


async def freeze(desk: Desk, tenant: str) -> Diagnosis:
    """Stop every change of credits."""
    row = await _account(desk, tenant)
    if row["state"] == FROZEN:
        words = f"{tenant} is frozen since {shown(row['frozen_at'])}: {row['frozen_reason']}"
        return Diagnosis(tenant, Verdict.OK, words, [_fact(row, tenant)])

    async def act(order: Order) -> str:
        admin = desk.stub("ledger", LedgerAdminServiceStub)
        request = pb.FreezeAccountRequest(
            tenant_id=tenant,
            idempotency_key=order.key(f"freeze:{tenant}"),
            actor=order.actor,
            reason=order.told,
        )
        answer = await desk.ask(admin.FreezeAccount, request, seconds=CALL_SECONDS)
        await _must_be(desk, tenant, FROZEN)
        return f"frozen since {answer.frozen_at.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"

    step = Step(
        f"freeze:{tenant}", f"refuse every change of {tenant}'s credits", "ledger: tenant_credits", act
    )
    note = "products are told the reason, word for word, with every refusal; reads go on"
    return Diagnosis(tenant, Verdict.OK, f"{tenant} is active", [_fact(row, tenant)], [step], [note])


async def unfreeze(desk: Desk, tenant: str) -> Diagnosis:
    """Let credits change again."""
    row = await _account(desk, tenant)
    if row["state"] != FROZEN:
        return Diagnosis(tenant, Verdict.OK, f"{tenant} is not frozen", [_fact(row, tenant)])
    values = {"tenant": tenant}
    found = await desk.rows(FINDINGS, **values)
    facts = [_fact(row, tenant), Fact("open findings", found, asking.typed(FINDINGS, values))]

    async def act(order: Order) -> str:
        admin = desk.stub("ledger", LedgerAdminServiceStub)
        request = pb.UnfreezeAccountRequest(
            tenant_id=tenant,
            idempotency_key=order.key(f"unfreeze:{tenant}"),
            actor=order.actor,
            reason=order.told,
        )
        await desk.ask(admin.UnfreezeAccount, request, seconds=CALL_SECONDS)
        await _must_be(desk, tenant, "active")
        return "active again"

    step = Step(f"unfreeze:{tenant}", f"let {tenant}'s credits change again", "ledger: tenant_credits", act)
    notes = [f"is it explained? billctl fix finding {each['id']}" for each in found]
    words = f"{tenant} is frozen since {shown(row['frozen_at'])}: {row['frozen_reason']}"
    return Diagnosis(tenant, Verdict.WARNING, words, facts, [step], notes)


async def _account(desk: Desk, tenant: str) -> dict[str, Any]:
    await must_be_known(desk, tenant)
    rows = await desk.rows(ACCOUNT, tenant=tenant)
    if not rows:
        raise NotThere(f"{tenant} has no account in the ledger yet")
    return rows[0]


def _fact(row: dict[str, Any], tenant: str) -> Fact:
    return Fact("account", [row], asking.typed(ACCOUNT, {"tenant": tenant}))


async def _must_be(desk: Desk, tenant: str, state: str) -> None:
    """A ticket's repeat changes nothing, also where somebody turned it round since."""
    row = await _account(desk, tenant)
    if row["state"] != state:
        raise NotDone(
            f"this ticket did so before, and {tenant} is {row['state']} again since: use another ticket"
        )
