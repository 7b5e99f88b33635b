"""Snapshots and events that are valid by default; a test says what it is about."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from services.subscriptions.catalogue import load_catalog
from services.subscriptions.rules.events import (
    PaymentEvent,
    ProviderInvoice,
    ProviderOrder,
    ProviderPayment,
    ProviderSubscription,
)
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.purchases import PackPurchase

START = datetime(2026, 10, 14, 5, 14, 43, tzinfo=UTC)
MONTH = timedelta(days=30)
CATALOG = load_catalog()


def a_known(**of: Any) -> KnownSubscription:
    return replace(
        KnownSubscription(
            id="sub_IBCxfQBRsELuA7",
            tenant_id="tn_1",
            intent_id="int_1",
            plan_id="pro",
            billing_cycle="monthly",
            provider_plan_id="plan_I3ITN5dX2VKlqj",
            purchased_at=START - timedelta(minutes=5),
        ),
        **of,
    )


def a_snapshot(**of: Any) -> ProviderSubscription:
    return replace(
        ProviderSubscription(
            id="sub_IBCxfQBRsELuA7",
            provider_plan_id="plan_I3ITN5dX2VKlqj",
            customer_id="cust_aXCn3hhU1edeYR",
            status="active",
            current_start=START,
            current_end=START + MONTH,
            charge_at=START + MONTH,
            start_at=START,
            paid_count=1,
            total_count=120,
            payment_method="card",
        ),
        **of,
    )


def a_payment(**of: Any) -> ProviderPayment:
    return replace(
        ProviderPayment(
            id="pay_jWoKp0BC8gbNPg",
            amount_paise=235_882,
            currency="INR",
            status="captured",
            captured=True,
            order_id="order_RL8naBt1fuLqzO",
            invoice_id="inv_S55ypjWRdDiobb",
            method="card",
        ),
        **of,
    )


def an_event(event_type: str, *, after_seconds: float = 0, **of: Any) -> PaymentEvent:
    at = START + timedelta(seconds=after_seconds)
    identity = f"{event_type} {at} {sorted(of.items(), key=lambda item: item[0])}"
    return replace(
        PaymentEvent(
            provider="razorpay",
            account_id="acc_1",
            mode="test",
            body_sha256=hashlib.sha256(identity.encode()).hexdigest(),
            event_id=event_type,
            event_type=event_type,
            occurred_at=at,
            received_at=at,
        ),
        **of,
    )


def a_purchase(**of: Any) -> PackPurchase:
    return replace(
        PackPurchase(
            id="pur_1",
            tenant_id="tn_1",
            idempotency_key="k",
            pack_id="medium",
            credits=2_200,
            amount_paise=166_000,
            tax_paise=25_322,
            currency="INR",
            provider="razorpay",
            provider_order_id="order_lfvo2q0jPHvotD",
            payment_id=None,
        ),
        **of,
    )


def first_charge() -> list[PaymentEvent]:
    """The seven events of a subscription's first charge, with the moments and snapshots of the samples."""
    waiting = a_snapshot(
        status="authenticated", current_start=None, current_end=None, charge_at=START, paid_count=0
    )
    authorised = a_payment(status="authorized", captured=False)
    invoice = ProviderInvoice("inv_S55ypjWRdDiobb", "sub_IBCxfQBRsELuA7", "pay_jWoKp0BC8gbNPg", "paid")
    order = ProviderOrder("order_RL8naBt1fuLqzO", 235_882, "INR", "", "paid")
    return [
        an_event("payment.authorized", after_seconds=2, payment=authorised),
        an_event("subscription.authenticated", after_seconds=3, subscription=waiting),
        an_event("payment.captured", after_seconds=4, payment=a_payment()),
        an_event("order.paid", after_seconds=4, payment=a_payment(), order=order),
        an_event("invoice.paid", after_seconds=5, payment=a_payment(), order=order, invoice=invoice),
        an_event("subscription.activated", after_seconds=5, subscription=a_snapshot(paid_count=0)),
        an_event("subscription.charged", after_seconds=6, subscription=a_snapshot(), payment=a_payment()),
    ]
