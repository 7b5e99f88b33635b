"""Tax invoices and credit notes: how a price that includes GST divides, where it is taxed, how documents are numbered."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

from services.subscriptions.rules import gstin as gst
from services.subscriptions.rules.amounts import GST_RATE_BPS
from services.subscriptions.rules.billing_info import BillingInfo
from services.subscriptions.rules.funding import Payment
from services.subscriptions.rules.policy import Supplier

# Financial years and the dates on documents are India's.
INDIA = ZoneInfo("Asia/Kolkata")
WHOLE_BPS = 10_000
NUMBER_MAX = 16

Kind = Literal["tax_invoice", "credit_note"]
_PREFIX: Mapping[Kind, str] = {"tax_invoice": "INV", "credit_note": "CRN"}


@dataclass(frozen=True)
class Split:
    """An amount divided into its taxable value and its taxes."""

    taxable_paise: int
    cgst_paise: int = 0
    sgst_paise: int = 0
    igst_paise: int = 0

    @property
    def tax_paise(self) -> int:
        """All of the taxes."""
        return self.cgst_paise + self.sgst_paise + self.igst_paise

    @property
    def total_paise(self) -> int:
        """What was paid."""
        return self.taxable_paise + self.tax_paise


@dataclass(frozen=True)
class Tax:
    """One line of tax."""

    name: str
    rate_bps: int
    amount_paise: int


@dataclass(frozen=True)
class Invoice:
    """A document as it was issued; it never changes."""

    id: str
    tenant_id: str
    kind: Kind
    financial_year: str
    serial: int
    number: str
    payment_id: str
    refund_id: str | None
    description: str
    sac: str
    place_of_supply: str
    taxable_paise: int
    cgst_paise: int
    sgst_paise: int
    igst_paise: int
    tax_rate_bps: int
    total_paise: int
    currency: str
    supplier: Mapping[str, Any]
    recipient: Mapping[str, Any]
    period_start: datetime | None
    period_end: datetime | None
    issued_at: datetime

    @property
    def split(self) -> Split:
        """How its total divides."""
        return Split(self.taxable_paise, self.cgst_paise, self.sgst_paise, self.igst_paise)

    @property
    def within_state(self) -> bool:
        """Whether seller and place of supply are in one state: CGST and SGST rather than IGST."""
        return self.place_of_supply == self.supplier.get("state_code")

    @property
    def taxes(self) -> tuple[Tax, ...]:
        """Its taxes with their rates."""
        if self.within_state:
            half = self.tax_rate_bps // 2
            return (Tax("CGST", half, self.cgst_paise), Tax("SGST", half, self.sgst_paise))
        return (Tax("IGST", self.tax_rate_bps, self.igst_paise),)


@dataclass(frozen=True)
class Serial:
    """The place of a document in its row: consecutive for each financial year and kind."""

    kind: Kind
    financial_year: str
    serial: int

    @property
    def number(self) -> str:
        """`INV/2627/000042`; past ten million a year the strokes go, for the law allows sixteen characters."""
        number = f"{_PREFIX[self.kind]}/{self.financial_year}/{self.serial:06d}"
        return number if len(number) <= NUMBER_MAX else number.replace("/", "")


def split_inclusive(total_paise: int, *, within_state: bool, rate_bps: int = GST_RATE_BPS) -> Split:
    """What part of a price that includes GST is tax; within a state one half, computed once, is taken twice."""
    gross = WHOLE_BPS + rate_bps
    if within_state:
        half = _round_half_up(total_paise * rate_bps, 2 * gross)
        return Split(total_paise - 2 * half, cgst_paise=half, sgst_paise=half)
    taxable = _round_half_up(total_paise * WHOLE_BPS, gross)
    return Split(taxable, igst_paise=total_paise - taxable)


def split_refund(invoiced: Split, *, refunded_before_paise: int, amount_paise: int) -> Split:
    """What part of a refund is tax: all refunds together hold their share of the invoice's, hence in the end all of it."""
    before = _share(invoiced, refunded_before_paise)
    after = _share(invoiced, refunded_before_paise + amount_paise)
    return Split(
        after.taxable_paise - before.taxable_paise,
        after.cgst_paise - before.cgst_paise,
        after.sgst_paise - before.sgst_paise,
        after.igst_paise - before.igst_paise,
    )


