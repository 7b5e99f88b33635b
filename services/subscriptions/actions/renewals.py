"""RenewAddons: periods that came due, and charges that nobody finished."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.actions.addon_charges import Settlement, carry_out, record_audit
from services.subscriptions.actions.reconciliation import ALERTS_MAX, AT_ONCE, RUN_SECONDS, Reconciler
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.errors import LedgerUnavailable
from services.subscriptions.rules import addons as rules
from services.subscriptions.rules.addons import Charge, TenantAddon
from services.subscriptions.rules.catalog import Addon
from services.subscriptions.store import addons as store
from services.subscriptions.store import audit
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import subscriptions as subscription_store
from services.subscriptions.store.addons import Waiting
from shared import logs
from shared.clock import Clock
from shared.database import transaction
from shared.errors import Aborted, BillingError, ResourceExhausted

PAGE = 100
WALK = "renew_addons.paused"

What = Literal["renewed", "paused", "ended", "failed"]
_log = logs.get_logger()


@dataclass(frozen=True)
class Trouble:
    """What a person must look at: an add-on that the ledger would not charge, or a tenant that cannot be recorded."""

    subject: str
    tenant_id: str
    title: str
    evidence: dict[str, str]


@dataclass
class Renewals:
    """What one run did, or would do."""

    counts: Counter[What] = field(default_factory=Counter)
    troubles: list[Trouble] = field(default_factory=list)


class Renewer:
    """One run over every tenant with an add-on that time or new credits may move."""

    def __init__(self, engine: AsyncEngine, ledger: Ledger, reconciler: Reconciler, clock: Clock) -> None:
        self._engine = engine
        self._ledger = ledger
        self._reconciler = reconciler
        self._clock = clock
        self._done = Renewals()

    async def run(self, *, dry_run: bool) -> Renewals:
        """What is due first, then what waits for credits; a tenant's failure is its own."""
        ends_at = time.monotonic() + RUN_SECONDS
        await self._walk("due", "", ends_at, dry_run=dry_run)
        async with transaction(self._engine) as db:
            place = await audit.find_place(db, WALK)
        # What is due leaves the line when it is done; what is paused stays, so the next run goes on behind it.
        place = await self._walk("paused", "" if dry_run else place, ends_at, dry_run=dry_run)
        if not dry_run:
            async with transaction(self._engine) as db:
                await audit.save_place(db, WALK, place)
        return self._done

    async def _walk(self, waiting: Waiting, after: str, ends_at: float, *, dry_run: bool) -> str:
        """Page after page while there is time; answers where to go on, empty for the beginning."""
        few = asyncio.Semaphore(AT_ONCE)
        while time.monotonic() < ends_at:
            async with transaction(self._engine) as db:
                tenants = await store.list_waiting_tenants(
                    db, waiting, self._clock(), after=after, limit=PAGE
                )
            if not tenants:
                return ""
            await asyncio.gather(
                *(self._tenant(tenant_id, waiting, few, dry_run=dry_run) for tenant_id in tenants)
            )
            after = tenants[-1]
        return after

    async def _tenant(
        self, tenant_id: str, waiting: Waiting, few: asyncio.Semaphore, *, dry_run: bool
    ) -> None:
        async with few:
            try:
                await self._move(tenant_id, waiting, dry_run=dry_run)
            except LedgerUnavailable as error:
                self._fail(tenant_id, error.__cause__ or error)
            except Exception as error:
                self._fail(tenant_id, error)

    def _fail(self, tenant_id: str, error: BaseException) -> None:
        """Left for the next run; what is not the ledger's silence needs a person as well."""
        self._done.counts["failed"] += 1
        reason = error.reason if isinstance(error, BillingError) else type(error).__name__
        passing = isinstance(error, BillingError) and not error.definite
        passing = passing or isinstance(error, ResourceExhausted | Aborted | DBAPIError)
        _log.warning(
            "addon_renewal_failed", tenant_id=tenant_id, reason=reason, exc_info=None if passing else error
        )
        if not passing:
            title = f"Add-ons of {tenant_id} cannot be renewed: {reason}"
            self._report(Trouble(tenant_id, tenant_id, title, {"reason": reason}))

    def _report(self, trouble: Trouble) -> None:
        if len(self._done.troubles) < ALERTS_MAX:
            self._done.troubles.append(trouble)

    async def _move(self, tenant_id: str, waiting: Waiting, *, dry_run: bool) -> None:
        async with transaction(self._engine) as db:
            rows = await store.list_waiting(db, tenant_id, waiting, self._clock())
            addons = (await catalog_store.read_catalog(db, with_retired=True)).addons
        wallet = 0
        if waiting == "paused" or dry_run:
            wallet = await self._available(tenant_id)
        asked = False
        try:
            for row in rows:
                cost = rules.price(addons[row.addon_id], row.units)
                if waiting == "paused" and cost > wallet:
                    continue
                if dry_run:
                    wallet -= self._foresee(row, cost, wallet, self._clock())
                    continue
                asked = True
                what = await self._one(row, addons[row.addon_id])
                if what is not None:
                    self._done.counts[what] += 1
                if what == "renewed":
                    wallet -= cost
        finally:
            if asked:
                await self._reconciler.attempt(tenant_id)

    async def _available(self, tenant_id: str) -> int:
        try:
            return (await self._ledger.get_wallet(tenant_id)).available
        except BillingError as error:
            raise LedgerUnavailable("the ledger did not say what the tenant may spend") from error

    def _foresee(self, row: TenantAddon, cost: int, wallet: int, now: datetime) -> int:
        """Counts what a run would do; answers the credits that it would take."""
        if rules.due(row, now) == "end":
            self._done.counts["ended"] += 1
            return 0
        cost = row.charge_credits or cost
        if cost <= wallet:
            self._done.counts["renewed"] += 1
            return cost
        self._done.counts["paused"] += row.status == "active"
        return 0

    async def _one(self, row: TenantAddon, addon: Addon) -> What | None:
        charge = await self._begin(row, addon)
        if not isinstance(charge, Charge):
            return charge
        settlement = await carry_out(self._engine, self._ledger, charge, self._clock)
        return self._judge(settlement)

    async def _begin(self, seen: TenantAddon, addon: Addon) -> Charge | What | None:
        """Look again under the lock: end what is over, write down the charge of what is due."""
        now = self._clock()
        async with transaction(self._engine) as db:
            subscription = await subscription_store.lock_subscription(db, seen.tenant_id)
            row = await store.find_addon(db, seen.tenant_id, seen.id)
            due = rules.due(row, now) if row else None
            if row is None or due is None:
                return None
            if due == "end":
                after = rules.ended(row)
                await store.save_addon(db, after)
                await record_audit(db, row, after, "addon.ended", by_caller=False)
                await standing.rebuild(db, subscription, now)
                return "ended"
            if row.charge is None:
                row = rules.begin(row, rules.price(addon, row.units), None)
                await store.save_addon(db, row)
            return row.charge

    def _judge(self, settlement: Settlement) -> What | None:
        """What this run did; somebody else's record is somebody else's deed."""
        if not settlement.recorded:
            return None
        match settlement.outcome.kind:
            case "paid":
                return "renewed"
            case "unaffordable":
                return "paused" if settlement.row.status == "paused" else None
        self._report(_would_not_charge(settlement))
        return "failed"


def _would_not_charge(settlement: Settlement) -> Trouble:
    row, refusal = settlement.row, settlement.outcome.refusal
    return Trouble(
        row.id,
        row.tenant_id,
        f"The ledger would not charge add-on {row.addon_id}: {refusal}",
        {
            "tenant_addon_id": row.id,
            "addon": row.addon_id,
            "status": row.status,
            "period": str(row.period + 1),
            "reason": refusal.reason if refusal else "",
        },
    )
