"""Tax invoices and credit notes: what they add up to, and that their numbers have no gaps."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from psycopg.rows import dict_row
from pypdf import PdfReader
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions.invoices import issue_credit_note, issue_tax_invoice
from services.subscriptions.rules.billing_info import BillingInfo
from services.subscriptions.rules.funding import Payment
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.store import billing_info
from services.subscriptions.store import subscriptions as tenants
from shared import database as shared_database
from shared.database import transaction
from shared.errors import InvalidArgument, NotFound
from shared.ids import new_id
from tests.conftest import Database
from tests.subscriptions.conftest import Room
from tests.subscriptions.invoicing import ELSEWHERE, NOW, SELLER, payment


@pytest.fixture(scope="module")
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    engine = shared_database.create_engine(
        database.url("subscriptions_rw"), application_name="invoice-tests", pool_size=16
    )
    yield engine
    await engine.dispose()


class Books:
    """Issues documents as the room does, under the tenant's lock, and reads what was issued."""

    def __init__(self, engine: AsyncEngine, admin_url: str) -> None:
        self.engine = engine
        self._admin_url = admin_url

    async def open(self, tenant: str, info: BillingInfo | None = None) -> None:
        async with transaction(self.engine) as db:
            await tenants.insert_subscription(db, Subscription(id=new_id("sub"), tenant_id=tenant))
            if info is not None:
                await billing_info.save_billing_info(db, tenant, info)

    async def sell(self, tenant: str, paid: Payment, *, now: datetime = NOW, fail: bool = False) -> str:
        async with transaction(self.engine) as db:
            await tenants.lock_subscription(db, tenant)
            issued = await issue_tax_invoice(db, SELLER, paid, description="Pro, monthly", now=now)
            if fail:
                raise Lost
            return issued

    async def refund(
        self, tenant: str, paid: Payment, amount: int, *, refund: str = "", now: datetime = NOW
    ) -> str | None:
        async with transaction(self.engine) as db:
            await tenants.lock_subscription(db, tenant)
            return await issue_credit_note(
                db,
                SELLER,
                tenant_id=tenant,
                payment_id=paid.id,
                refund_id=refund or new_id("rfd"),
                amount_paise=amount,
                now=now,
            )

    def issued(self, tenant: str, kind: str = "%") -> list[dict[str, Any]]:
        return self.rows(
            "SELECT * FROM subscriptions.invoices WHERE tenant_id = %s AND kind LIKE %s ORDER BY issued_at, id",
            tenant,
            kind,
        )

    def serials(self, year: str, kind: str) -> list[int]:
        found = self.rows(
            "SELECT serial FROM subscriptions.invoices WHERE financial_year = %s AND kind = %s ORDER BY serial",
            year,
            kind,
        )
        return [row["serial"] for row in found]

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self._admin_url, autocommit=True, row_factory=dict_row) as db:
            return db.execute(query, values).fetchall()


class Lost(Exception):
    """The transaction fails after the number was taken."""


@pytest.fixture
def books(engine: AsyncEngine, database: Database) -> Books:
    return Books(engine, database.admin_url)


async def test_a_payment_has_one_invoice(books: Books, tenant: str) -> None:
    await books.open(tenant)
    paid = payment(tenant)

    assert await books.sell(tenant, paid) == await books.sell(tenant, paid)

    [invoice] = books.issued(tenant)
    assert (
        invoice["taxable_paise"],
        invoice["cgst_paise"],
        invoice["sgst_paise"],
        invoice["igst_paise"],
    ) == (
        199_900,
        17_991,
        17_991,
        0,
    )
    assert (invoice["place_of_supply"], invoice["tax_rate_bps"], invoice["sac"]) == ("29", 1800, "998315")


async def test_an_invoice_keeps_the_customer_of_its_day(books: Books, tenant: str) -> None:
    await books.open(tenant, ELSEWHERE)
    paid = payment(tenant)
    await books.sell(tenant, paid)
    async with transaction(books.engine) as db:
        await billing_info.save_billing_info(db, tenant, BillingInfo(company_name="Renamed", state_code="29"))

    await books.refund(tenant, paid, 100_000)
    await books.sell(tenant, payment(tenant), now=NOW + timedelta(days=1))

    first, note, second = books.issued(tenant)
    assert first["recipient"] == note["recipient"]
    assert (first["recipient"]["company_name"], second["recipient"]["company_name"]) == (
        "Fabrikam LLP",
        "Renamed",
    )
    assert (first["igst_paise"], first["cgst_paise"]) == (35_982, 0)
    assert (note["igst_paise"], note["cgst_paise"], note["place_of_supply"]) == (15_254, 0, "27")
    assert (second["igst_paise"], second["cgst_paise"]) == (0, 17_991)


