"""Tax invoices and credit notes."""

from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.invoices import Invoice, Kind, Serial

invoices = tables.invoices
_INVOICE = [invoices.c[field.name] for field in fields(Invoice)]


async def take_serial(db: AsyncConnection, kind: Kind, financial_year: str) -> Serial:
    """The next place in the row; others wait for this transaction to end, and get it themselves if it fails."""
    counters = tables.invoice_counters
    serial: int = (
        await db.execute(
            insert(counters)
            .values(financial_year=financial_year, kind=kind, last_serial=1)
            .on_conflict_do_update(
                index_elements=["financial_year", "kind"], set_={"last_serial": counters.c.last_serial + 1}
            )
            .returning(counters.c.last_serial)
        )
    ).scalar_one()
    return Serial(kind, financial_year, serial)


async def insert_invoice(db: AsyncConnection, invoice: Invoice) -> None:
    """Issue a document; nothing changes or deletes it afterwards."""
    values = {field.name: getattr(invoice, field.name) for field in fields(Invoice)}
    await db.execute(insert(invoices).values(**values))


async def find_tax_invoice(db: AsyncConnection, payment_id: str) -> Invoice | None:
    """The tax invoice of a payment."""
    return await _one(
        db, select(*_INVOICE).where(invoices.c.payment_id == payment_id, invoices.c.kind == "tax_invoice")
    )


async def find_credit_note(db: AsyncConnection, refund_id: str) -> Invoice | None:
    """The credit note of a refund."""
    return await _one(db, select(*_INVOICE).where(invoices.c.refund_id == refund_id))


async def find_invoice(db: AsyncConnection, tenant_id: str, invoice_id: str) -> Invoice | None:
    """A document of this tenant."""
    return await _one(
        db, select(*_INVOICE).where(invoices.c.id == invoice_id, invoices.c.tenant_id == tenant_id)
    )


async def _one(db: AsyncConnection, query: Select[Any]) -> Invoice | None:
    row = (await db.execute(query)).one_or_none()
    return Invoice(**row._mapping) if row else None


async def sum_credit_notes(db: AsyncConnection, payment_id: str) -> int:
    """How much of a payment credit notes have given back."""
    total = await db.scalar(
        select(func.sum(invoices.c.total_paise)).where(
            invoices.c.payment_id == payment_id, invoices.c.kind == "credit_note"
        )
    )
    return int(total or 0)


async def list_invoices(
    db: AsyncConnection, tenant_id: str, *, before: tuple[datetime, str] | None, limit: int
) -> list[Invoice]:
    """A tenant's documents, newest first, from below a place in that order."""
    place = tuple_(invoices.c.issued_at, invoices.c.id)
    query = select(*_INVOICE).where(invoices.c.tenant_id == tenant_id)
    if before is not None:
        query = query.where(place < before)
    rows = await db.execute(query.order_by(invoices.c.issued_at.desc(), invoices.c.id.desc()).limit(limit))
    return [Invoice(**row._mapping) for row in rows]
