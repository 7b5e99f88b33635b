"""What tests of add-ons ask the room, the ledger and their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from billing.ledger.v1 import ledger_funding_pb2, ledger_pb2, types_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as maintenance_pb
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.subscriptions.actions.catalog import apply_catalog
from services.subscriptions.catalogue import load_catalog
from services.subscriptions.rules.catalog import Addon
from services.subscriptions.rules.entitlements import ActiveAddon, Override, build, from_json
from services.subscriptions.store import catalog as catalog_store
from shared.database import transaction
from tests.subscriptions.conftest import Room


@dataclass
class Books:
    """One tenant: its calls, and what stands in the books of both rooms."""

    room: Room
    tenant: str
    granted: int = 0

    @property
    def product(self) -> Any:
        return self.room.product

    async def fund(self, credits: int) -> None:
        self.granted += 1
        await self.room.ledger.funding.GrantCredits(
            ledger_funding_pb2.GrantCreditsRequest(
                tenant_id=self.tenant,
                idempotency_key=f"fund:{self.granted}",
                bucket=types_pb2.BUCKET_PERMANENT,
                credits=credits,
                reference_id=f"test:{self.granted}",
                reason="test",
                description="for a test",
            )
        )

    async def spend(self, credits: int, key: str) -> None:
        await self.room.ledger.service.Debit(
            ledger_pb2.DebitRequest(
                tenant_id=self.tenant, idempotency_key=key, credits=credits, reason="blog.publish"
            )
        )

    async def buy(
        self, code: str = "seat", key: str = "buy", units: int = 0, door: Any = None
    ) -> pb.BuyAddonResponse:
        answer: pb.BuyAddonResponse = await (door or self.product).BuyAddon(
            pb.BuyAddonRequest(tenant_id=self.tenant, idempotency_key=key, addon_code=code, units=units)
        )
        return answer

    async def cancel(self, addon: str, key: str = "cancel", door: Any = None) -> pb.CancelAddonResponse:
        answer: pb.CancelAddonResponse = await (door or self.product).CancelAddon(
            pb.CancelAddonRequest(tenant_id=self.tenant, idempotency_key=key, tenant_addon_id=addon)
        )
        return answer

    async def resume(self, addon: str, key: str = "resume", door: Any = None) -> pb.ResumeAddonResponse:
        answer: pb.ResumeAddonResponse = await (door or self.product).ResumeAddon(
            pb.ResumeAddonRequest(tenant_id=self.tenant, idempotency_key=key, tenant_addon_id=addon)
        )
        return answer

    async def renew(self, *, dry_run: bool = False, door: Any = None) -> maintenance_pb.RenewAddonsResponse:
        answer: maintenance_pb.RenewAddonsResponse = await (door or self.room.maintenance).RenewAddons(
            maintenance_pb.RenewAddonsRequest(idempotency_key="job:renew_addons:test", dry_run=dry_run)
        )
        return answer

    async def listed(self) -> list[pb.TenantAddon]:
        found = await self.product.ListTenantAddons(pb.ListTenantAddonsRequest(tenant_id=self.tenant))
        return list(found.addons)

    async def limit(self, path: str = "platform.seats") -> int:
        """The bound that the ledger enforces now."""
        checked = await self.room.ledger.service.CheckLimit(
            ledger_pb2.CheckLimitRequest(tenant_id=self.tenant, limit_key=path)
        )
        return int(checked.decision.limit)

    async def available(self) -> int:
        found = await self.room.ledger.service.GetBalance(ledger_pb2.GetBalanceRequest(tenant_id=self.tenant))
        return int(found.balance.available)

    def rows(self) -> list[dict[str, Any]]:
        return self.room.rows("SELECT * FROM tenant_addons WHERE tenant_id = %s ORDER BY id", self.tenant)

    def debits(self) -> list[dict[str, Any]]:
        """Every debit for an add-on, in the ledger's own table."""
        return self.room.rows(
            "SELECT idempotency_key, reference_id, amount, reason FROM ledger.credit_transactions"
            " WHERE tenant_id = %s AND kind = 'debit' AND tx_status = 'posted' AND reason LIKE 'addon.%%'"
            " ORDER BY id",
            self.tenant,
        )

    def assert_charged_once(self, *, settled: bool) -> None:
        """One debit for each period recorded as paid; while a charge is under way, one more may stand."""
        charged = Counter(debit["reference_id"] for debit in self.debits())
        assert not [reference for reference, times in charged.items() if times > 1], charged
        recorded, under_way = set(), set()
        for row in self.rows():
            recorded |= {f"{row['id']}:{period}" for period in range(1, row["period"] + 1)}
            if row["charge_credits"] is not None:
                under_way.add(f"{row['id']}:{row['period'] + 1}")
        assert recorded <= set(charged) <= recorded | under_way
        if settled:
            assert not under_way

    async def assert_entitled(self) -> None:
        """What was built is the plan with its active add-ons and overrides, and the ledger holds the same."""
        [row] = self.room.rows("SELECT * FROM subscriptions WHERE tenant_id = %s", self.tenant)
        async with transaction(self.room.engine) as db:
            catalog = await catalog_store.read_catalog(db, with_retired=True)
        overrides = self.room.rows(
            "SELECT * FROM tenant_overrides WHERE tenant_id = %s AND removed_at IS NULL", self.tenant
        )
        expected = build(
            catalog,
            row["plan_id"],
            [
                ActiveAddon(addon["addon_id"], addon["units"])
                for addon in self.rows()
                if addon["status"] in ("active", "canceling")
            ],
            [Override(o["service_id"], o["limit_key"], o["value"], o["expires_at"]) for o in overrides],
            self.room.clock(),
        )
        assert from_json(row["entitlements"]) == expected
        held = await self.room.ledger.funding.GetEntitlements(
            ledger_funding_pb2.GetEntitlementsRequest(tenant_id=self.tenant)
        )
        assert held.version == row["entitlements_version"]
        in_ledger = {
            f"{service.service_code}.{limit.key}": limit.value
            for service in held.services
            for limit in service.limits
            if not limit.unlimited
        }
        built = {
            f"{service.service}.{limit.key}": limit.value
            for service in expected
            for limit in service.limits
            if limit.value is not None
        }
        assert in_ledger == built


@asynccontextmanager
async def selling(room: Room, **addons: Addon | None) -> AsyncIterator[None]:
    """A catalogue with other add-ons, None being one that is no longer sold; as it was at the end."""
    shipped = load_catalog()
    changed = {code: addon for code, addon in (dict(shipped.addons) | addons).items() if addon is not None}
    await apply_catalog(room.engine, replace(shipped, addons=changed), actor="test", dry_run=False)
    try:
        yield
    finally:
        await apply_catalog(room.engine, shipped, actor="test", dry_run=False)


async def books(room: Room, tenant: str, credits: int = 0) -> Books:
    """A tenant on the free plan with so many credits."""
    await room.provision(tenant)
    opened = Books(room, tenant)
    if credits:
        await opened.fund(credits)
    return opened
