"""SubscriptionsService: tax invoices, and whom they are made out to."""

import asyncio
from dataclasses import asdict, fields

from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.subscriptions import documents
from services.subscriptions.actions import billing_info
from services.subscriptions.actions import invoices as actions
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk, Room
from services.subscriptions.rules.amounts import format_inr
from services.subscriptions.rules.billing_info import BillingInfo
from services.subscriptions.rules.invoices import Invoice

_KINDS = {"tax_invoice": pb.INVOICE_KIND_TAX_INVOICE, "credit_note": pb.INVOICE_KIND_CREDIT_NOTE}
# A drawing keeps a processor busy for a tenth of a second; the rest of the room goes on beside so many.
DRAWINGS_AT_ONCE = 2


class Invoices(Desk):
    """Documents for a tenant's books, and the details that they carry."""

    def __init__(self, room: Room) -> None:
        super().__init__(room)
        self._drawing = asyncio.Semaphore(DRAWINGS_AT_ONCE)

    async def ListInvoices(
        self, request: pb.ListInvoicesRequest, context: Context
    ) -> pb.ListInvoicesResponse:
        size = request.page_size or messages.PAGE_SIZE_DEFAULT
        found = await actions.list_invoices(
            self._room.engine,
            tenant_id=request.tenant_id,
            before=messages.place(request.page_token),
            limit=size + 1,
        )
        shown = found[:size]
        return pb.ListInvoicesResponse(
            invoices=[_invoice(each) for each in shown],
            next_page_token=messages.token_of(shown[-1].issued_at, shown[-1].id) if len(found) > size else "",
        )

    async def RenderInvoice(
        self, request: pb.RenderInvoiceRequest, context: Context
    ) -> pb.RenderInvoiceResponse:
        invoice, corrects = await actions.get_invoice(
            self._room.engine, tenant_id=request.tenant_id, invoice_id=request.invoice_id
        )
        async with self._drawing:
            content = await asyncio.to_thread(documents.render, invoice, corrects)
        return pb.RenderInvoiceResponse(
            content=content, content_type=documents.CONTENT_TYPE, file_name=documents.file_name(invoice)
        )

    async def GetBillingInfo(
        self, request: pb.GetBillingInfoRequest, context: Context
    ) -> pb.GetBillingInfoResponse:
        info = await billing_info.get_billing_info(self._room.engine, tenant_id=request.tenant_id)
        return pb.GetBillingInfoResponse(billing_info=pb.BillingInfo(**asdict(info)))

    async def UpdateBillingInfo(
        self, request: pb.UpdateBillingInfoRequest, context: Context
    ) -> pb.UpdateBillingInfoResponse:
        given = request.billing_info
        updated = await billing_info.update_billing_info(
            self._room.engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            given=BillingInfo(**{field.name: getattr(given, field.name) for field in fields(BillingInfo)}),
        )
        return pb.UpdateBillingInfoResponse(
            billing_info=pb.BillingInfo(**asdict(updated.info)), replayed=updated.replayed
        )


def _invoice(invoice: Invoice) -> pb.Invoice:
    return pb.Invoice(
        invoice_id=invoice.id,
        kind=_KINDS[invoice.kind],
        number=invoice.number,
        taxable_paise=invoice.taxable_paise,
        taxes=[
            pb.TaxLine(name=tax.name, rate_bps=tax.rate_bps, amount_paise=tax.amount_paise)
            for tax in invoice.taxes
        ],
        total_paise=invoice.total_paise,
        total_display=format_inr(invoice.total_paise),
        currency=invoice.currency,
        payment_id=invoice.payment_id,
        issued_at=messages.timestamp(invoice.issued_at),
        description=invoice.description,
        period_start_at=messages.timestamp(invoice.period_start),
        period_end_at=messages.timestamp(invoice.period_end),
        place_of_supply=invoice.place_of_supply,
        refund_id=invoice.refund_id or "",
    )
