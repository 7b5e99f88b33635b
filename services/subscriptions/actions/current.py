"""GetCurrent: where a tenant stands, from our tables and the ledger."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.clients.ledger import Ledger, Wallet
from services.subscriptions.errors import UnknownTenant
from services.subscriptions.rules.alerts import Alert, alerts
from services.subscriptions.rules.entitlements import ServiceEntitlement
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import subscriptions as store
from shared import logs
from shared.database import transaction
from shared.errors import BillingError

_log = logs.get_logger()


@dataclass(frozen=True)
class Current:
    """Where a tenant stands; without a wallet the ledger did not answer."""

    row: Subscription
    plan_name: str
    services: tuple[ServiceEntitlement, ...]
    wallet: Wallet | None
    usage: dict[str, int]
    alerts: list[Alert]


async def get_current(
    engine: AsyncEngine, ledger: Ledger, policy: Policy, *, tenant_id: str, now: datetime
) -> Current:
    """Everything that a billing page shows; a silent ledger leaves its part out and fails nothing."""
    async with transaction(engine) as db:
        row = await store.find_subscription(db, tenant_id)
        if row is None:
            raise UnknownTenant(
                f"tenant {tenant_id} was never provisioned: call ProvisionTenant first", tenant_id=tenant_id
            )
        catalog = await catalog_store.read_catalog(db, with_retired=True)
        services = await store.read_entitlements(db, tenant_id)
        paused_addons = await store.list_paused_addons(db, tenant_id)
    wallet, usage = await asyncio.gather(_wallet(ledger, tenant_id), _usage(ledger, tenant_id))
    return Current(
        row=row,
        # An operator may have written a plan that is none; the page still opens.
        plan_name=catalog.plans[row.plan_id].name if row.plan_id in catalog.plans else row.plan_id,
        services=services,
        wallet=wallet,
        usage=usage,
        alerts=alerts(row, services, usage, paused_addons, now, policy.ladder),
    )


async def _wallet(ledger: Ledger, tenant_id: str) -> Wallet | None:
    try:
        return await ledger.get_wallet(tenant_id)
    except BillingError as error:
        _log.warning("wallet_unavailable", tenant_id=tenant_id, reason=error.reason)
        return None


async def _usage(ledger: Ledger, tenant_id: str) -> dict[str, int]:
    try:
        return await ledger.list_usage(tenant_id)
    except BillingError as error:
        _log.warning("usage_unavailable", tenant_id=tenant_id, reason=error.reason)
        return {}
