"""The year itself: the clock is moved a day, the provider charges, jobs run, tenants do what they do."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.year.checks.daily import two_live_subscriptions
from tests.year.customer import Customer
from tests.year.place import Place

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
AT_ONCE = 6
DAILY = ("settle_expired", "grant_due_credits", "escalation", "addon_renewals", "billing_health")
EVENING = "reconcile"  # every few minutes in a real day; here it must come before the night's charges
WEEKLY = ("sync_provider",)
# The audit's second look waits a second, which is long in a year of one minute.
MONTHLY = ("audit_integrity", "cleanup", "webhook_health", "deliver_webhooks")
QUIET_DAYS = 4
SETTLING_ROUNDS = 8
OPEN_TASKS = (
    "SELECT count(*) AS tasks FROM subscriptions.billing_reconciliation_queue WHERE completed_at IS NULL"
)
ABANDONED = """
SELECT tenant_id FROM ops.billing_integrity_reports
WHERE resolved_at IS NULL AND check_type = 'orphan_pending_sub' ORDER BY tenant_id"""
# What goes wrong at the provider, on which calls. A dropped answer is one to work that was done.
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "status", "status": 502, "times": 2},
    {"kind": "status", "status": 500, "times": 1},
    {"kind": "status", "status": 429, "times": 3},
    {"kind": "drop", "method": "POST", "path": "/v1/subscriptions"},
    {"kind": "drop", "method": "POST", "path": "/v1/orders"},
    {"kind": "drop", "method": "POST", "path": "/v1/payments"},
    {"kind": "drop", "times": 2},
    {"kind": "list_lag", "seconds": 600},
)


@dataclass(frozen=True)
class Plan:
    """How long, how many, how wild; the same plan draws the same year."""

    tenants: int = 100
    days: int = 365
    seed: int = 1
    activity: float = 0.15
    kills: int = 2


@dataclass
class Told:
    """What the last jobs answered, for the end."""

    sync: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)
    kills: int = 0


class Year:
    """One run of a plan in a place."""

    def __init__(
        self, place: Place, plan: Plan, *, progress: Callable[[int], None] = lambda _day: None
    ) -> None:
        self.place = place
        self.plan = plan
        self.rng = random.Random(f"{plan.seed}:days")
        self.customers = [Customer(place, number, plan.seed) for number in range(plan.tenants)]
        self.told = Told()
        self._progress = progress
        self._few = asyncio.Semaphore(AT_ONCE)
        middle = range(plan.days // 8, max(plan.days - 7, plan.days // 8 + 1))
        self._kill_days = set(self.rng.sample(middle, min(plan.kills, len(middle))))
        self._doubled: set[str] = set()

    async def run(self) -> Told:
        """Every day, then some quiet ones, until nothing is owed any more."""
        await self.place.stop_the_schedule()
        for day in range(self.plan.days):
            await self._day(day)
            self._progress(day + 1)
        await self._settle()
        return self.told

    async def _day(self, day: int) -> None:
        place = self.place
        place.move(DAY)
        if day - 1 in self._kill_days:
            place.let_leases_lapse()
        was_deaf, deaf = place.deaf, self.rng.random() < 0.04
        if deaf != was_deaf:
            await place.lose_webhooks(deaf)
        faulty = self.rng.random() < 0.15
        if faulty:
            await place.control("POST", "faults", self.rng.choice(FAULTS))
        if await place.tick(**self._manners()):
            await place.drain()
        await asyncio.gather(
            self._run_jobs(day, after_deaf=was_deaf and not deaf),
            self._kill(day),
            *(self._let(customer, day) for customer in self.customers),
        )
        if faulty:
            await place.control("DELETE", "faults")
        await place.run_job(EVENING)
        await place.drain()
        if day % 7 == 0:
            await self._look_for_doubles(day)

    async def _kill(self, day: int) -> None:
        """kill -9 of subscriptions while customers and jobs are at it; the launcher starts it again."""
        if day in self._kill_days:
            await asyncio.sleep(self.rng.uniform(0.01, 0.2))
            with contextlib.suppress(ProcessLookupError):  # it has not come back yet from the time before
                self.place.suite.kill("subscriptions")
                self.told.kills += 1

    async def _let(self, customer: Customer, day: int) -> None:
        async with self._few:
            await customer.day(day, self.plan.activity)

    async def _run_jobs(self, day: int, *, after_deaf: bool) -> None:
        due = [*DAILY]
        if day % 7 == 6:
            due += WEEKLY
        elif after_deaf:
            due.append("sync_provider")
        if day % 28 == 27:
            due += MONTHLY
        await self.place.run_jobs(*due)

    def _manners(self) -> dict[str, Any]:
        if self.rng.random() > 0.3:
            return {}
        return {
            "duplicates": self.rng.choice((0, 1)),
            "shuffle": self.rng.random() < 0.7,
            "seed": self.rng.randrange(10**6),
        }

    async def _look_for_doubles(self, day: int) -> None:
        """Two paid subscriptions of one tenant may overlap while a cancellation is owed, never for a week."""
        doubled = await two_live_subscriptions(self.place)
        for tenant in doubled & self._doubled:
            self.told.trouble.append(f"{tenant} had two live subscriptions for a week before day {day}")
        self._doubled = doubled

    async def _settle(self) -> None:
        """Everything late arrives, disputes end, and what is owed is paid."""
        place = self.place
        await place.lose_webhooks(False)
        for customer in self.customers:
            await customer.receive_late(all_of_it=True)
            while customer.disputes:
                await customer.settle_dispute()
        for _ in range(QUIET_DAYS):
            place.move(DAY)
            for customer in self.customers:
                await customer.take_up()
            await place.tick()
            await place.drain()
            await place.run_jobs(*DAILY, "sync_provider")
            await place.run_job(EVENING)
        for _ in range(SETTLING_ROUNDS):
            (owed,) = await place.rows(OPEN_TASKS)
            if not owed["tasks"]:
                break
            place.move(HOUR * 6)
            await place.run_job(EVENING)
            await place.drain()
        await place.run_jobs(*MONTHLY)
        await self._close_abandoned_windows()
        self.told.sync = await place.run_job("sync_provider")
        self.told.audit = await place.run_job("audit_integrity")
        self.told.health = await place.run_job("billing_health")

    async def _close_abandoned_windows(self) -> None:
        """An operator does what the runbook says of a purchase that nobody completes."""
        for found in await self.place.rows(ABANDONED):
            request = pb.CancelPendingChangeRequest(tenant_id=found["tenant_id"], idempotency_key="abandoned")
            await self.place.tally.ask(self.place.product.CancelPendingChange, request, "the operator")
        await self.place.run_jobs(*DAILY, EVENING)
        await self.place.drain()
