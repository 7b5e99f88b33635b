"""Decided events, and the mirror of what they told about money."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.events import PaymentEvent
from services.subscriptions.rules.funding import Decision, Grant, Payment
from shared.ids import new_id
from shared.ops.tables import billing_integrity_reports

# Two workers may decide one event at once; this constraint lets one of them.
DECIDED_ONCE = ("processed_payment_events_once", "processed_payment_events_key")


@dataclass(frozen=True)
class Decided:
    """What was decided about an event."""

    id: str
    outcome: str
    reason: str
    tenant_id: str | None
    body_sha256: str


async def find_decided(db: AsyncConnection, event: PaymentEvent, idempotency_key: str) -> Decided | None:
    """What was decided before about this event, by its identity or by its key; held until the transaction ends."""
    table = tables.processed_payment_events
    row = (
        await db.execute(
            select(*(table.c[name] for name in Decided.__dataclass_fields__))
            .where(
                or_(
                    table.c.idempotency_key == idempotency_key,
                    and_(
                        table.c.provider == event.provider,
                        table.c.account_id == event.account_id,
                        table.c.mode == event.mode,
                        table.c.body_sha256 == event.body_sha256,
                    ),
                )
            )
            .limit(1)
            .with_for_update()
        )
    ).one_or_none()
    return Decided(**row._mapping) if row else None


async def insert_decided(
    db: AsyncConnection,
    event: PaymentEvent,
    decision: Decision,
    *,
    idempotency_key: str,
    tenant_id: str | None,
    processed_at: datetime,
) -> None:
    """Record the decision about an event, whatever it was."""
    await db.execute(
        insert(tables.processed_payment_events).values(
            id=new_id("evt"),
            provider=event.provider,
            account_id=event.account_id,
            mode=event.mode,
            body_sha256=event.body_sha256,
            idempotency_key=idempotency_key,
            event_id=event.event_id,
            event_type=event.event_type,
            tenant_id=tenant_id,
            razorpay_subscription_id=event.subscription.id if event.subscription else None,
            payment_id=event.payment.id if event.payment else None,
            outcome=decision.outcome,
            reason=decision.reason,
            occurred_at=event.occurred_at,
            received_at=event.received_at,
            processed_at=processed_at,
        )
    )


async def update_decided(
    db: AsyncConnection, decided: Decided, decision: Decision, *, tenant_id: str | None, now: datetime
) -> None:
    """Record that an event was decided anew; when it was first decided stays, or silence would go unseen."""
    table = tables.processed_payment_events
    await db.execute(
        update(table)
        .where(table.c.id == decided.id)
        .values(outcome=decision.outcome, reason=decision.reason, tenant_id=tenant_id, decided_again_at=now)
    )


async def find_open_finding(
    db: AsyncConnection, room: str, check_type: str, tenant_id: str | None
) -> Mapping[str, Any] | None:
    """What an open finding of this kind says of the tenant."""
    table = billing_integrity_reports
    observed: Mapping[str, Any] | None = await db.scalar(
        select(table.c.observed).where(
            table.c.room == room,
            table.c.check_type == check_type,
            table.c.tenant_id == tenant_id,
            table.c.resolved_at.is_(None),
        )
    )
    return observed


async def find_payment_tenant(db: AsyncConnection, payment_id: str) -> str | None:
    """Whose payment it was, if it is in our mirror."""
    return await db.scalar(select(tables.payments.c.tenant_id).where(tables.payments.c.id == payment_id))


async def insert_payment(db: AsyncConnection, payment: Payment) -> None:
    """Mirror a captured payment."""
    await db.execute(
        insert(tables.payments).values(**asdict(payment), provider="razorpay", status="captured")
    )


async def insert_grant(db: AsyncConnection, grant: Grant) -> bool:
    """Decide to create credits; False if this fact has created its credits."""
    inserted = await db.scalar(
        insert(tables.credit_grants)
        .values(
            id=new_id("grt"),
            tenant_id=grant.tenant_id,
            reference_id=grant.reference_id,
            kind=grant.kind,
            bucket=grant.bucket,
            credits=grant.credits,
            expires_at=grant.expires_at,
            payment_id=grant.payment_id,
            period_start=grant.period_start,
            period_end=grant.period_end,
        )
        .on_conflict_do_nothing(constraint="credit_grants_fund_once")
        .returning(tables.credit_grants.c.id)
    )
    return inserted is not None
