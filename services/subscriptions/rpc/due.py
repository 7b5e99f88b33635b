"""SubscriptionsMaintenanceService: credits and steps that time makes due."""

import asyncio
import time
from collections.abc import Iterable, Sequence

from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions import due_credits, escalation
from services.subscriptions.actions.escalation import Taken
from services.subscriptions.actions.notices import deliver_notices
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.ladder import DOWNGRADE
from services.subscriptions.rules.notices import Notice

# Each asks the ledger and the provider at once, and the others who call the room need connections too.
AT_ONCE = 3
# Paying at once is a courtesy: what is left is due, and the reconcile job finds it.
PAYING_SECONDS = 180.0


class DueDates(Desk):
    """GrantDueCredits and EscalatePastDue."""

    async def GrantDueCredits(
        self, request: pb.GrantDueCreditsRequest, context: Context
    ) -> pb.GrantDueCreditsResponse:
        run = await due_credits.grant_due_credits(
            self._room.engine, self._room.policy, now=self._room.clock(), dry_run=request.dry_run
        )
        if not request.dry_run:
            await self._pay(run.tenants)
        return pb.GrantDueCreditsResponse(
            free_months=run.free_months,
            drip_months=run.drip_months,
            credits=run.credits,
            alerts=_failures("due_credits_failed", "Credits that came due were not granted", run.failed),
            still_due=run.still_due,
        )

    async def EscalatePastDue(
        self, request: pb.EscalatePastDueRequest, context: Context
    ) -> pb.EscalatePastDueResponse:
        room = self._room
        run = await escalation.escalate_past_due(
            room.engine, room.ledger, room.policy, now=room.clock(), dry_run=request.dry_run
        )
        answer = pb.EscalatePastDueResponse(
            past_due=run.past_due,
            reminders=sum(step.kind != DOWNGRADE and not step.skipped for step in run.steps),
            auto_downgraded=len(run.downgraded),
            steps=[_step(step) for step in run.steps],
            trials_ending=run.trials_ending,
            still_due=run.still_due,
        )
        if request.dry_run:
            return answer
        await self._pay(step.tenant_id for step in run.downgraded)
        answer.notices_sent = await deliver_notices(room.engine, room.notices, now=room.clock())
        downgrades = await escalation.list_downgrades(room.engine, now=room.clock())
        answer.alerts.extend([_downgraded(each) for each in downgrades.shown])
        answer.alerts.extend(_more(downgrades.more))
        answer.alerts.extend(_failures("escalation_failed", "Past-due steps were not taken", run.failed))
        return answer

    async def _pay(self, tenants: Iterable[str]) -> None:
        """Pay what these tenants are owed, a few at a time, while there is time."""
        left, ends_at = iter(dict.fromkeys(tenants)), time.monotonic() + PAYING_SECONDS

        async def work() -> None:
            for tenant_id in left:
                if time.monotonic() >= ends_at:
                    return
                await self._room.reconciler.attempt(tenant_id)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def _step(step: Taken) -> pb.EscalationStep:
    return pb.EscalationStep(
        tenant_id=step.tenant_id,
        kind=step.kind,
        past_due_since_at=messages.timestamp(step.past_due_since),
        skipped=step.skipped,
        cycle_ref=step.cycle_ref,
    )


def _downgraded(notice: Notice) -> alert_pb2.Alert:
    """It happened, and is told until a day later: whoever deduplicates knows it by tenant and cycle."""
    told = notice.payload
    evidence = {
        "past_due_since": str(told.get("pastDueSince") or ""),
        "cycle_ref": notice.cycle_ref,
        "plan": str(told.get("planCode") or ""),
    }
    over_limit = told.get("overLimit")
    for over in over_limit or ():
        evidence[f"over_limit.{over['limit']}"] = f"{over['used']} of {over['allowed']}"
    if over_limit is None:
        evidence["over_limit"] = "unknown: the ledger did not answer"
    return alert_pb2.Alert(
        key=f"subscriptions.auto_downgraded:{notice.tenant_id}:{notice.cycle_ref}",
        severity=alert_pb2.ALERT_SEVERITY_CRITICAL,
        title="A tenant who did not pay was put on free"
        + (" and uses more than it allows" if over_limit else ""),
        tenant_id=notice.tenant_id,
        evidence=evidence,
        is_event=True,
    )


def _more(count: int) -> list[alert_pb2.Alert]:
    if not count:
        return []
    return [
        alert_pb2.Alert(
            key="subscriptions.more_auto_downgraded",
            severity=alert_pb2.ALERT_SEVERITY_CRITICAL,
            title=f"and {count} more tenants who did not pay were put on free within a day",
            evidence={"count": str(count)},
        )
    ]


def _failures(condition: str, title: str, tenants: Sequence[str]) -> list[alert_pb2.Alert]:
    """One alert for all of them: what fails for one tenant often fails for many."""
    if not tenants:
        return []
    return [
        alert_pb2.Alert(
            key=f"subscriptions.{condition}",
            severity=alert_pb2.ALERT_SEVERITY_WARNING,
            title=f"{title}: {len(tenants)} failed and are tried again by the next run",
            tenant_id=tenants[0] if len(tenants) == 1 else "",
            evidence={"tenants": ", ".join(tenants[:20]), "count": str(len(tenants))},
        )
    ]
