"""Money that goes back, and the credits that go with it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.claims import Claim, Granted, Paid, Revocation
from services.subscriptions.rules.funding import Dispute, Refund
from shared.ids import new_id

refunds = tables.billing_refunds
disputes = tables.billing_disputes
payments = tables.payments
grants = tables.credit_grants
revoked = tables.grant_revocations
_REFUND = (
    refunds.c.id,
    refunds.c.payment_id,
    refunds.c.provider_refund_id,
    refunds.c.kind,
    refunds.c.amount_paise,
    refunds.c.currency,
    refunds.c.status,
)


@dataclass(frozen=True)
class Captured:
    """A payment as our mirror has it."""

    id: str
    tenant_id: str
    amount_paise: int
    currency: str
    razorpay_subscription_id: str | None
    period_start: datetime | None
    period_end: datetime | None
    received_at: datetime
    drip_credits: int | None


def bought(payment: Captured, granted: list[Granted]) -> int:
    """All credits that a payment brings, those of months to come too."""
    return (payment.drip_credits or 0) * 12 or sum(grant.credits for grant in granted)


async def lock_payment(db: AsyncConnection, payment_id: str) -> None:
    """Let one transaction at a time tie a payment to its refunds and disputes, which may come before it."""
    await db.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"payment:{payment_id}", 0))))


async def find_payment(db: AsyncConnection, payment_id: str) -> Captured | None:
    """A payment of the mirror."""
    found = await _payments(db, payments.c.id == payment_id)
    return found[0] if found else None


async def list_payments(db: AsyncConnection, subscription_ids: list[str]) -> list[Captured]:
    """The payments of these provider subscriptions."""
    return await _payments(db, payments.c.razorpay_subscription_id.in_(subscription_ids))


async def _payments(db: AsyncConnection, condition: Any) -> list[Captured]:
    rows = await db.execute(
        select(
            payments.c.id,
            payments.c.tenant_id,
            payments.c.amount_paise,
            payments.c.currency,
            payments.c.razorpay_subscription_id,
            payments.c.period_start,
            payments.c.period_end,
            payments.c.received_at,
            payments.c.drip_credits,
        )
        .where(condition)
        .order_by(payments.c.period_start, payments.c.id)
    )
    return [Captured(**row._mapping) for row in rows]


async def find_refund(
    db: AsyncConnection, *, provider_refund_id: str, refund_id: str, payment_id: str, amount_paise: int
) -> Refund | None:
    """The refund that the provider speaks of: known by its id, or ours whose answer has not come yet."""
    ours = (
        (refunds.c.id == refund_id)
        & (refunds.c.payment_id == payment_id)
        & (refunds.c.amount_paise == amount_paise)
        & refunds.c.provider_refund_id.is_(None)
    )
    query = select(*_REFUND).where(or_(refunds.c.provider_refund_id == provider_refund_id, ours))
    row = (await db.execute(query.limit(1))).one_or_none()
    return Refund(**row._mapping) if row else None


async def get_refund(db: AsyncConnection, refund_id: str) -> Refund:
    """A refund by our own id."""
    row = (await db.execute(select(*_REFUND).where(refunds.c.id == refund_id))).one()
    return Refund(**row._mapping)


async def insert_refund(
    db: AsyncConnection,
    refund: Refund,
    *,
    tenant_id: str | None,
    reason: str,
    actor: str,
    idempotency_key: str | None = None,
    change_id: str | None = None,
    processed_at: datetime | None = None,
) -> bool:
    """Write a refund down; False if a change has given this payment back before."""
    inserted = await db.scalar(
        insert(refunds)
        .values(
            id=refund.id,
            tenant_id=tenant_id,
            payment_id=refund.payment_id,
            provider_refund_id=refund.provider_refund_id,
            idempotency_key=idempotency_key,
            kind=refund.kind,
            amount_paise=refund.amount_paise,
            currency=refund.currency,
            status=refund.status,
            reason=reason,
            actor=actor,
            processed_at=processed_at,
            change_id=change_id,
        )
        .on_conflict_do_nothing(
            # A literal: a generic plan, made after some executions, matches no index by a parameter.
            index_elements=["payment_id", "change_id"],
            index_where=text("kind = 'proration'"),
        )
        .returning(refunds.c.id)
    )
    return inserted is not None


async def save_refund(db: AsyncConnection, refund: Refund, *, now: datetime) -> None:
    """Write what the provider says of a refund."""
    await db.execute(
        update(refunds)
        .where(refunds.c.id == refund.id)
        .values(
            provider_refund_id=refund.provider_refund_id,
            status=refund.status,
            processed_at=now if refund.status == "processed" else None,
        )
    )


async def find_dispute(db: AsyncConnection, dispute_id: str) -> Dispute | None:
    """A dispute as far as we know of it."""
    row = (
        await db.execute(
            select(
                disputes.c.id,
                disputes.c.payment_id,
                disputes.c.phase,
                disputes.c.status,
                disputes.c.amount_paise,
                disputes.c.amount_deducted_paise,
                disputes.c.currency,
                disputes.c.observed_at,
            ).where(disputes.c.id == dispute_id)
        )
    ).one_or_none()
    return Dispute(**row._mapping) if row else None


async def save_dispute(db: AsyncConnection, dispute: Dispute, tenant_id: str | None) -> None:
    """Write what the provider says of a dispute, the first time or again."""
    values = vars(dispute) | {"tenant_id": tenant_id}
    changes = {
        name: values[name]
        for name in ("tenant_id", "phase", "status", "amount_paise", "amount_deducted_paise", "observed_at")
    }
    await db.execute(
        insert(disputes)
        .values(**values)
        .on_conflict_do_update(index_elements=["id"], set_=changes | {"updated_at": func.now()})
    )


async def adopt_claims(db: AsyncConnection, payment_id: str, tenant_id: str) -> None:
    """Refunds and disputes that came before their payment are this tenant's."""
    for table in (refunds, disputes):
        await db.execute(
            update(table)
            .where(table.c.payment_id == payment_id, table.c.tenant_id.is_(None))
            .values(tenant_id=tenant_id)
        )


