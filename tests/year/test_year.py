"""A short year of a few tenants in the running suite; then its evidence is tampered with, and the checks have to tell."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.year.checks.all import wrong_with
from tests.year.checks.money import sales
from tests.year.days import Plan, Year
from tests.year.evidence import Evidence, Row, gather
from tests.year.exemplar import Exemplar, Sleeper
from tests.year.place import place_in, running_suite

PLAN = Plan(tenants=3, days=35, seed=20, activity=0.3, kills=0)
SLEEPER = f"tenant-{PLAN.tenants + 1:03d}"


@pytest.fixture(scope="module")
async def lived() -> Evidence:
    """A month and some days of three random tenants and two whose lives are written down."""
    with running_suite() as suite:
        async with place_in(suite) as place:
            year = Year(place, PLAN)
            year.customers += [
                Exemplar(place, PLAN.tenants, PLAN.seed),
                Sleeper(place, PLAN.tenants + 1, PLAN.seed),
            ]
            told = await year.run()
            return await gather(place, told)


def test_the_end_of_a_short_year_is_as_it_must_be(lived: Evidence) -> None:
    assert wrong_with(lived) == []


def test_a_short_year_has_one_of_everything(lived: Evidence) -> None:
    empty = {name for name, rows in lived.tables.items() if not rows}

    assert empty <= {"tasks", "dead_letters", "false_alarms"}
    assert len(sales(lived)) >= 4
    assert {row["cause"] for row in lived.tables["revocations"]} >= {"refund", "dispute", "proration"}
    assert {row["kind"] for row in lived.tables["documents"]} == {"tax_invoice", "credit_note"}
    assert lived.debits
    assert lived.adjustments


Tampering = Callable[[Evidence], None]


def first(rows: list[Row], **like: Any) -> Row:
    return next(row for row in rows if all(row[name] == value for name, value in like.items()))


def drop(table: str, **like: Any) -> Tampering:
    def tamper(evidence: Evidence) -> None:
        evidence.tables[table].remove(first(evidence.tables[table], **like))

    return tamper


def double(table: str, **like: Any) -> Tampering:
    def tamper(evidence: Evidence) -> None:
        evidence.tables[table].append(dict(first(evidence.tables[table], **like)))

    return tamper


def alter(table: str, column: str, change: Callable[[Any], Any], **like: Any) -> Tampering:
    def tamper(evidence: Evidence) -> None:
        row = first(evidence.tables[table], **like)
        row[column] = change(row[column])

    return tamper


def at_provider(kind: str, column: str, change: Callable[[Any], Any], **like: Any) -> Tampering:
    def tamper(evidence: Evidence) -> None:
        row = first(list(evidence.provider[kind].values()), **like)
        row[column] = change(row[column])

    return tamper


def gone_at_provider(kind: str, **like: Any) -> Tampering:
    def tamper(evidence: Evidence) -> None:
        del evidence.provider[kind][first(list(evidence.provider[kind].values()), **like)["id"]]

    return tamper


def with_no_free_month(evidence: Evidence) -> None:
    """The last of the sleeper's, on both sides."""
    reference = max(row["reference_id"] for row in evidence.tables["grants"] if row["tenant_id"] == SLEEPER)
    for table in ("grants", "ledger_transactions"):
        evidence.tables[table].remove(first(evidence.tables[table], reference_id=reference))


def with_a_larger_free_month(evidence: Evidence) -> None:
    """Both sides agree, and it is too much."""
    reference = first(evidence.tables["grants"], kind="free_month")["reference_id"]
    first(evidence.tables["grants"], reference_id=reference)["credits"] += 1
    first(evidence.tables["ledger_transactions"], reference_id=reference)["amount"] += 1


def with_no_sale(evidence: Evidence) -> None:
    """The provider never captured what we hold."""
    payment_id = evidence.tables["payments"][0]["id"]
    evidence.provider["payments"][payment_id]["status"] = "failed"


def with_a_second_live_subscription(evidence: Evidence) -> None:
    live = first(list(evidence.provider["subscriptions"].values()), status="active")
    again = {**live, "id": "sub_Again123456789", "notes": {**live["notes"], "intent_id": "int_again"}}
    evidence.provider["subscriptions"][again["id"]] = again


def with_a_smaller_proration(evidence: Evidence) -> None:
    """Both sides agree, and the customer got too little."""
    row = first(evidence.tables["refunds"], kind="proration")
    row["amount_paise"] -= 1
    evidence.provider["refunds"][row["provider_refund_id"]]["amount"] -= 1


def with_no_proration(evidence: Evidence) -> None:
    row = first(evidence.tables["refunds"], kind="proration")
    evidence.tables["refunds"].remove(row)
    del evidence.provider["refunds"][row["provider_refund_id"]]


