"""Everything that the checks look at, gathered once: the provider's word, our tables, the ledger's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import yaml
from billing.ledger.v1 import ledger_admin_pb2 as ledger_admin_pb
from billing.subscriptions.v1 import subscriptions_admin_pb2 as admin_pb

from tests.suite.running import HOUSE
from tests.year.checks.daily import everything
from tests.year.days import Told
from tests.year.place import Place

Row = dict[str, Any]
CATALOGUE = HOUSE / "services" / "subscriptions" / "catalog.yaml"
OF_PROVIDER = ("payments", "orders", "invoices", "subscriptions", "refunds", "disputes", "plans")
TABLES = {
    "payments": "subscriptions.payments",
    "grants": "subscriptions.credit_grants",
    "revocations": "subscriptions.grant_revocations",
    "refunds": "subscriptions.billing_refunds",
    "disputes": "subscriptions.billing_disputes",
    "standings": "subscriptions.subscriptions",
    "known": "subscriptions.provider_subscriptions",
    "purchases": "subscriptions.credit_pack_purchases",
    "intents": "subscriptions.checkout_intents",
    "addons": "subscriptions.tenant_addons",
    "overrides": "subscriptions.tenant_overrides",
    "documents": "subscriptions.invoices",
    "tasks": "subscriptions.billing_reconciliation_queue WHERE completed_at IS NULL",
    "notices": "subscriptions.billing_notifications",
    "dead_letters": "webhooks.webhook_dead_letter_queue",
    "findings": "ops.billing_integrity_reports WHERE resolved_at IS NULL",
    # Closed by now or not: every payment of a year is one of ours.
    "false_alarms": "ops.billing_integrity_reports WHERE check_type = 'payment_not_held'",
    "ledger_transactions": "ledger.credit_transactions WHERE kind IN ('grant', 'debit', 'adjustment', 'restore', 'revoke')",
    "ledger_revocations": "ledger.credit_revocations",
    "ledger_accounts": "ledger.tenant_credits",
    "ledger_usage": "ledger.tenant_usage",
    "ledger_services": "ledger.tenant_services",
}


@dataclass
class Evidence:
    """Plain rows, so that a test can tamper with them."""

    now: Any = None
    catalogue: Row = field(default_factory=dict)
    provider: dict[str, dict[str, Row]] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    verifications: list[Row] = field(default_factory=list)
    diagnoses: dict[str, list[str]] = field(default_factory=dict)
    debits: dict[tuple[str, str], int] = field(default_factory=dict)
    adjustments: dict[tuple[str, str], int] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    failed_jobs: list[str] = field(default_factory=list)
    unserved: list[str] = field(default_factory=list)


def told_by(evidence: Evidence) -> dict[str, Counter[str]]:
    """What came of the year, counted: so that a reader sees whether it was a wild one."""
    theirs = evidence.provider["subscriptions"].values()
    return {
        "subscriptions at the provider": Counter(each["status"] for each in theirs),
        "tenants": Counter(f"{row['plan_id']} {row['status']}" for row in evidence.tables["standings"]),
        "grants": Counter(row["kind"] for row in evidence.tables["grants"]),
        "taken back for": Counter(row["cause"] for row in evidence.tables["revocations"]),
        "refunds": Counter(f"{row['kind']} {row['status']}" for row in evidence.tables["refunds"]),
        "disputes": Counter(row["status"] for row in evidence.tables["disputes"]),
        "add-ons": Counter(row["status"] for row in evidence.tables["addons"]),
        "documents": Counter(row["kind"] for row in evidence.tables["documents"]),
        "notices": Counter(row["kind"] for row in evidence.tables["notices"]),
    }


async def gather(place: Place, told: Told) -> Evidence:
    """All of it, when nothing moves any more."""
    evidence = Evidence(now=place.now(), catalogue=yaml.safe_load(CATALOGUE.read_text()), told=told)
    for kind in OF_PROVIDER:
        evidence.provider[kind] = {each["id"]: each async for each in everything(place, kind)}
    for name, table in TABLES.items():
        evidence.tables[name] = await place.rows(f"SELECT * FROM {table}")
    evidence.verifications = await _verified(place)
    for row in evidence.tables["standings"]:
        evidence.diagnoses[row["tenant_id"]] = await _diagnosed(place, row["tenant_id"])
    evidence.debits, evidence.adjustments = place.tally.debits, place.tally.adjustments
    evidence.failed_jobs = place.failed_jobs
    evidence.unserved = sorted({*place.tally.unserved, *place.unserved_jobs})
    return evidence


async def _verified(place: Place) -> list[Row]:
    found: list[Row] = []
    request = ledger_admin_pb.VerifyLedgerRequest(page_size=100)
    while True:
        answer = await place.ledger_admin.VerifyLedger(request, timeout=60)
        found += [
            {
                "tenant_id": each.tenant_id,
                "verified": each.verified,
                "entries": each.entries,
                "findings": [finding.check_type for finding in each.findings],
                "not_verified": list(each.not_verified),
            }
            for each in answer.verifications
        ]
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def _diagnosed(place: Place, tenant_id: str) -> list[str]:
    answer = await place.admin.DiagnoseTenant(admin_pb.DiagnoseTenantRequest(tenant_id=tenant_id), timeout=60)
    said = [f"{each.field}: {each.ours} here, {each.theirs} there" for each in answer.differences]
    return [*said, *(["the provider did not answer"] if answer.provider_unavailable else [])]