async def list_granted(db: AsyncConnection, payment_id: str) -> list[Granted]:
    """What a payment brought."""
    rows = await db.execute(
        select(grants.c.reference_id, grants.c.credits, grants.c.period_start, grants.c.period_end)
        .where(grants.c.payment_id == payment_id)
        .order_by(grants.c.created_at, grants.c.reference_id)
    )
    return [Granted(**row._mapping) for row in rows]


async def list_refunds(db: AsyncConnection, payment_id: str) -> list[Refund]:
    """Every refund of a payment, the oldest first."""
    query = select(*_REFUND).where(refunds.c.payment_id == payment_id)
    rows = await db.execute(query.order_by(refunds.c.created_at, refunds.c.id))
    return [Refund(**row._mapping) for row in rows]


async def list_lost(db: AsyncConnection, payment_id: str) -> list[Claim]:
    """Disputes about a payment that were lost."""
    rows = await db.execute(
        select(disputes.c.id, disputes.c.amount_deducted_paise)
        .where(disputes.c.payment_id == payment_id, disputes.c.status == "lost")
        .order_by(disputes.c.created_at, disputes.c.id)
    )
    return [Claim("dispute", row.id, row.amount_deducted_paise) for row in rows]


async def list_revocations(
    db: AsyncConnection, tenant_id: str, grant_reference_ids: list[str]
) -> list[Revocation]:
    """What was decided to be taken of these grants and was not given back."""
    rows = await db.execute(
        select(
            revoked.c.reference_id,
            revoked.c.grant_reference_id,
            revoked.c.cause,
            revoked.c.cause_id,
            revoked.c.credits,
        )
        .where(
            revoked.c.tenant_id == tenant_id,
            revoked.c.grant_reference_id.in_(grant_reference_ids),
            revoked.c.restored_at.is_(None),
        )
        .order_by(revoked.c.created_at, revoked.c.reference_id)
    )
    return [Revocation(**row._mapping) for row in rows]


async def insert_revocation(db: AsyncConnection, tenant_id: str, revocation: Revocation) -> bool:
    """Decide to take credits back; False if this was decided before."""
    inserted = await db.scalar(
        insert(revoked)
        .values(id=new_id("rvk"), tenant_id=tenant_id, **vars(revocation))
        .on_conflict_do_nothing(constraint="grant_revocations_once")
        .returning(revoked.c.id)
    )
    return inserted is not None


async def was_restored(db: AsyncConnection, tenant_id: str, reference_id: str) -> bool:
    """Whether this decision was undone since."""
    restored = await db.scalar(
        select(revoked.c.restored_at.is_not(None)).where(
            revoked.c.tenant_id == tenant_id, revoked.c.reference_id == reference_id
        )
    )
    return bool(restored)


async def restore_revocations(
    db: AsyncConnection, tenant_id: str, cause_id: str, now: datetime
) -> list[Revocation]:
    """Decide to give back what a dispute took; answers what."""
    rows = await db.execute(
        update(revoked)
        .where(
            revoked.c.tenant_id == tenant_id, revoked.c.cause_id == cause_id, revoked.c.restored_at.is_(None)
        )
        .values(restored_at=now)
        .returning(
            revoked.c.reference_id,
            revoked.c.grant_reference_id,
            revoked.c.cause,
            revoked.c.cause_id,
            revoked.c.credits,
        )
    )
    return sorted((Revocation(**row._mapping) for row in rows), key=lambda each: each.reference_id)


