"""CheckHealth, and the numbers for Prometheus: how charging goes. Nothing here changes anything."""

import time
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions import metrics
from services.subscriptions.rules import findings as finding_rules
from services.subscriptions.rules import health as rules
from services.subscriptions.rules.health import Health
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import audit
from services.subscriptions.store import health as store
from shared.clock import Clock
from shared.database import transaction

SHOWN_MAX = 50
# Tenants by plan are counted row by row, and change slowly.
PLANS_FRESH_SECONDS = 60.0


async def check_health(engine: AsyncEngine, policy: Policy, *, now: datetime) -> Health:
    """How charging goes now. Findings are those that events opened: the audits report their own."""
    theirs = finding_rules.OURS | finding_rules.WITH_LEDGER | finding_rules.OF_SYNC
    async with transaction(engine) as db:
        succeeded, failed = await store.count_charges(db, now - rules.HOUR)
        findings = await audit.list_open(db, without=theirs, limit=SHOWN_MAX)
        return Health(
            succeeded=succeeded,
            failed=failed,
            fails_often=rules.fails_often(
                succeeded, failed, pct=policy.failures_alert_pct, at_least=policy.failures_alert_min
            ),
            disputes=await store.list_open_disputes(db, limit=SHOWN_MAX),
            open_disputes=await store.count_open_disputes(db),
            findings=findings,
            more_findings=await audit.count_open(db, without=theirs) - len(findings),
            critical=await store.count_critical(db),
            abandoned=await store.count_abandoned(db),
            overdue=await store.find_overdue(db, now - rules.TASKS_OVERDUE),
            notices_owed_long=await store.count_owed_long(db, now - rules.NOTICES_OWED_LONG),
        )


class Numbers:
    """What the tables say to Prometheus, read when it asks."""

    def __init__(self, engine: AsyncEngine, policy: Policy, clock: Clock) -> None:
        self._engine = engine
        self._policy = policy
        self._clock = clock
        self._plans_read_at = float("-inf")

    async def refresh(self) -> None:
        """Read and show them."""
        now, moment = self._clock(), time.monotonic()
        with_plans = moment - self._plans_read_at > PLANS_FRESH_SECONDS
        async with transaction(self._engine) as db:
            gauges = await store.read_gauges(db, now, self._policy.ladder, subscriptions=with_plans)
        if with_plans:
            self._plans_read_at = moment
        metrics.show(gauges, now)