def with_a_subscription_of_our_own(evidence: Evidence) -> None:
    evidence.tables["known"].append({**evidence.tables["known"][0], "id": "sub_Invented123456"})


def with_an_altered_limit(evidence: Evidence) -> None:
    row = first(evidence.tables["ledger_services"], service_code="platform", enabled=True)
    row["limits"]["seats"]["limit"] += 1


def with_an_account_behind(evidence: Evidence) -> None:
    evidence.tables["ledger_accounts"][0]["entitlements_version"] -= 1


def with_a_grant_of_nobody(evidence: Evidence) -> None:
    grant = first(evidence.tables["ledger_transactions"], kind="grant")
    evidence.tables["ledger_transactions"].append({**grant, "reference_id": "razorpay:pay_Invented123456"})


def with_an_unproven_account(evidence: Evidence) -> None:
    evidence.verifications[0]["verified"] = False


def with_a_finding(evidence: Evidence) -> None:
    found = {"check_type": "balance_mismatch", "room": "ledger", "tenant_id": "tenant-000", "observed": {}}
    evidence.tables["findings"].append(found)


def with_a_dispute_that_was_never_lost(evidence: Evidence) -> None:
    row = first(evidence.tables["findings"], check_type="dispute_lost")
    row["observed"] = {**row["observed"], "disputeId": "disp_Invented123456"}


def with_an_excess_that_is_none(evidence: Evidence) -> None:
    found = {"check_type": "over_limit", "room": "subscriptions", "tenant_id": SLEEPER}
    evidence.tables["findings"].append({**found, "observed": {"limits": {"blog.posts": "12 of 10"}}})


def with_a_false_alarm(evidence: Evidence) -> None:
    evidence.tables["false_alarms"].append(
        {"tenant_id": "tenant-000", "observed": {"paymentIds": ["pay_1"]}, "created_at": evidence.now}
    )


def with_a_task(evidence: Evidence) -> None:
    owed = {"task_type": "grant_credits", "idempotency_key": "grant:x", "tenant_id": "tenant-000"}
    evidence.tables["tasks"].append(
        {**owed, "abandoned_at": None, "attempts": 3, "last_error": "UNAVAILABLE", "payload": {}}
    )


def with_a_dead_letter(evidence: Evidence) -> None:
    letter = {"event_type": "order.paid", "tenant_id": None, "reason": "refused", "last_error": ""}
    evidence.tables["dead_letters"].append(letter)


def with_a_difference(evidence: Evidence) -> None:
    evidence.told.sync["subscriptions.SyncWithProvider"]["differences"] = "1"


def with_no_comparison(evidence: Evidence) -> None:
    evidence.told.sync.clear()


def with_an_audit_that_failed(evidence: Evidence) -> None:
    evidence.told.audit["ledger.AuditIntegrity"]["outcome"] = "failed"


def more(value: int) -> int:
    return value + 1


def somebody_else(_: str) -> str:
    return "tenant-999"