async def save_given_back(
    db: AsyncConnection, payment: Captured, refunded_paise: int, revocations: list[Revocation]
) -> None:
    """Bring the sums on payments, refunds and disputes up to date, for people."""
    await db.execute(
        update(payments)
        .where(payments.c.id == payment.id)
        .values(
            amount_refunded_paise=min(refunded_paise, payment.amount_paise),
            status="refunded" if refunded_paise >= payment.amount_paise else "captured",
            updated_at=func.now(),
        )
    )
    sums: dict[str, int] = {}
    for each in revocations:
        sums[each.cause_id] = sums.get(each.cause_id, 0) + each.credits
    for cause_id, credits in sums.items():
        await db.execute(
            update(refunds)
            .where(or_(refunds.c.provider_refund_id == cause_id, refunds.c.id == cause_id))
            .values(credits_revoked=credits)
        )
        await db.execute(
            update(disputes)
            .where(disputes.c.id == cause_id)
            .values(credits_revoked=credits, updated_at=func.now())
        )


async def disputed_paise(db: AsyncConnection, payment_id: str) -> int:
    """What a customer's bank asks back and has not decided about."""
    found = await db.scalar(
        select(func.coalesce(func.sum(disputes.c.amount_paise), 0)).where(
            disputes.c.payment_id == payment_id, disputes.c.status.in_(("open", "under_review"))
        )
    )
    return int(found or 0)


async def given_back_paise(db: AsyncConnection, payment_id: str) -> int:
    """What went back or is on its way: every refund that did not fail, and lost disputes."""
    refunded = await db.scalar(
        select(func.coalesce(func.sum(refunds.c.amount_paise), 0)).where(
            refunds.c.payment_id == payment_id, refunds.c.status != "failed"
        )
    )
    return int(refunded or 0) + sum(claim.amount_paise for claim in await list_lost(db, payment_id))


async def prorated_paise(db: AsyncConnection, payment_id: str) -> int:
    """What changes of plan gave back of a payment."""
    found = await db.scalar(
        select(func.coalesce(func.sum(refunds.c.amount_paise), 0)).where(
            refunds.c.payment_id == payment_id, refunds.c.kind == "proration", refunds.c.status != "failed"
        )
    )
    return int(found or 0)


@dataclass(frozen=True)
class Taken:
    """What a change takes of a grant; `short` is None until the ledger has told what was spent."""

    grant_reference_id: str
    credits: int
    short: int | None


async def save_short(db: AsyncConnection, tenant_id: str, reference_id: str, short: int) -> str:
    """Write what the ledger could not take any more; answers the cause."""
    cause_id: str = (
        await db.execute(
            update(revoked)
            .where(revoked.c.tenant_id == tenant_id, revoked.c.reference_id == reference_id)
            .values(short=short)
            .returning(revoked.c.cause_id)
        )
    ).scalar_one()
    return cause_id


async def list_taken(db: AsyncConnection, tenant_id: str, cause_id: str) -> list[Taken]:
    """What a change takes, of the old grants and of the new one; what a person settled elsewhere is taken in full."""
    queue = tables.billing_reconciliation_queue
    settled = case((queue.c.completed_at.is_not(None), 0))
    rows = await db.execute(
        select(
            revoked.c.grant_reference_id,
            revoked.c.credits,
            func.coalesce(revoked.c.short, settled).label("short"),
        )
        .outerjoin_from(
            revoked,
            queue,
            (queue.c.tenant_id == revoked.c.tenant_id)
            & (queue.c.idempotency_key == "revoke:" + revoked.c.reference_id),
        )
        .where(
            revoked.c.tenant_id == tenant_id, revoked.c.cause_id == cause_id, revoked.c.restored_at.is_(None)
        )
    )
    return [Taken(**row._mapping) for row in rows]


async def list_waiting(db: AsyncConnection, tenant_id: str) -> list[str]:
    """Refunds of changes that the provider has not made yet."""
    rows = await db.execute(
        select(refunds.c.id).where(
            refunds.c.tenant_id == tenant_id,
            refunds.c.kind == "proration",
            refunds.c.status == "pending",
            refunds.c.provider_refund_id.is_(None),
        )
    )
    return [row.id for row in rows]


async def find_change(db: AsyncConnection, refund_id: str) -> str | None:
    """The purchase that made us give this back."""
    return await db.scalar(select(refunds.c.change_id).where(refunds.c.id == refund_id))


async def find_taker_payment(db: AsyncConnection, intent_id: str) -> Captured | None:
    """The first payment of the subscription that a purchase made."""
    known = tables.provider_subscriptions
    ids = (await db.scalars(select(known.c.id).where(known.c.intent_id == intent_id))).all()
    found = await list_payments(db, list(ids))
    return found[0] if found else None


async def save_amount(db: AsyncConnection, refund_id: str, amount_paise: int) -> None:
    """Write what of a refund is left to give back."""
    await db.execute(update(refunds).where(refunds.c.id == refund_id).values(amount_paise=amount_paise))


async def find_paid(db: AsyncConnection, payment: Captured) -> Paid | None:
    """A plan's payment with what went back of it."""
    if payment.period_start is None or payment.period_end is None:
        return None
    return Paid(
        payment.id,
        payment.amount_paise,
        payment.period_start,
        payment.period_end,
        # We may have heard of it late; the provider counts from the day of the debit.
        min(payment.received_at, payment.period_start),
        await given_back_paise(db, payment.id),
        await prorated_paise(db, payment.id),
    )
