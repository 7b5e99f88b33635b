"""Tax invoices and credit notes: issued with the payment or refund they document, then listed."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.errors import UnknownInvoice, UnknownTenant
from services.subscriptions.rules import invoices as rules
from services.subscriptions.rules.funding import Payment
from services.subscriptions.rules.invoices import Invoice
from services.subscriptions.rules.policy import Supplier
from services.subscriptions.store import billing_info
from services.subscriptions.store import invoices as store
from services.subscriptions.store import subscriptions as tenants
from shared.database import transaction
from shared.ids import new_id


async def issue_tax_invoice(
    db: AsyncConnection, supplier: Supplier, payment: Payment, *, description: str, now: datetime
) -> str:
    """The document of a payment, in the transaction that mirrors it; a second call answers the first one's id.

    The caller holds the tenant's lock and takes no other tenant's afterwards: numbers have no gaps because
    everybody waits here for the end of this transaction. Invoices come before credit notes, for the same reason.
    """
    issued = await store.find_tax_invoice(db, payment.id)
    if issued is not None:
        return issued.id
    info = await billing_info.read_billing_info(db, payment.tenant_id)
    place = await store.take_serial(db, "tax_invoice", rules.financial_year(now))
    invoice = rules.tax_invoice(
        new_id("inv"), place, payment, info, supplier, description=description, now=now
    )
    await store.insert_invoice(db, invoice)
    return invoice.id


async def issue_credit_note(
    db: AsyncConnection,
    supplier: Supplier,
    *,
    tenant_id: str,
    payment_id: str,
    refund_id: str,
    amount_paise: int,
    now: datetime,
) -> str | None:
    """The document of a refund, once; None where there is no invoice to correct. The caller holds the same locks.

    The parts of a payment that were refunded one after another add up to its invoice, to the paisa.
    """
    issued = await store.find_credit_note(db, refund_id)
    if issued is not None:
        return issued.id
    invoice = await store.find_tax_invoice(db, payment_id)
    if invoice is None or invoice.tenant_id != tenant_id:
        return None
    before = await store.sum_credit_notes(db, payment_id)
    amount = min(amount_paise, invoice.total_paise - before)
    if amount <= 0:
        return None
    split = rules.split_refund(invoice.split, refunded_before_paise=before, amount_paise=amount)
    place = await store.take_serial(db, "credit_note", rules.financial_year(now))
    note = rules.credit_note(new_id("inv"), place, invoice, split, supplier, refund_id=refund_id, now=now)
    await store.insert_invoice(db, note)
    return note.id


async def list_invoices(
    engine: AsyncEngine, *, tenant_id: str, before: tuple[datetime, str] | None, limit: int
) -> list[Invoice]:
    """A page of a tenant's documents, newest first."""
    async with transaction(engine) as db:
        if await tenants.find_subscription(db, tenant_id) is None:
            raise UnknownTenant(
                f"tenant {tenant_id} was never provisioned: call ProvisionTenant first", tenant_id=tenant_id
            )
        return await store.list_invoices(db, tenant_id, before=before, limit=limit)


async def get_invoice(
    engine: AsyncEngine, *, tenant_id: str, invoice_id: str
) -> tuple[Invoice, Invoice | None]:
    """A document, and the invoice that it corrects where it is a credit note."""
    async with transaction(engine) as db:
        invoice = await store.find_invoice(db, tenant_id, invoice_id)
        if invoice is None:
            raise UnknownInvoice(f"tenant {tenant_id} has no invoice {invoice_id}", invoice_id=invoice_id)
        if invoice.kind == "tax_invoice":
            return invoice, None
        return invoice, await store.find_tax_invoice(db, invoice.payment_id)