TAMPERING: dict[str, tuple[str, Tampering]] = {
    "a payment that we missed": ("money", drop("payments")),
    "a payment of another tenant": ("money", alter("payments", "tenant_id", somebody_else)),
    "a payment of another amount": ("money", alter("payments", "amount_paise", more)),
    "a payment that never was": ("money", with_no_sale),
    "a grant that we never decided": ("money", drop("grants", kind="plan.cycle")),
    "a grant decided twice": ("money", double("grants", kind="credit_pack")),
    "a grant too large": ("money", alter("grants", "credits", more, kind="plan.cycle")),
    "a grant that expires when it must not": (
        "money",
        alter("grants", "bucket", lambda _: "subscription", kind="credit_pack"),
    ),
    "a price that is not the catalogue's": (
        "money",
        at_provider("payments", "amount", lambda paise: paise - 100, status="captured"),
    ),
    "a grant that the ledger lost": ("grants", drop("ledger_transactions", kind="grant")),
    "a grant that the ledger booked twice": ("grants", double("ledger_transactions", kind="grant")),
    "a grant that the ledger booked otherwise": (
        "grants",
        alter("ledger_transactions", "amount", more, kind="grant"),
    ),
    "a free month that never came": ("grants", with_no_free_month),
    "a free month too large": ("grants", with_a_larger_free_month),
    "a grant that nobody decided": ("grants", with_a_grant_of_nobody),
    "a refund that we missed": ("given back", drop("refunds", status="processed", kind="refund")),
    "a refund that the provider does not have": ("given back", gone_at_provider("refunds")),
    "a refund in another state": ("given back", alter("refunds", "status", lambda _: "pending")),
    "a refund of another amount": ("given back", alter("refunds", "amount_paise", more)),
    "a dispute in another state": ("given back", alter("disputes", "status", lambda _: "open")),
    "a refund that took nothing": ("given back", drop("revocations", cause="refund")),
    "a dispute that took nothing": ("given back", drop("revocations", cause="dispute")),
    "a refund that took too much": ("given back", alter("revocations", "credits", more, cause="refund")),
    "an upgrade that gave back too little": ("changes", with_a_smaller_proration),
    "an upgrade that gave nothing back": ("changes", with_no_proration),
    "an upgrade that took other credits": (
        "changes",
        alter("revocations", "credits", more, cause="proration"),
    ),
    "a revocation that the ledger lost": ("revocations", drop("ledger_revocations")),
    "a revocation that nobody decided": ("revocations", drop("revocations", cause="proration")),
    "a revocation of other credits": ("revocations", alter("ledger_revocations", "asked", more)),
    "a debit that was lost": ("acknowledged", drop("ledger_transactions", idempotency_key="spend")),
    "a debit booked twice": ("acknowledged", double("ledger_transactions", idempotency_key="spend")),
    "an adjustment of other credits": (
        "acknowledged",
        alter("ledger_transactions", "amount", more, idempotency_key="gift"),
    ),
    "an invoice that is missing": ("documents", drop("documents", kind="tax_invoice")),
    "a credit note that is missing": ("documents", drop("documents", kind="credit_note")),
    "an invoice over another amount": (
        "documents",
        alter("documents", "total_paise", more, kind="tax_invoice"),
    ),
    "a number that was left out": ("documents", alter("documents", "serial", lambda _: 9_999)),
    "a limit that is not the plan's": ("entitlements", with_an_altered_limit),
    "a service that is closed": (
        "entitlements",
        alter("ledger_services", "enabled", lambda _: False, service_code="media"),
    ),
    "a plan that is another": ("entitlements", alter("ledger_accounts", "plan_code", lambda _: "business")),
    "entitlements of yesterday": ("entitlements", with_an_account_behind),
    "a tenant without an account": ("entitlements", drop("ledger_accounts")),
    "an add-on that does not count": ("entitlements", drop("addons", addon_id="seat", status="active")),
    "an override that does not hold": ("entitlements", alter("overrides", "value", more, value=77)),
    "two live subscriptions": ("one live", with_a_second_live_subscription),
    "a subscription in another state": (
        "provider",
        at_provider("subscriptions", "status", lambda _: "halted", status="active"),
    ),
    "a cycle that we missed": ("provider", at_provider("subscriptions", "paid_count", more, status="active")),
    "a subscription that the provider does not have": ("provider", with_a_subscription_of_our_own),
    "a subscription that we forgot": ("provider", drop("known")),
    "a plan without a subscription": (
        "provider",
        alter("standings", "razorpay_subscription_id", lambda _: None, plan_id="pro"),
    ),
    "a plan that its subscription is not of": (
        "provider",
        alter("standings", "plan_id", lambda _: "business", plan_id="pro"),
    ),
    "a tenant that differs": (
        "diagnoses",
        lambda evidence: evidence.diagnoses["tenant-000"].append("status"),
    ),
    "a tenant of whom nobody asked": ("diagnoses", lambda evidence: evidence.diagnoses.clear()),
    "an account that is not proven": ("proofs", with_an_unproven_account),
    "a finding": ("findings", with_a_finding),
    "a finding of nothing": ("findings", with_a_dispute_that_was_never_lost),
    "an excess that is none": ("findings", with_an_excess_that_is_none),
    "money missed that was there": ("findings", with_a_false_alarm),
    "a task that is owed": ("tasks", with_a_task),
    "a dead letter": ("tasks", with_a_dead_letter),
    "a difference from the provider": ("jobs", with_a_difference),
    "no comparison at all": ("jobs", with_no_comparison),
    "an audit that failed": ("jobs", with_an_audit_that_failed),
    "a health that nobody looked at": ("jobs", lambda evidence: evidence.told.health.clear()),
    "a critical finding that health does not count": (
        "jobs",
        lambda evidence: evidence.tables["findings"].append(
            {**evidence.tables["findings"][0], "room": "subscriptions", "severity": "critical"}
        ),
    ),
    "a job that failed": ("jobs", lambda evidence: evidence.failed_jobs.append("cleanup failed")),
    "a call that is not served": ("jobs", lambda evidence: evidence.unserved.append("PauseSubscription")),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_the_checks_name(lived: Evidence, what: str) -> None:
    check, tamper = TAMPERING[what]
    tampered = copy.deepcopy(lived)
    tamper(tampered)

    named = wrong_with(tampered)

    assert any(each.startswith(f"{check}: ") for each in named), named
