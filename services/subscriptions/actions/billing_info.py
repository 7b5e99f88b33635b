"""GetBillingInfo and UpdateBillingInfo: who the customer is, as tax invoices name it."""

from dataclasses import asdict, dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.errors import UnknownTenant
from services.subscriptions.rules import billing_info as rules
from services.subscriptions.rules.billing_info import BillingInfo
from services.subscriptions.store import billing_info as store
from services.subscriptions.store import keys
from services.subscriptions.store import subscriptions as tenants
from shared.database import transaction

METHOD = "UpdateBillingInfo"


@dataclass(frozen=True)
class Updated:
    """The details as stored, and whether an earlier call stored them."""

    info: BillingInfo
    replayed: bool


async def get_billing_info(engine: AsyncEngine, *, tenant_id: str) -> BillingInfo:
    """The details of a tenant, empty where none were given."""
    async with transaction(engine) as db:
        if await tenants.find_subscription(db, tenant_id) is None:
            raise UnknownTenant(
                f"tenant {tenant_id} was never provisioned: call ProvisionTenant first", tenant_id=tenant_id
            )
        return await store.read_billing_info(db, tenant_id)


async def update_billing_info(
    engine: AsyncEngine, *, tenant_id: str, idempotency_key: str, given: BillingInfo
) -> Updated:
    """Replace the details of a tenant; documents issued before keep theirs."""
    info = rules.accept(given)
    request = asdict(info)
    async with transaction(engine) as db:
        await tenants.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(
            db, tenant_id=tenant_id, method=METHOD, key=idempotency_key, request=request
        )
        if answer is not None:
            return Updated(BillingInfo(**answer), replayed=True)
        before = await store.read_billing_info(db, tenant_id)
        if info != before:
            await store.save_billing_info(db, tenant_id, info)
            await standing.record_change(
                db,
                tenant_id,
                "billing_info.changed",
                asdict(before),
                asdict(info),
                actor_type="service",
                actor_id="product",
                reason="the customer's details for invoices",
            )
        await keys.insert_answer(
            db,
            tenant_id=tenant_id,
            method=METHOD,
            key=idempotency_key,
            request=request,
            answer=asdict(info),
        )
    return Updated(info, replayed=False)
