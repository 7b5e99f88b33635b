"""The seller as a deployment names it: no tax invoice goes out in a name that cannot be."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from services.subscriptions.config import SubscriptionsSettings
from services.subscriptions.rules.invoices import state_of
from shared.config import explain
from suite.rooms import SAMPLE_SELLER
from tests.ledger.conftest import SECRETS
from tests.subscriptions.invoicing import SELLER

NAMED = {
    "billing_supplier_name": SELLER.name,
    "billing_supplier_gstin": SELLER.gstin,
    "billing_supplier_address": SELLER.address,
}


def settings(**of: Any) -> SubscriptionsSettings:
    return SubscriptionsSettings(**SECRETS, subscriptions_database_url="postgresql://nowhere", **of)


def test_a_named_seller_sells() -> None:
    supplier = settings(razorpay_mode="live", **NAMED).policy.supplier

    assert (supplier.name, supplier.gstin, supplier.address) == (SELLER.name, SELLER.gstin, SELLER.address)


def test_without_real_money_nobody_has_to_be_named() -> None:
    assert settings().policy.supplier.name == ""


def test_the_suites_sample_seller_could_sell() -> None:
    sample = {name.lower(): value for name, value in SAMPLE_SELLER.items()}

    supplier = settings(razorpay_mode="live", **sample).policy.supplier

    assert replace(supplier, state_code=state_of(supplier)) == SELLER


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"razorpay_mode": "live"}, ["NAME", "GSTIN", "ADDRESS"]),
        ({**NAMED, "billing_supplier_gstin": "29AABCU9603R1ZK"}, ["GSTIN"]),
        ({**NAMED, "billing_supplier_state_code": "27"}, ["STATE_CODE"]),
        ({"billing_supplier_state_code": "40"}, ["STATE_CODE"]),
    ],
)
def test_what_is_missing_or_cannot_be_is_named(told: dict[str, str], wrong: list[str]) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**told)

    lines = [line.split()[0] for line in explain(refused.value).splitlines()[1:-1]]
    assert lines == [f"BILLING_SUPPLIER_{name}" for name in wrong]
