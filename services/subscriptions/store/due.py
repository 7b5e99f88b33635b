"""Who is owed credits that time made due."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.catalog import FREE
from services.subscriptions.rules.due import MONTHS, DrippingYear, Month
from services.subscriptions.rules.funding import Grant
from services.subscriptions.rules.tasks import grant_credits
from shared.ids import new_id

_rows = tables.subscriptions
_payments = tables.payments
_grants = tables.credit_grants
_queue = tables.billing_reconciliation_queue
# No month is shorter, so that more cannot have begun.
_SHORTEST_MONTH = timedelta(days=28)
# How long after its end a year is still looked at: nobody stops the job for longer.
_CATCH_UP = timedelta(days=365)


def _without_free_month(month: Month) -> ColumnElement[bool]:
    """Tenants who are on free and have nothing for the month."""
    reference = literal("free:") + _rows.c.tenant_id + literal(f":{month.name}")
    on_free = or_(and_(_rows.c.plan_id == FREE, _rows.c.status == "active"), _rows.c.status == "canceled")
    granted = exists().where(_grants.c.tenant_id == _rows.c.tenant_id, _grants.c.reference_id == reference)
    return and_(on_free, ~granted)


async def count_without_free_month(db: AsyncConnection, month: Month) -> int:
    """How many tenants are owed the month."""
    return await db.scalar(select(func.count()).select_from(_rows).where(_without_free_month(month))) or 0


async def list_without_free_month(db: AsyncConnection, month: Month, *, after: str, limit: int) -> list[str]:
    """A page of the tenants who are owed the month, by id."""
    rows = await db.scalars(
        select(_rows.c.tenant_id)
        .where(_without_free_month(month), _rows.c.tenant_id > after)
        .order_by(_rows.c.tenant_id)
        .limit(limit)
    )
    return list(rows)


async def lock_on_free(db: AsyncConnection, month: Month, tenants: Sequence[str], *, wait: bool) -> list[str]:
    """Those who are still owed the month, held; without waiting those whom nobody else holds."""
    rows = await db.scalars(
        select(_rows.c.tenant_id)
        .where(_without_free_month(month), _rows.c.tenant_id.in_(tenants))
        .order_by(_rows.c.tenant_id)
        .with_for_update(of=_rows, skip_locked=not wait)
    )
    return list(rows)


async def insert_free_months(db: AsyncConnection, grants: Sequence[Grant], now: datetime) -> list[Grant]:
    """Decide free months and owe them to the ledger; answers those that were new."""
    if not grants:
        return []
    inserted = set(
        await db.scalars(
            insert(_grants)
            .values(
                [
                    {
                        "id": new_id("grt"),
                        "tenant_id": grant.tenant_id,
                        "reference_id": grant.reference_id,
                        "kind": grant.kind,
                        "bucket": grant.bucket,
                        "credits": grant.credits,
                        "expires_at": grant.expires_at,
                        "period_start": grant.period_start,
                        "period_end": grant.period_end,
                    }
                    for grant in grants
                ]
            )
            .on_conflict_do_nothing(constraint="credit_grants_fund_once")
            .returning(_grants.c.reference_id)
        )
    )
    new = [grant for grant in grants if grant.reference_id in inserted]
    if new:
        owed = [grant_credits(grant) for grant in new]
        await db.execute(
            insert(_queue)
            .values(
                [
                    {
                        "id": new_id("tsk"),
                        "tenant_id": task.tenant_id,
                        "task_type": task.task_type,
                        "counterpart": task.counterpart,
                        "idempotency_key": task.idempotency_key,
                        "payload": dict(task.payload),
                        "next_attempt_at": now,
                    }
                    for task in owed
                ]
            )
            .on_conflict_do_nothing(constraint="billing_reconciliation_queue_once")
        )
    return new


async def list_dripping(db: AsyncConnection, now: datetime, *, after: str, limit: int) -> list[DrippingYear]:
    """A page of the paid years of which a month may have begun that was not granted, by payment."""
    granted = (
        select(func.count())
        .select_from(_grants)
        .where(_grants.c.payment_id == _payments.c.id, _grants.c.kind == "plan.month")
        .scalar_subquery()
    )
    age = func.extract("epoch", literal(now) - _payments.c.period_start)
    begun_at_most = 1 + cast(func.floor(age / _SHORTEST_MONTH.total_seconds()), BigInteger)
    query = (
        _dripping()
        .where(
            _payments.c.id > after,
            _payments.c.period_start <= now,
            _payments.c.period_end > now - _CATCH_UP,
            granted < func.least(MONTHS, begun_at_most),
        )
        .order_by(_payments.c.id)
        .limit(limit)
    )
    return [DrippingYear(**row._mapping) for row in await db.execute(query)]


async def find_dripping(db: AsyncConnection, payment_id: str) -> DrippingYear | None:
    """A paid year as it stands."""
    row = (await db.execute(_dripping().where(_payments.c.id == payment_id))).one_or_none()
    return DrippingYear(**row._mapping) if row else None


async def list_granted(db: AsyncConnection, payment_ids: Sequence[str]) -> set[str]:
    """References of what these payments brought."""
    rows = await db.scalars(select(_grants.c.reference_id).where(_grants.c.payment_id.in_(payment_ids)))
    return set(rows)


def _dripping() -> Select[Any]:
    disputes = tables.billing_disputes
    lost = (
        select(func.coalesce(func.sum(disputes.c.amount_deducted_paise), 0))
        .where(disputes.c.payment_id == _payments.c.id, disputes.c.status == "lost")
        .scalar_subquery()
    )
    return (
        select(
            _payments.c.id.label("payment_id"),
            _payments.c.tenant_id,
            _payments.c.razorpay_subscription_id,
            tables.plans.c.name.label("plan_name"),
            _payments.c.drip_credits.label("credits"),
            _payments.c.amount_paise,
            (_payments.c.amount_refunded_paise + cast(lost, BigInteger)).label("given_back_paise"),
            _payments.c.period_start,
            _payments.c.period_end,
            _payments.c.received_at,
        )
        .join(tables.plans, tables.plans.c.id == _payments.c.plan_id)
        .where(_payments.c.drip_credits.is_not(None))
    )