@pytest.mark.parametrize("info", [BillingInfo(), ELSEWHERE], ids=["within the state", "between states"])
async def test_a_refund_in_parts_gives_back_the_invoice_to_the_paisa(
    books: Books, tenant: str, info: BillingInfo
) -> None:
    await books.open(tenant, info)
    paid = payment(tenant, 41_501)
    await books.sell(tenant, paid)

    for part in (100, 333, 20_001, 41_501):
        await books.refund(tenant, paid, part)

    [invoice] = books.issued(tenant, "tax_invoice")
    notes = books.issued(tenant, "credit_note")
    assert [note["total_paise"] for note in notes] == [100, 333, 20_001, 41_501 - 20_434]
    for column in ("taxable_paise", "cgst_paise", "sgst_paise", "igst_paise", "total_paise"):
        assert sum(note[column] for note in notes) == invoice[column]
    assert await books.refund(tenant, paid, 1) is None


async def test_a_refund_has_one_credit_note_and_none_without_an_invoice(books: Books, tenant: str) -> None:
    await books.open(tenant)
    paid = payment(tenant)
    assert await books.refund(tenant, paid, 500, refund=f"rfd_{tenant}") is None
    await books.sell(tenant, paid)

    first = await books.refund(tenant, paid, 500, refund=f"rfd_{tenant}")

    assert first is not None
    assert await books.refund(tenant, paid, 500, refund=f"rfd_{tenant}") == first
    assert len(books.issued(tenant, "credit_note")) == 1


async def test_numbers_have_no_gaps_whatever_fails_and_however_many_come_at_once(
    books: Books, tenant: str
) -> None:
    year, at = "3132", datetime(2031, 8, 1, tzinfo=UTC)
    customers = [f"{tenant}_{number}" for number in range(12)]
    for customer in customers:
        await books.open(customer)

    async def trade(customer: str) -> None:
        for round_ in range(4):
            paid = payment(customer)
            if round_ % 2:
                with pytest.raises(Lost):
                    await books.sell(customer, paid, now=at, fail=True)
            await books.sell(customer, paid, now=at)
            await books.refund(customer, paid, 1_000, now=at)

    await asyncio.gather(*(trade(customer) for customer in customers))

    assert books.serials(year, "tax_invoice") == list(range(1, 49))
    assert books.serials(year, "credit_note") == list(range(1, 49))


async def test_invoice_and_note_of_one_transaction_never_lock_each_other_out(
    books: Books, tenant: str
) -> None:
    year, at = "3233", datetime(2032, 8, 1, tzinfo=UTC)
    customers = [f"{tenant}_{number}" for number in range(12)]
    for customer in customers:
        await books.open(customer)

    async def paid_and_refunded(customer: str) -> None:
        paid = payment(customer)
        async with transaction(books.engine) as db:
            await tenants.lock_subscription(db, customer)
            await issue_tax_invoice(db, SELLER, paid, description="Pro", now=at)
            await asyncio.sleep(0.01)
            await issue_credit_note(
                db,
                SELLER,
                tenant_id=customer,
                payment_id=paid.id,
                refund_id=new_id("rfd"),
                amount_paise=500,
                now=at,
            )

    await asyncio.gather(*(paid_and_refunded(customer) for customer in customers))

    assert books.serials(year, "tax_invoice") == books.serials(year, "credit_note") == list(range(1, 13))


async def listed(room: Room, tenant: str, token: str = "", size: int = 2) -> pb.ListInvoicesResponse:
    return await room.product.ListInvoices(
        pb.ListInvoicesRequest(tenant_id=tenant, page_size=size, page_token=token)
    )


async def test_pages_stay_right_while_new_invoices_are_issued(room: Room, books: Books, tenant: str) -> None:
    await room.provision(tenant)
    # Two of one moment: the order is total all the same.
    moments = [NOW + timedelta(days=day) for day in (0, 1, 1, 2, 3)]
    old = [await books.sell(tenant, payment(tenant), now=moment) for moment in moments]

    seen: list[str] = []
    token = ""
    while True:
        page = await listed(room, tenant, token)
        seen += [invoice.invoice_id for invoice in page.invoices]
        token = page.next_page_token
        if not token:
            break
        await books.sell(tenant, payment(tenant), now=NOW + timedelta(days=10 + len(seen)))

    assert sorted(seen) == sorted(old)
    assert (seen[0], seen[1], seen[-1]) == (old[4], old[3], old[0])
    assert [invoice.invoice_id for invoice in (await listed(room, tenant, size=0)).invoices][2:] == seen


