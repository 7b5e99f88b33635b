"""SubscriptionsMaintenanceService: credits and steps that time makes due."""

import asyncio
import time
from collections.abc import Iterable, Sequence

from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions import due_credits
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk

AT_ONCE = 8
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

    async def _pay(self, tenants: Iterable[str]) -> None:
        """Pay what these tenants are owed, a few at a time, while there is time."""
        left, ends_at = iter(dict.fromkeys(tenants)), time.monotonic() + PAYING_SECONDS

        async def work() -> None:
            for tenant_id in left:
                if time.monotonic() >= ends_at:
                    return
                await self._room.reconciler.attempt(tenant_id)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


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
