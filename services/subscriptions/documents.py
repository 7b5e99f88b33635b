"""Draws a tax invoice or credit note as PDF: the same bytes each time, with every field of CGST rules 46 and 53."""

import logging
import unicodedata
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import fontpkg
from fpdf import FPDF
from fpdf.enums import TextMode, XPos, YPos
from fpdf.fonts import TTFFont

from services.subscriptions.rules import gstin as gst
from services.subscriptions.rules.amounts import format_inr
from services.subscriptions.rules.invoices import INDIA, Invoice

FONT = "notosans"
CONTENT_TYPE = "application/pdf"
MISSING = "\N{REPLACEMENT CHARACTER}"
EXPORT = "SUPPLY MEANT FOR EXPORT ON PAYMENT OF INTEGRATED TAX"

_MARGIN, _INK, _FAINT = 18.0, 30, 110
_TITLES = {"tax_invoice": "Tax invoice", "credit_note": "Credit note"}

# Each drawing would tell the log which tables of the font it leaves out.
logging.getLogger("fontTools").setLevel(logging.ERROR)


def render(invoice: Invoice, corrects: Invoice | None) -> bytes:
    """The document as it was issued; `corrects` is the invoice that a credit note is about."""
    sheet = _Sheet(invoice)
    sheet.head(invoice, corrects)
    sheet.parties(
        ("Seller", _seller(invoice.supplier)), ("Customer", _customer(invoice.recipient, invoice.tenant_id))
    )
    sheet.line_item(invoice)
    sheet.sums(invoice)
    sheet.foot(invoice)
    return bytes(sheet.output())


def file_name(invoice: Invoice) -> str:
    """`INV-2627-000042.pdf`."""
    return f"{invoice.number.replace('/', '-')}.pdf"


