"""Purchases that were begun: of plans and of credits."""

from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.purchases import Intent, PackPurchase

_INTENT = [tables.checkout_intents.c[field.name] for field in fields(Intent)]
_PURCHASE = [tables.credit_pack_purchases.c[field.name] for field in fields(PackPurchase)]
# Longer than one call to the provider can take, so that two callers never ask at once.
LEASE = timedelta(seconds=15)


async def insert_intent(db: AsyncConnection, intent: Intent) -> None:
    """Write down the intention to buy a plan."""
    await db.execute(
        insert(tables.checkout_intents).values({c.name: getattr(intent, c.name) for c in _INTENT})
    )


async def find_intent_by_key(db: AsyncConnection, tenant_id: str, key: str) -> Intent | None:
    """The purchase that this key began."""
    table = tables.checkout_intents
    return await _intent(db, table.c.tenant_id == tenant_id, table.c.idempotency_key == key)


async def find_intent(db: AsyncConnection, intent_id: str) -> Intent | None:
    """A purchase by its id."""
    return await _intent(db, tables.checkout_intents.c.id == intent_id)


async def _intent(db: AsyncConnection, *conditions: Any) -> Intent | None:
    row = (await db.execute(select(*_INTENT).where(*conditions))).one_or_none()
    return Intent(**row._mapping) if row else None


async def claim_intent(db: AsyncConnection, intent_id: str) -> datetime | None:
    """Take the right to ask the provider; answers the lease, or None while another call holds one."""
    table = tables.checkout_intents
    lease: datetime | None = await db.scalar(
        update(table)
        .where(
            table.c.id == intent_id,
            or_(table.c.locked_until.is_(None), table.c.locked_until < func.clock_timestamp()),
        )
        .values(locked_until=func.clock_timestamp() + LEASE)
        .returning(table.c.locked_until)
    )
    return lease


async def mark_intent_attempted(
    db: AsyncConnection,
    intent_id: str,
    lease: datetime,
    *,
    provider_plan_id: str,
    attempted_at: datetime,
) -> datetime | None:
    """Say that from now on the provider's answer may be lost, and renew the lease; None if it was taken over."""
    table = tables.checkout_intents
    renewed: datetime | None = await db.scalar(
        update(table)
        .where(table.c.id == intent_id, table.c.locked_until == lease)
        .values(
            provider_plan_id=provider_plan_id,
            attempted_at=attempted_at,
            locked_until=func.clock_timestamp() + LEASE,
        )
        .returning(table.c.locked_until)
    )
    return renewed


async def finish_intent(db: AsyncConnection, intent_id: str, provider_subscription_id: str) -> None:
    """Store which subscription the provider made of it."""
    await db.execute(
        update(tables.checkout_intents)
        .where(tables.checkout_intents.c.id == intent_id)
        .values(provider_subscription_id=provider_subscription_id, locked_until=None)
    )


async def release_intent(db: AsyncConnection, intent_id: str, *, forget_attempt: bool) -> None:
    """Give back the right to ask the provider; after a definite answer there is nothing to look for either."""
    await db.execute(
        update(tables.checkout_intents)
        .where(tables.checkout_intents.c.id == intent_id)
        .values({"locked_until": None} | ({"attempted_at": None} if forget_attempt else {}))
    )


async def insert_purchase(db: AsyncConnection, purchase: PackPurchase) -> None:
    """Write down the intention to buy credits."""
    await db.execute(
        insert(tables.credit_pack_purchases).values({c.name: getattr(purchase, c.name) for c in _PURCHASE})
    )


async def find_purchase_by_key(db: AsyncConnection, tenant_id: str, key: str) -> PackPurchase | None:
    """The purchase that this key began."""
    table = tables.credit_pack_purchases
    return await _purchase(db, table.c.tenant_id == tenant_id, table.c.idempotency_key == key)


async def find_purchase(db: AsyncConnection, purchase_id: str) -> PackPurchase | None:
    """A purchase by its id."""
    return await _purchase(db, tables.credit_pack_purchases.c.id == purchase_id)


async def find_purchase_by_order(db: AsyncConnection, order_id: str) -> PackPurchase | None:
    """The purchase that we made this order for."""
    return await _purchase(db, tables.credit_pack_purchases.c.provider_order_id == order_id)


async def _purchase(db: AsyncConnection, *conditions: Any) -> PackPurchase | None:
    row = (await db.execute(select(*_PURCHASE).where(*conditions))).one_or_none()
    return PackPurchase(**row._mapping) if row else None


async def set_purchase_order(db: AsyncConnection, purchase_id: str, order_id: str) -> None:
    """Store which order the provider made of it."""
    table = tables.credit_pack_purchases
    await db.execute(
        update(table)
        .where(table.c.id == purchase_id, table.c.provider_order_id.is_(None))
        .values(provider_order_id=order_id)
    )


async def set_purchase_paid(
    db: AsyncConnection, purchase_id: str, payment_id: str, paid_at: datetime
) -> None:
    """Store which payment paid it."""
    await db.execute(
        update(tables.credit_pack_purchases)
        .where(tables.credit_pack_purchases.c.id == purchase_id)
        .values(payment_id=payment_id, paid_at=paid_at)
    )
