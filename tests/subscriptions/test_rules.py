"""The room's decisions, one at a time."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.subscriptions.errors import IdempotencyKeyReused
from services.subscriptions.rules import entitlements, funding, signatures
from services.subscriptions.rules.alerts import alerts
from services.subscriptions.rules.amounts import format_inr, gst_inside, gst_on, with_gst, yearly_discount_pct
from services.subscriptions.rules.catalog import Catalog, differences, parse
from services.subscriptions.rules.claims import Claim, Granted, Revocation, revocations
from services.subscriptions.rules.entitlements import ActiveAddon, Override
from services.subscriptions.rules.funding import Situation
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.periods import RENEWAL_GRACE, paid_period
from services.subscriptions.rules.purchases import Intent, was_begun_by
from services.subscriptions.rules.requests import assert_same
from tests.subscriptions.builders import (
    CATALOG,
    MONTH,
    START,
    a_known,
    a_payment,
    a_purchase,
    a_snapshot,
    an_event,
    first_charge,
)

PRO = CATALOG.plans["pro"]


@pytest.mark.parametrize(
    ("paise", "shown"),
    [
        (0, "₹0.00"),
        (5, "₹0.05"),
        (99_999, "₹999.99"),
        (100_000, "₹1,000.00"),
        (12_345_678, "₹1,23,456.78"),
        (1_234_567_850, "₹1,23,45,678.50"),
        (-12_345_678, "-₹1,23,456.78"),
    ],
)
def test_money_is_shown_in_indian_grouping(paise: int, shown: str) -> None:
    assert format_inr(paise) == shown


@given(st.integers(0, 10**13))
def test_shown_money_is_the_money(paise: int) -> None:
    assert int(format_inr(paise).replace("₹", "").replace(",", "").replace(".", "")) == paise


def test_tax_is_added_to_plans_and_contained_in_packs() -> None:
    assert (gst_on(199_900), with_gst(199_900)) == (35_982, 235_882)
    assert gst_on(550) == 99
    assert gst_inside(166_000) == 25_322


@given(st.integers(0, 10**12))
def test_tax_inside_a_price_is_the_tax_that_was_added(amount: int) -> None:
    assert gst_inside(with_gst(amount)) == gst_on(amount)


def test_the_discount_never_promises_too_much() -> None:
    assert yearly_discount_pct(49_900, 499_000) == 16
    assert yearly_discount_pct(0, 0) == 0


def test_the_catalogue_is_the_designs() -> None:
    business = CATALOG.plans["business"]

    assert (PRO.price_monthly_paise, PRO.price_yearly_paise, PRO.base_credits) == (199_900, 1_999_000, 15_000)
    assert (PRO.credits("monthly"), PRO.credits("yearly")) == (15_000, 180_000)
    assert business.limits["blog.posts"] is None
    assert business.limits["platform.custom_roles"] is None
    assert CATALOG.credit_packs["medium"].total_paise == 166_000
    assert set(CATALOG.addons) == {"storage", "seat", "email_sends", "blog_posts", "custom_domain"}
    assert CATALOG.credit_costs["blog.publish"].credits == 5


def test_a_catalogue_with_holes_names_all_of_them() -> None:
    document = {
        "services": {"blog": {"name": "Blog", "limits": {"posts": {"name": "Posts", "unit": "post"}}}},
        "plans": {
            "free": {"name": "F", "monthly_rupees": 0, "yearly_rupees": 0, "base_credits": 1, "limits": {}},
            "pro": {
                "name": "P",
                "monthly_rupees": 9,
                "yearly_rupees": 0,
                "base_credits": 1,
                "limits": {"blog.posts": 1, "blog.words": 3},
            },
        },
        "credit_packs": {},
        "addons": {},
        "credit_costs": {},
    }

    with pytest.raises(ValueError, match=r"catalog\.yaml") as refused:
        parse(document)

    for part in (
        "plans.free.limits.blog.posts",
        "one cycle only",
        "blog.words is unknown",
    ):
        assert part in str(refused.value)


def test_a_difference_says_what_is_added_changed_and_retired() -> None:
    plans = dict(CATALOG.plans)
    del plans["business"]
    plans["pro"] = replace(PRO, base_credits=1)
    other: Catalog = replace(CATALOG, plans=plans)

    changes = {(c.change, c.kind, c.code) for c in differences(CATALOG, other)}

    assert ("change", "plan", "pro") in changes
    assert ("retire", "plan", "business") in changes
    assert ("retire", "plan_limit", "business/blog.posts") in changes
    assert differences(CATALOG, CATALOG) == []
    assert CATALOG.version != other.version


def test_entitlements_are_plan_plus_addons_replaced_by_overrides() -> None:
    overrides = [
        Override("blog", "posts", 7, None),
        Override("platform", "api_keys", 99, START - timedelta(seconds=1)),
        Override("media", "storage_mb", None, START + timedelta(days=1)),
    ]

    built = entitlements.build(
        CATALOG, "pro", [ActiveAddon("seat", 3), ActiveAddon("storage", 1)], overrides, START
    )

    limits = {f"{s.service}.{limit.key}": limit.value for s in built for limit in s.limits}
    assert limits["platform.seats"] == 18
    assert limits["blog.posts"] == 7
    assert limits["platform.api_keys"] == 10
    assert limits["media.storage_mb"] is None
    assert all(service.enabled for service in built)
    assert entitlements.from_json(entitlements.as_json(built)) == built


def test_a_service_outside_the_plan_is_disabled() -> None:
    plan = replace(PRO, limits={path: v for path, v in PRO.limits.items() if not path.startswith("comms.")})
    catalog = replace(CATALOG, plans={"pro": plan})

    built = {s.service: s for s in entitlements.build(catalog, "pro", [], [], START)}

    assert not built["comms"].enabled
    assert built["comms"].limits == ()
    assert built["blog"].enabled


def test_credits_outlive_their_period_by_the_grace() -> None:
    period = paid_period(START, START + MONTH, "monthly", START)

    assert (period.credits_expire_at, period.late) == (START + MONTH + RENEWAL_GRACE, False)


def test_a_late_charge_is_never_dead_on_arrival() -> None:
    received = START + 3 * MONTH

    period = paid_period(START, START + MONTH, "monthly", received)

    assert (period.credits_expire_at, period.late) == (received + MONTH, True)


def decide(event, **situation):
    defaults = {"mode": "test", "tenant_known": True, "subscription": a_known(), "plan": PRO}
    return funding.decide(event, Situation(**(defaults | situation)))


@pytest.mark.parametrize(
    ("event_type", "reason"),
    [
        ("payment.authorized", "not_a_funding_fact"),
        ("payment.captured", "not_a_funding_fact"),
        ("order.paid", "not_a_funding_fact"),
        ("invoice.paid", "not_a_funding_fact"),
        ("refund.processed", "no_refund"),
        ("payment.dispute.lost", "no_dispute"),
        ("virtual_account.credited", "unknown_event"),
    ],
)
def test_events_that_never_fund(event_type: str, reason: str) -> None:
    decision = decide(an_event(event_type, payment=a_payment()))

    assert (decision.outcome, decision.reason, decision.grant) == ("ignored", reason, None)


def test_a_charge_of_nobody_we_know_is_ignored_by_name() -> None:
    charged = first_charge()[-1]

    assert decide(charged, subscription=None, tenant_known=False).reason == "unknown_tenant"
    stray = decide(charged, subscription=None)
    assert (stray.reason, stray.finding.check_type) == ("unknown_subscription", "charge_without_subscription")


def test_test_money_never_funds_a_live_deployment() -> None:
    assert decide(first_charge()[-1], mode="live").reason == "other_mode"


def test_a_charge_without_its_payment_is_asked_about() -> None:
    decision = decide(an_event("subscription.charged", subscription=a_snapshot()))

    assert (decision.outcome, decision.reason, decision.fetch) == ("applied", "payment_missing", True)
    assert decision.grant is None


def test_a_year_grants_its_twelve_months_unless_it_drips() -> None:
    yearly = a_known(billing_cycle="yearly")
    charged = first_charge()[-1]

    assert decide(charged, subscription=yearly).grant.credits == 180_000
    drips = decide(charged, subscription=yearly, plan=replace(PRO, credit_cadence="monthly"))
    assert (drips.grant, drips.reason) == (None, "drips_monthly")
    assert drips.payment is not None


def test_a_trial_grants_its_credits_until_it_ends() -> None:
    ends = START + timedelta(days=14)
    waiting = a_snapshot(status="authenticated", paid_count=0, current_start=None, current_end=None)

    decision = decide(
        an_event("subscription.authenticated", subscription=waiting), subscription=a_known(trial_ends_at=ends)
    )

    assert (decision.grant.credits, decision.grant.expires_at) == (500, ends)
    assert decision.grant.reference_id == "trial:sub_IBCxfQBRsELuA7"


PACK = {"amount_paise": 166_000, "order_id": "order_lfvo2q0jPHvotD", "invoice_id": ""}


@pytest.mark.parametrize(
    ("payment", "purchase", "reason"),
    [
        (PACK, {}, "granted"),
        (PACK | {"amount_paise": 165_999}, {}, "amount_mismatch"),
        (PACK | {"currency": "USD"}, {}, "amount_mismatch"),
        (PACK | {"status": "authorized", "captured": False}, {}, "not_captured"),
        (PACK, {"payment_id": "pay_another00000000"}, "purchase_already_paid"),
        (PACK, {"payment_id": "pay_jWoKp0BC8gbNPg"}, "already_funded"),
        (PACK, None, "unknown_order"),
        (PACK | {"invoice_id": "inv_S55ypjWRdDiobb"}, {}, "not_a_funding_fact"),
    ],
)
def test_a_pack_is_funded_only_by_its_own_captured_payment(payment, purchase, reason) -> None:
    bought = None if purchase is None else a_purchase(**purchase)

    decision = decide(
        an_event("payment.captured", payment=a_payment(**payment)), subscription=None, purchase=bought
    )

    assert decision.reason == reason
    assert (decision.grant is not None) == (reason == "granted")
    if reason == "granted":
        assert (decision.grant.bucket, decision.grant.credits) == ("permanent", 2_200)


def an_intent(**of) -> Intent:
    return replace(
        Intent(
            id="int_1",
            tenant_id="tn_1",
            idempotency_key="k",
            kind="checkout",
            plan_id="pro",
            billing_cycle="monthly",
            with_trial=False,
            amount_paise=199_900,
            tax_paise=35_982,
            currency="INR",
            first_charge_at=None,
            provider="razorpay",
            provider_plan_id="plan_I3ITN5dX2VKlqj",
            provider_subscription_id=None,
            attempted_at=START,
            created_at=START,
        ),
        **of,
    )


@pytest.mark.parametrize(
    ("intent", "notes", "ours"),
    [
        ({}, {}, True),
        ({}, {"tenant_id": "tn_2"}, False),
        ({}, {"intent_id": "int_2"}, False),
        ({"attempted_at": None}, {}, False),
        ({"provider_plan_id": "plan_another000000"}, {}, False),
        ({"provider_subscription_id": "sub_another0000000"}, {}, False),
    ],
)
def test_a_lost_subscription_is_ours_only_if_everything_agrees(intent, notes, ours) -> None:
    begun = an_intent(**intent)

    assert was_begun_by(begun, a_snapshot(notes=an_intent().notes | notes)) is ours


def test_a_key_with_other_content_names_the_field() -> None:
    assert_same("Checkout", {"plan_code": "pro"}, {"plan_code": "pro"})
    with pytest.raises(IdempotencyKeyReused) as refused:
        assert_same(
            "Checkout", {"plan_code": "pro", "cycle": "monthly"}, {"plan_code": "pro", "cycle": "yearly"}
        )
    assert refused.value.metadata == {"field": "cycle", "method": "Checkout"}


def test_signatures_are_the_providers() -> None:
    assert not signatures.matches("é" * 64, signatures.order_signature("s", "order_1", "pay_1"))
    assert signatures.matches(
        signatures.subscription_signature("s", "pay_1", "sub_1"),
        signatures.order_signature("s", "pay_1", "sub_1"),
    )


@pytest.mark.parametrize(
    ("days", "stage"), [(0, "day_1"), (2, "day_1"), (3, "day_3"), (6, "day_3"), (9, "day_7")]
)
def test_alerts_name_the_stage_and_the_limits(days: int, stage: str) -> None:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    row = Subscription(
        id="s", tenant_id="t", plan_id="pro", status="past_due", past_due_since=now - timedelta(days=days)
    )
    services = entitlements.build(CATALOG, "free", [], [], now)

    found = alerts(row, services, {"blog.posts": 11, "media.storage_mb": 480, "platform.seats": 1}, [], now)

    assert (found[0].kind, found[0].stage) == ("past_due", stage)
    assert [(a.kind, a.subject) for a in found[1:]] == [
        ("over_limit", "blog.posts"),
        ("near_limit_95", "media.storage_mb"),
    ]


def test_a_full_refund_takes_what_a_change_had_taken_and_gave_back() -> None:
    grant = Granted("razorpay:pay_1", 3_000)
    whole = Claim("refund", "rfnd_1", 58_882)
    change = Revocation("proration:int_2:razorpay:pay_1", "razorpay:pay_1", "proration", "rfd_1", 1_000)

    beside = revocations(58_882, [grant], [whole], [change])
    gone_back = revocations(58_882, [grant], [whole], beside)

    assert [(each.reference_id, each.credits) for each in beside] == [("razorpay:rfnd_1", 2_000)]
    assert [(each.reference_id, each.credits) for each in gone_back] == [("razorpay:rfnd_1:rest", 1_000)]
    assert revocations(58_882, [grant], [whole], [*beside, *gone_back]) == []
