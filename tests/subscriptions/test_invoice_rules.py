"""How money divides into value and tax, where it is taxed, and what documents are called."""

from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.subscriptions.rules.amounts import format_inr, with_gst
from services.subscriptions.rules.billing_info import BillingInfo
from services.subscriptions.rules.invoices import (
    NUMBER_MAX,
    Serial,
    Split,
    Tax,
    financial_year,
    place_of_supply,
    split_inclusive,
    split_refund,
)
from services.subscriptions.rules.policy import Supplier
from tests.subscriptions.invoicing import ELSEWHERE, SELLER, a_note, an_invoice

TOTALS = st.integers(0, 10**13)
PLACES = st.booleans()


@given(TOTALS, PLACES)
def test_a_split_adds_up_and_is_a_paisa_from_the_truth(total: int, within_state: bool) -> None:
    split = split_inclusive(total, within_state=within_state)

    assert split.total_paise == total
    assert split.cgst_paise == split.sgst_paise
    assert (split.igst_paise == 0) if within_state else (split.cgst_paise == 0)
    assert abs(split.taxable_paise - Fraction(total * 100, 118)) <= 1
    assert abs(split.tax_paise - Fraction(total * 18, 118)) <= 1
    assert abs(split.cgst_paise - (Fraction(total * 9, 118) if within_state else 0)) <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("total", "within", "across"),
    [
        (235_882, Split(199_900, 17_991, 17_991), Split(199_900, igst_paise=35_982)),
        # 9 % of ₹5.50 is 49.5 paise: one half, rounded once, is taken twice.
        (649, Split(549, 50, 50), Split(550, igst_paise=99)),
        (166_000, Split(140_678, 12_661, 12_661), Split(140_678, igst_paise=25_322)),
        (0, Split(0), Split(0)),
        (1, Split(1), Split(1)),
    ],
)
def test_known_amounts_divide_as_by_hand(total: int, within: Split, across: Split) -> None:
    assert split_inclusive(total, within_state=True) == within
    assert split_inclusive(total, within_state=False) == across


@given(st.integers(0, 10**12))
def test_between_states_the_taxable_value_is_the_price_of_the_catalogue(price: int) -> None:
    assert split_inclusive(with_gst(price), within_state=False).taxable_paise == price


@given(st.data(), PLACES)
def test_refunds_in_parts_give_back_exactly_the_invoice_and_never_more_tax(
    data: st.DataObject, within_state: bool
) -> None:
    total = data.draw(st.integers(100, 10**9))
    cuts = sorted(data.draw(st.sets(st.integers(1, total - 1), max_size=8)))
    invoiced = split_inclusive(total, within_state=within_state)

    given_back = Split(0)
    for before, after in zip([0, *cuts], [*cuts, total], strict=True):
        part = split_refund(invoiced, refunded_before_paise=before, amount_paise=after - before)
        assert part.total_paise == after - before
        assert part.cgst_paise == part.sgst_paise
        assert part.tax_paise >= 0
        # A provider refunds a rupee at least; below some paise the two halves may be all there is.
        assert part.taxable_paise >= (0 if after - before >= 12 else -1)
        given_back = Split(
            given_back.taxable_paise + part.taxable_paise,
            given_back.cgst_paise + part.cgst_paise,
            given_back.sgst_paise + part.sgst_paise,
            given_back.igst_paise + part.igst_paise,
        )
        assert given_back.tax_paise <= invoiced.tax_paise
        assert abs(given_back.tax_paise - Fraction(invoiced.tax_paise * after, total)) <= 1
    assert given_back == invoiced