class _Sheet(FPDF):
    """A page in one font; what the font lacks is drawn as its replacement character and said at the end."""

    def __init__(self, invoice: Invoice) -> None:
        super().__init__(format="A4")
        self.add_font(FONT, "", fontpkg.path("Noto Sans"))
        self.set_text_shaping(True)
        self.set_font(FONT, size=9)
        self.set_margin(_MARGIN)
        self.c_margin = 0
        self.set_creation_date(invoice.issued_at)
        self.set_title(f"{_TITLES[invoice.kind]} {invoice.number}")
        self.set_author(str(invoice.supplier["name"]))
        self.set_lang("en-IN")
        self._lacked = False
        font = self.fonts[FONT]
        self._drawable = frozenset(font.cmap) if isinstance(font, TTFFont) else frozenset()
        self.add_page()

    def _shown(self, text: str) -> str:
        plain = " ".join(unicodedata.normalize("NFC", text).split())
        drawn = "".join(each if ord(each) in self._drawable else MISSING for each in plain)
        self._lacked = self._lacked or drawn != plain
        return drawn

    def _write(
        self, text: str, *, size: float = 9, faint: bool = False, width: float = 0, align: str = "L"
    ) -> None:
        self.set_font_size(size)
        self.set_text_color(_FAINT if faint else _INK)
        self.multi_cell(
            width or self.epw, size * 0.5, self._shown(text), align=align, new_x=XPos.LEFT, new_y=YPos.NEXT
        )

    def _strong(self, text: str, **how: Any) -> None:
        # The font is one weight; a fine outline of the letters makes the other.
        self.set_draw_color(_INK)
        with self.local_context(text_mode=TextMode.FILL_STROKE, line_width=0.08):
            self._write(text, **how)

    def _rule(self) -> None:
        self.set_draw_color(200)
        self.set_line_width(0.2)
        self.line(_MARGIN, self.y, self.w - _MARGIN, self.y)
        self.set_y(self.y + 3)

    def head(self, invoice: Invoice, corrects: Invoice | None) -> None:
        """What it is, its number and date, and what it corrects."""
        self._strong(_TITLES[invoice.kind], size=20)
        self.ln(2)
        if corrects is not None:
            self._write(
                f"Credit note for {corrects.number} dated {_date(corrects.issued_at)}", size=10, faint=True
            )
        if invoice.place_of_supply == gst.ABROAD:
            self._write(EXPORT, faint=True)
        self.ln(3)
        self._pairs(
            ("Number", invoice.number),
            ("Date", _date(invoice.issued_at)),
            ("Place of supply", _state(invoice.place_of_supply)),
            ("Reverse charge", "No"),
            ("Payment", invoice.payment_id),
        )
        self.ln(3)
        self._rule()

    def _pairs(self, *pairs: tuple[str, str]) -> None:
        for name, value in pairs:
            top = self.y
            self._write(name, faint=True, width=32)
            self.set_xy(_MARGIN + 32, top)
            self._write(value, width=self.epw - 32)
            self.set_x(_MARGIN)

    def parties(self, *parties: tuple[str, Iterable[str]]) -> None:
        """Seller and customer side by side."""
        top, column, ends = self.y, self.epw / 2, []
        for place, (title, lines) in enumerate(parties):
            self.set_xy(_MARGIN + place * column, top)
            self._write(title, faint=True, width=column - 6)
            name, *rest = lines
            self._strong(name, size=10, width=column - 6)
            for line in rest:
                self._write(line, width=column - 6)
            ends.append(self.y)
        self.set_xy(_MARGIN, max(ends) + 4)
        self._rule()

    def line_item(self, invoice: Invoice) -> None:
        """What was sold, for which time, under which code."""
        widths = (self.epw - 65, 25.0, 40.0)
        self._row(widths, ("Description", "SAC", "Taxable value"), faint=True)
        self._row(widths, (invoice.description, invoice.sac, format_inr(invoice.taxable_paise)))
        if invoice.period_start is not None and invoice.period_end is not None:
            period = f"Period {_date(invoice.period_start)} to {_date(invoice.period_end)}"
            self._write(period, faint=True, width=widths[0])
        self.ln(3)
        self._rule()

    def _row(self, widths: tuple[float, ...], cells: tuple[str, ...], *, faint: bool = False) -> None:
        left, top, ends = self.x, self.y, []
        for place, (width, cell) in enumerate(zip(widths, cells, strict=True)):
            self.set_xy(left + sum(widths[:place]), top)
            self._write(cell, width=width, faint=faint, align="R" if place == len(cells) - 1 else "L")
            ends.append(self.y)
        self.set_xy(left, max(ends) + 1)

    def sums(self, invoice: Invoice) -> None:
        """Taxable value, each tax with its rate, total."""
        widths = (self.epw - 45, 45.0)
        self._row(widths, ("Taxable value", format_inr(invoice.taxable_paise)))
        for tax in invoice.taxes:
            self._row(widths, (f"{tax.name} {_percent(tax.rate_bps)}", format_inr(tax.amount_paise)))
        self.ln(1)
        top = self.y
        total = "Total given back" if invoice.kind == "credit_note" else "Total paid"
        self._strong(f"{total} ({invoice.currency}, tax included)", size=11, width=widths[0])
        self.set_xy(_MARGIN + widths[0], top)
        self._strong(format_inr(invoice.total_paise), size=11, width=widths[1], align="R")
        self.set_x(_MARGIN)
        self.ln(6)

    def foot(self, invoice: Invoice) -> None:
        """What the law lets an electronic document leave out, and what the font made it leave out."""
        self._write(
            "Issued electronically under the Information Technology Act, 2000: needs no signature.",
            size=8,
            faint=True,
        )
        if self._lacked:
            self._write(
                f"{MISSING} stands for a character that this document's font cannot draw; the seller's books hold it.",
                size=8,
                faint=True,
            )


def _seller(supplier: Any) -> list[str]:
    lines = [supplier["name"] or "(the seller has no name: set BILLING_SUPPLIER_NAME)", supplier["address"]]
    lines.append(f"GSTIN {supplier['gstin']}" if supplier["gstin"] else "(no GSTIN)")
    return [*filter(None, lines), f"State {_state(supplier['state_code'])}"]


def _customer(recipient: Any, tenant_id: str) -> list[str]:
    code = recipient["state_code"] or (gst.state_of(recipient["gstin"]) if recipient["gstin"] else "")
    town = " ".join(filter(None, (recipient["city"], recipient["postal_code"])))
    return [
        recipient["company_name"] or f"Customer {tenant_id}",
        *filter(None, (recipient["address_line1"], recipient["address_line2"], town)),
        *([f"State {_state(code)}"] if code else []),
        *([f"Country {recipient['country']}"] if recipient["country"] else []),
        f"GSTIN {recipient['gstin']}" if recipient["gstin"] else "Unregistered (no GSTIN)",
    ]


def _state(code: str) -> str:
    return f"{code} {gst.state_name(code)}".strip() or "(unknown)"


def _percent(bps: int) -> str:
    return f"{bps / 100:g} %"


def _date(moment: datetime) -> str:
    day = moment.astimezone(INDIA)
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