def _share(invoiced: Split, amount_paise: int) -> Split:
    total = invoiced.total_paise
    if not total:
        return invoiced
    half = _round_half_up(invoiced.cgst_paise * amount_paise, total)
    taxable = _round_half_up(invoiced.taxable_paise * amount_paise, total)
    if invoiced.igst_paise:
        return Split(taxable, igst_paise=amount_paise - taxable)
    return Split(amount_paise - 2 * half, cgst_paise=half, sgst_paise=half)


def _round_half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def place_of_supply(info: BillingInfo, supplier: Supplier) -> str:
    """The state whose tax it is: the customer's as far as it is known, else the seller's; 96 is outside India."""
    if info.is_abroad:
        return gst.ABROAD
    return info.state or state_of(supplier)


def state_of(supplier: Supplier) -> str:
    """The seller's state; its GSTIN names it where nothing else does."""
    return supplier.state_code or (gst.state_of(supplier.gstin) if supplier.gstin else "")


def financial_year(moment: datetime) -> str:
    """`2627` from 1 April 2026 to 31 March 2027, as clocks in India show it."""
    day = moment.astimezone(INDIA)
    begins = day.year if day.month >= 4 else day.year - 1
    return f"{begins % 100:02d}{(begins + 1) % 100:02d}"


def tax_invoice(
    invoice_id: str,
    place: Serial,
    payment: Payment,
    info: BillingInfo,
    supplier: Supplier,
    *,
    description: str,
    now: datetime,
) -> Invoice:
    """The document of a payment, with seller and customer as they are now."""
    supply = place_of_supply(info, supplier)
    split = split_inclusive(payment.amount_paise, within_state=supply == state_of(supplier))
    return Invoice(
        id=invoice_id,
        tenant_id=payment.tenant_id,
        kind="tax_invoice",
        financial_year=place.financial_year,
        serial=place.serial,
        number=place.number,
        payment_id=payment.id,
        refund_id=None,
        description=description,
        sac=supplier.sac,
        place_of_supply=supply,
        **asdict(split),
        tax_rate_bps=GST_RATE_BPS,
        total_paise=split.total_paise,
        currency=payment.currency,
        supplier={**asdict(supplier), "state_code": state_of(supplier)},
        recipient=asdict(info),
        period_start=payment.period_start,
        period_end=payment.period_end,
        issued_at=now,
    )


def credit_note(
    invoice_id: str,
    place: Serial,
    invoice: Invoice,
    split: Split,
    supplier: Supplier,
    *,
    refund_id: str,
    now: datetime,
) -> Invoice:
    """The document of a refund: customer, place and kind of tax are those of the invoice that it corrects."""
    return Invoice(
        id=invoice_id,
        tenant_id=invoice.tenant_id,
        kind="credit_note",
        financial_year=place.financial_year,
        serial=place.serial,
        number=place.number,
        payment_id=invoice.payment_id,
        refund_id=refund_id,
        description=f"Refund: {invoice.description}",
        sac=invoice.sac,
        place_of_supply=invoice.place_of_supply,
        **asdict(split),
        tax_rate_bps=invoice.tax_rate_bps,
        total_paise=split.total_paise,
        currency=invoice.currency,
        supplier=_who_corrects(invoice, supplier),
        recipient=invoice.recipient,
        period_start=invoice.period_start,
        period_end=invoice.period_end,
        issued_at=now,
    )


def _who_corrects(invoice: Invoice, supplier: Supplier) -> Mapping[str, Any]:
    # A seller may have moved; one that goes by another GSTIN cannot correct what the first one sold.
    if supplier.gstin != invoice.supplier["gstin"]:
        return invoice.supplier
    return {**asdict(supplier), "state_code": invoice.supplier["state_code"]}