@pytest.mark.parametrize(
    ("info", "supply"),
    [
        (BillingInfo(), "29"),
        (BillingInfo(state_code="27"), "27"),
        (BillingInfo(gstin="24AABCJ1087G1ZT"), "24"),
        (BillingInfo(country="IN"), "29"),
        (BillingInfo(country="US"), "96"),
        (replace(ELSEWHERE, state_code=""), "27"),
    ],
)
def test_the_place_of_supply_is_the_customers_as_far_as_it_is_known(info: BillingInfo, supply: str) -> None:
    assert place_of_supply(info, SELLER) == supply
    invoice = an_invoice(235_882, info)
    names = [(tax.name, tax.rate_bps) for tax in invoice.taxes]
    assert names == ([("CGST", 900), ("SGST", 900)] if supply == "29" else [("IGST", 1800)])
    assert sum(tax.amount_paise for tax in invoice.taxes) + invoice.taxable_paise == invoice.total_paise


def test_a_sellers_state_is_its_gstins_where_nothing_else_names_it() -> None:
    seller = replace(SELLER, state_code="")

    assert place_of_supply(BillingInfo(), seller) == "29"
    assert an_invoice(info=BillingInfo(), seller=seller).within_state


def test_without_a_configured_seller_a_payment_still_has_its_invoice() -> None:
    invoice = an_invoice(235_882, BillingInfo(), seller=Supplier())

    assert invoice.place_of_supply == ""
    assert invoice.taxes == (Tax("CGST", 900, 17_991), Tax("SGST", 900, 17_991))


def test_a_credit_note_names_the_parties_and_the_tax_of_its_invoice() -> None:
    invoice = an_invoice()
    moved, other = replace(SELLER, address="2 MG Road"), replace(SELLER, gstin="27AAPFU0939F1ZV")

    note = a_note(invoice, 10_000, seller=moved)

    assert (note.recipient, note.place_of_supply) == (invoice.recipient, "27")
    assert [tax.name for tax in note.taxes] == ["IGST"]
    assert note.supplier["address"] == "2 MG Road"
    assert a_note(invoice, 10_000, seller=other).supplier == invoice.supplier


@pytest.mark.parametrize(
    ("moment", "year"),
    [
        (datetime(2026, 4, 1, tzinfo=UTC), "2627"),
        # Half past six in the evening in London is midnight in India.
        (datetime(2027, 3, 31, 18, 29, 59, tzinfo=UTC), "2627"),
        (datetime(2027, 3, 31, 18, 30, tzinfo=UTC), "2728"),
        (datetime(2026, 12, 31, 23, tzinfo=UTC), "2627"),
        (datetime(2099, 5, 1, tzinfo=UTC), "9900"),
    ],
)
def test_financial_years_begin_at_midnight_in_india(moment: datetime, year: str) -> None:
    assert financial_year(moment) == year


@pytest.mark.parametrize(
    ("place", "number"),
    [
        (Serial("tax_invoice", "2627", 42), "INV/2627/000042"),
        (Serial("credit_note", "2627", 7), "CRN/2627/000007"),
        (Serial("tax_invoice", "2627", 9_999_999), "INV/2627/9999999"),
        (Serial("tax_invoice", "2627", 10_000_000), "INV262710000000"),
    ],
)
def test_numbers_are_as_long_as_the_law_allows(place: Serial, number: str) -> None:
    assert place.number == number
    assert len(number) <= NUMBER_MAX


@pytest.mark.parametrize(
    ("paise", "shown"),
    [
        (1, "₹0.01"),
        (-1, "-₹0.01"),
        (-100, "-₹1.00"),
        (-99_999, "-₹999.99"),
        (9_999_999, "₹99,999.99"),
        (10_000_000, "₹1,00,000.00"),
        (-10_000_000, "-₹1,00,000.00"),
        (1_000_000_000, "₹1,00,00,000.00"),
        (123_456_789_012, "₹1,23,45,67,890.12"),
        (99_999_999_999_999, "₹9,99,99,99,99,999.99"),
        (-(10**14), "-₹10,00,00,00,00,000.00"),
        (2**63 - 1, "₹92,23,37,20,36,85,47,758.07"),
    ],
)
def test_money_is_shown_as_unicodes_locale_data_has_it_for_india(paise: int, shown: str) -> None:
    assert format_inr(paise) == shown
