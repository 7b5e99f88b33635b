"""What a person reads on a drawn invoice."""

import io
import re
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from services.subscriptions import documents
from services.subscriptions.rules.billing_info import BillingInfo
from services.subscriptions.rules.invoices import Invoice
from services.subscriptions.rules.policy import Supplier
from tests.subscriptions.invoicing import ELSEWHERE, NOW, a_note, an_invoice


def read(invoice: Invoice, corrects: Invoice | None = None) -> str:
    """The text of the drawing, with single spaces."""
    pages = PdfReader(io.BytesIO(documents.render(invoice, corrects))).pages
    return re.sub(r"\s+", " ", " ".join(page.extract_text() for page in pages))


def test_every_field_that_the_law_asks_for_is_there() -> None:
    text = read(an_invoice())

    for field in (
        *("Tax invoice", "Number INV/2627/000042", "Date 20 November 2026"),
        *("Example Software Private Limited", "1 MG Road, Bengaluru 560001", "GSTIN 29AABCU9603R1ZJ"),
        *("Fabrikam LLP", "12 Marine Drive", "Churchgate", "Mumbai 400020", "GSTIN 27AAPFU0939F1ZV"),
        *("Place of supply 27 Maharashtra", "Reverse charge No"),
        *("Pro plan, monthly 998315 ₹1,04,624.39", "Period 20 November 2026 to 20 December 2026"),
        *("Taxable value ₹1,04,624.39", "IGST 18 % ₹18,832.39", "₹1,23,456.78"),
        "needs no signature",
    ):
        assert field in text
    assert "CGST" not in text
    assert documents.MISSING not in text


def test_within_a_state_both_halves_are_shown_with_their_rates() -> None:
    text = read(an_invoice(649, BillingInfo()))

    assert "CGST 9 % ₹0.50 SGST 9 % ₹0.50" in text
    assert "Place of supply 29 Karnataka" in text
    assert "Customer tn_1 Unregistered (no GSTIN)" in text
    assert "IGST" not in text


def test_dates_are_indias() -> None:
    late = replace(an_invoice(), issued_at=NOW.replace(hour=18, minute=30))

    assert "Date 21 November 2026" in read(late)


def test_a_credit_note_names_the_invoice_that_it_corrects() -> None:
    invoice = an_invoice()
    note = a_note(invoice, 10_000)

    text = read(note, invoice)

    assert text.startswith("Credit note Credit note for INV/2627/000042 dated 20 November 2026")
    assert "Number CRN/2627/000007" in text
    assert "Date 23 November 2026" in text
    assert "Taxable value ₹84.75 IGST 18 % ₹15.25 Total given back (INR, tax included) ₹100.00" in text
    assert documents.file_name(note) == "CRN-2627-000007.pdf"


def test_a_one_time_purchase_has_no_period() -> None:
    text = read(an_invoice(period_start=None, period_end=None, purpose="credit_pack"))

    assert "Period" not in text


def test_abroad_the_place_is_outside_india_and_the_endorsement_is_there() -> None:
    text = read(an_invoice(info=BillingInfo(company_name="Contoso Inc", country="US")))

    assert "Place of supply 96 Outside India" in text
    assert documents.EXPORT in text
    assert "Country US" in text


def test_what_the_font_lacks_is_shown_as_lacking_and_said() -> None:
    hindi = read(an_invoice(info=replace(ELSEWHERE, company_name="नमक कमल")))
    tamil = read(an_invoice(info=replace(ELSEWHERE, company_name="தமிழ் Traders")))

    assert "नमक कमल" in hindi
    assert documents.MISSING not in hindi
    assert f"{documents.MISSING * 5} Traders" in tamil
    assert f"{documents.MISSING} stands for a character" in tamil


def test_the_same_document_is_the_same_file() -> None:
    invoice = an_invoice()
    earlier = documents.render(invoice, None)

    assert documents.render(invoice, None) == earlier
    assert documents.render(replace(invoice, issued_at=NOW + timedelta(days=1)), None) != earlier


def test_a_seller_without_a_name_is_no_secret() -> None:
    text = read(an_invoice(seller=Supplier()))

    assert "the seller has no name: set BILLING_SUPPLIER_NAME" in text
    assert "(no GSTIN)" in text


@pytest.mark.parametrize("name", ["W" * 200, "a b " * 50, "क्षत्रिय" * 25, "\0\x1b[31m\r\n", "**_~~--", "‏שלום"])
def test_odd_names_are_drawn_on_one_page(name: str) -> None:
    odd = BillingInfo(
        company_name=name, address_line1=name, address_line2=name, city=name[:100], country="IN"
    )

    drawn = PdfReader(io.BytesIO(documents.render(an_invoice(info=odd), None)))

    assert len(drawn.pages) == 1
    assert "Total paid" in drawn.pages[0].extract_text()


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=60))
def test_no_text_keeps_an_invoice_from_being_drawn(text: str) -> None:
    assert "₹1,23,456.78" in read(an_invoice(info=BillingInfo(company_name=text), description=text))
