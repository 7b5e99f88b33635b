"""What tenants told of themselves for their invoices."""

from dataclasses import asdict, fields

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.billing_info import BillingInfo
from shared.ids import new_id

billing_info = tables.billing_info


async def read_billing_info(db: AsyncConnection, tenant_id: str) -> BillingInfo:
    """The details of a tenant, empty where none were given."""
    columns = [billing_info.c[field.name] for field in fields(BillingInfo)]
    row = (await db.execute(select(*columns).where(billing_info.c.tenant_id == tenant_id))).one_or_none()
    return BillingInfo(**row._mapping) if row else BillingInfo()


async def save_billing_info(db: AsyncConnection, tenant_id: str, info: BillingInfo) -> None:
    """Replace the details of a tenant."""
    values = asdict(info)
    await db.execute(
        insert(billing_info)
        .values(id=new_id("bil"), tenant_id=tenant_id, **values)
        .on_conflict_do_update(index_elements=["tenant_id"], set_=values | {"updated_at": func.now()})
    )
