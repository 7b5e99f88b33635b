"""What the comparison with the provider goes through: subscriptions, unpaid purchases, money that went back."""

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, Text, and_, cast, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.events import TERMINAL
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.store.audit import ROOM
from shared.ops.tables import billing_integrity_reports

_KNOWN = [tables.provider_subscriptions.c[field.name] for field in fields(KnownSubscription)]
_PAYMENT = re.compile(r"pay_[A-Za-z0-9]+")
# A dispute in one of these goes on.
UNSETTLED = ("open", "under_review", "action_required")


@dataclass(frozen=True)
class Compared:
    """A subscription of ours, how many of its payments we hold, and the tenant's plan where it relies on this."""

    known: KnownSubscription
    payments: int
    plan_of_row: str | None


@dataclass(frozen=True)
class Unpaid:
    """A purchase of credits whose order may have been paid."""

    id: str
    tenant_id: str
    order_id: str


async def list_known(
    db: AsyncConnection,
    *,
    tenant_id: str | None,
    after: tuple[str, str],
    ended_since: datetime,
    limit: int,
) -> list[Compared]:
    """A page of subscriptions that live or ended lately, by tenant."""
    table = tables.provider_subscriptions
    query = _with_payments().where(
        or_(
            table.c.status.not_in(sorted(TERMINAL)),
            table.c.ended_at > ended_since,
            and_(table.c.ended_at.is_(None), table.c.observed_at > ended_since),
        ),
        tuple_(table.c.tenant_id, table.c.id) > tuple_(*after),
    )
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    rows = await db.execute(query.order_by(table.c.tenant_id, table.c.id).limit(limit))
    return [_compared(row) for row in rows]


async def list_of_tenant(db: AsyncConnection, tenant_id: str) -> list[Compared]:
    """Every subscription that a tenant ever began, oldest first."""
    table = tables.provider_subscriptions
    query = _with_payments().where(table.c.tenant_id == tenant_id)
    return [_compared(row) for row in await db.execute(query.order_by(table.c.purchased_at, table.c.id))]


def _with_payments() -> Select[Any]:
    table, payments, rows = tables.provider_subscriptions, tables.payments, tables.subscriptions
    count = select(func.count()).where(payments.c.razorpay_subscription_id == table.c.id)
    relying = rows.c.razorpay_subscription_id == table.c.id
    return select(
        *_KNOWN, count.scalar_subquery().label("payments"), rows.c.plan_id.label("plan_of_row")
    ).outerjoin_from(table, rows, relying)


def _compared(row: Any) -> Compared:
    values = dict(row._mapping)
    payments, plan_of_row = int(values.pop("payments")), values.pop("plan_of_row")
    return Compared(KnownSubscription(**values), payments, plan_of_row)


async def find_held(db: AsyncConnection, subscription_ids: Collection[str]) -> set[str]:
    """Which of these subscriptions we hold."""
    column = tables.provider_subscriptions.c.id
    return set(await db.scalars(select(column).where(column.in_(list(subscription_ids)))))


async def find_tenants(db: AsyncConnection, tenants: Collection[str]) -> set[str]:
    """Which of these are tenants of ours."""
    column = tables.subscriptions.c.tenant_id
    return set(await db.scalars(select(column).where(column.in_(list(tenants)))))


async def find_first_moment(db: AsyncConnection, tenant_id: str | None) -> datetime | None:
    """When the first tenant, or this one, was provisioned: nothing that names a tenant is older."""
    table = tables.subscriptions
    query = select(func.min(table.c.created_at))
    first: datetime | None = await db.scalar(
        query if tenant_id is None else query.where(table.c.tenant_id == tenant_id)
    )
    return first


async def list_unpaid(
    db: AsyncConnection, *, tenant_id: str | None, younger_than: timedelta, after: str, limit: int
) -> list[Unpaid]:
    """A page of purchases that have an order and no payment, by the database's own clock."""
    table = tables.credit_pack_purchases
    query = select(table.c.id, table.c.tenant_id, table.c.provider_order_id).where(
        table.c.payment_id.is_(None),
        table.c.provider_order_id.is_not(None),
        table.c.created_at > func.now() - younger_than,
        table.c.id > after,
    )
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    rows = await db.execute(query.order_by(table.c.id).limit(limit))
    return [Unpaid(row.id, row.tenant_id, row.provider_order_id) for row in rows]


async def find_payment_owners(db: AsyncConnection, payment_ids: Collection[str]) -> dict[str, str]:
    """Whose each of these payments is, as far as we hold them."""
    table = tables.payments
    rows = await db.execute(select(table.c.id, table.c.tenant_id).where(table.c.id.in_(list(payment_ids))))
    return {row.id: row.tenant_id for row in rows}


async def find_order_owners(db: AsyncConnection, order_ids: Collection[str]) -> dict[str, str]:
    """Who bought credits with each of these orders, as far as we made them."""
    table = tables.credit_pack_purchases
    rows = await db.execute(
        select(table.c.provider_order_id, table.c.tenant_id).where(
            table.c.provider_order_id.in_(list(order_ids))
        )
    )
    return {row.provider_order_id: row.tenant_id for row in rows}


async def find_settled_payments(
    db: AsyncConnection, tenant_id: str, *, check: str, closed_by: str
) -> set[str]:
    """Payments that a finding of another check names, or one of this check that somebody else than this closed."""
    table = billing_integrity_reports
    by_a_person = and_(table.c.resolved_at.is_not(None), table.c.resolved_by != closed_by)
    told = await db.scalars(
        select(cast(table.c.observed, Text)).where(
            table.c.room == ROOM,
            table.c.tenant_id == tenant_id,
            or_(table.c.check_type != check, by_a_person),
        )
    )
    return {payment_id for observed in told for payment_id in _PAYMENT.findall(observed)}


async def find_refund_statuses(db: AsyncConnection, refund_ids: Collection[str]) -> dict[str, str]:
    """How far each of these refunds came, as far as we know."""
    table = tables.billing_refunds
    rows = await db.execute(
        select(table.c.provider_refund_id, table.c.status).where(
            table.c.provider_refund_id.in_(list(refund_ids))
        )
    )
    return {row.provider_refund_id: row.status for row in rows}


async def find_dispute_statuses(db: AsyncConnection, dispute_ids: Collection[str]) -> dict[str, str]:
    """How far each of these disputes came, as far as we know."""
    table = tables.billing_disputes
    rows = await db.execute(select(table.c.id, table.c.status).where(table.c.id.in_(list(dispute_ids))))
    return {row.id: row.status for row in rows}


async def list_pending_refunds(db: AsyncConnection, tenant_id: str | None, *, limit: int) -> list[str]:
    """Refunds that the provider has not finished, as far as we know, oldest first."""
    table = tables.billing_refunds
    query = select(table.c.provider_refund_id).where(
        table.c.status == "pending",
        table.c.provider_refund_id.is_not(None),
        table.c.tenant_id.is_not(None) if tenant_id is None else table.c.tenant_id == tenant_id,
    )
    return [each for each in await db.scalars(query.order_by(table.c.created_at).limit(limit)) if each]


async def list_open_disputes(db: AsyncConnection, tenant_id: str | None, *, limit: int) -> list[str]:
    """Disputes that go on, as far as we know, oldest first."""
    table = tables.billing_disputes
    query = select(table.c.id).where(
        table.c.status.in_(UNSETTLED),
        table.c.tenant_id.is_not(None) if tenant_id is None else table.c.tenant_id == tenant_id,
    )
    return list(await db.scalars(query.order_by(table.c.created_at).limit(limit)))