async def test_a_listed_invoice_says_what_was_taxed_where(room: Room, books: Books, tenant: str) -> None:
    await room.provision(tenant)
    paid = payment(tenant)
    await books.sell(tenant, paid)
    await books.refund(tenant, paid, 1_180, refund=f"rfd_{tenant}", now=NOW + timedelta(days=1))

    note, invoice = (await listed(room, tenant)).invoices

    assert (invoice.kind, note.kind) == (pb.INVOICE_KIND_TAX_INVOICE, pb.INVOICE_KIND_CREDIT_NOTE)
    assert (invoice.taxable_paise, invoice.total_paise, invoice.total_display) == (
        199_900,
        235_882,
        "₹2,358.82",
    )
    assert [(tax.name, tax.rate_bps, tax.amount_paise) for tax in invoice.taxes] == [
        ("CGST", 900, 17_991),
        ("SGST", 900, 17_991),
    ]
    assert (invoice.place_of_supply, invoice.payment_id, invoice.refund_id) == ("29", paid.id, "")
    assert (note.payment_id, note.refund_id, note.total_display) == (paid.id, f"rfd_{tenant}", "₹11.80")
    assert invoice.period_start_at.ToDatetime(UTC) == NOW
    assert re.fullmatch(r"INV/2627/\d{6}", invoice.number)
    assert re.fullmatch(r"CRN/2627/\d{6}", note.number)


@pytest.mark.parametrize("token", ["x", "12", "AAAA", "MTIgYXVkX2E", "!" * 20])
async def test_a_token_that_is_not_ours_is_refused(room: Room, tenant: str, token: str) -> None:
    await room.provision(tenant)

    with pytest.raises(InvalidArgument) as refused:
        await listed(room, tenant, token)

    assert refused.value.reason == "PAGE_TOKEN_INVALID"


async def test_a_credit_note_is_drawn_for_its_tenant_and_for_nobody_else(
    room: Room, books: Books, tenant: str
) -> None:
    await room.provision(tenant)
    paid = payment(tenant)
    invoice_id = await books.sell(tenant, paid)
    note_id = await books.refund(tenant, paid, 1_180)
    assert note_id is not None

    drawn = await room.product.RenderInvoice(pb.RenderInvoiceRequest(tenant_id=tenant, invoice_id=note_id))

    [page] = PdfReader(io.BytesIO(drawn.content)).pages
    [invoice] = books.issued(tenant, "tax_invoice")
    [note] = books.issued(tenant, "credit_note")
    assert f"Credit note for {invoice['number']} dated 20 November 2026" in page.extract_text()
    assert (drawn.content_type, drawn.file_name) == (
        "application/pdf",
        f"{note['number'].replace('/', '-')}.pdf",
    )
    for whose, which in ((f"{tenant}_other", invoice_id), (tenant, "inv_nothing")):
        with pytest.raises(NotFound) as refused:
            await room.product.RenderInvoice(pb.RenderInvoiceRequest(tenant_id=whose, invoice_id=which))
        assert (refused.value.reason, refused.value.metadata["invoice_id"]) == ("UNKNOWN_INVOICE", which)


async def test_what_is_bought_and_given_back_arrives_in_the_customers_books(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    await room.product.UpdateBillingInfo(
        pb.UpdateBillingInfoRequest(
            tenant_id=tenant, idempotency_key="info", billing_info=pb.BillingInfo(**asdict(ELSEWHERE))
        )
    )
    order = await room.buy_credits(tenant)
    paid = room.sandbox.act(f"orders/{order.order_id}/pay", method="upi")
    for delivery in [*paid, *paid]:
        await room.deliver(delivery)
    [invoice] = (await listed(room, tenant)).invoices
    assert (invoice.total_paise, [tax.name for tax in invoice.taxes]) == (166_000, ["IGST"])

    for part in (50_000, 116_000):
        created = room.sandbox.act(f"payments/{invoice.payment_id}/refund", amount=part)
        refund_id = created[0]["parsed"]["payload"]["refund"]["entity"]["id"]
        processed = room.sandbox.act(f"refunds/{refund_id}/process")
        for delivery in [*processed, *created, *processed]:
            await room.deliver(delivery)

    *notes, first = (await listed(room, tenant, size=9)).invoices
    assert first == invoice
    assert [note.total_paise for note in notes] == [116_000, 50_000]
    assert sum(note.taxable_paise for note in notes) == invoice.taxable_paise
    assert sum(note.taxes[0].amount_paise for note in notes) == invoice.taxes[0].amount_paise
    drawn = await room.product.RenderInvoice(
        pb.RenderInvoiceRequest(tenant_id=tenant, invoice_id=invoice.invoice_id)
    )
    text = PdfReader(io.BytesIO(drawn.content)).pages[0].extract_text()
    assert "GSTIN 27AAPFU0939F1ZV" in text
    assert "₹1,660.00" in text
