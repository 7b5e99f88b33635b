"""Payments and their documents, valid by default."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from services.subscriptions.rules import invoices as rules
from services.subscriptions.rules.billing_info import BillingInfo
from services.subscriptions.rules.funding import Payment
from services.subscriptions.rules.invoices import Invoice, Serial
from services.subscriptions.rules.policy import Supplier
from shared.ids import new_id

NOW = datetime(2026, 11, 20, 6, 30, tzinfo=UTC)
SELLER = Supplier("Example Software Private Limited", "29AABCU9603R1ZJ", "29", "1 MG Road, Bengaluru 560001")
ELSEWHERE = BillingInfo(
    company_name="Fabrikam LLP",
    gstin="27AAPFU0939F1ZV",
    address_line1="12 Marine Drive",
    address_line2="Churchgate",
    city="Mumbai",
    state_code="27",
    postal_code="400020",
    country="IN",
    email="books@fabrikam.example",
)


def payment(tenant: str, amount: int = 235_882, **of: Any) -> Payment:
    return replace(
        Payment(
            id=new_id("pay"),
            tenant_id=tenant,
            purpose="plan_cycle",
            razorpay_subscription_id="sub_1",
            order_id="",
            invoice_id="",
            purchase_id=None,
            plan_id="pro",
            billing_cycle="monthly",
            amount_paise=amount,
            currency="INR",
            method="card",
            period_start=NOW,
            period_end=NOW + timedelta(days=30),
            received_at=NOW,
        ),
        **of,
    )


def an_invoice(
    amount: int = 12_345_678,
    info: BillingInfo = ELSEWHERE,
    *,
    seller: Supplier = SELLER,
    description: str = "Pro plan, monthly",
    **of: Any,
) -> Invoice:
    return rules.tax_invoice(
        new_id("inv"),
        Serial("tax_invoice", "2627", 42),
        payment("tn_1", amount, **of),
        info,
        seller,
        description=description,
        now=NOW,
    )


def a_note(invoice: Invoice, amount: int, *, seller: Supplier = SELLER) -> Invoice:
    return rules.credit_note(
        new_id("inv"),
        Serial("credit_note", "2627", 7),
        invoice,
        rules.split_refund(invoice.split, refunded_before_paise=0, amount_paise=amount),
        seller,
        refund_id=new_id("rfd"),
        now=NOW + timedelta(days=3),
    )
