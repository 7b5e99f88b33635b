"""Findings open once, are closed by name, and come back as new ones; the auditor closes what it may."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from billing.maintenance.v1 import alert_pb2

from services.ledger.actions import audit as actions_audit
from services.ledger.actions import settling
from services.ledger.actions.settling import Settlement
from shared import errors
from tests.conftest import Database
from tests.ledger.builders import a_debit, a_grant, a_hold
from tests.ledger.conftest import RunningLedger, Travel
from tests.ledger.tampering import Hand, a_history, run


@pytest.fixture(autouse=True)
def nothing_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mended or comes back is seen in every run, not when the tenant's lines have their turn."""
    monkeypatch.setattr(actions_audit, "AGAIN_LINES", 0)


def history_of(hand: Hand, tenant: str, check_type: str) -> list[dict[str, Any]]:
    """Every finding of the check, oldest first."""
    return hand.look(
        "SELECT * FROM billing_integrity_reports WHERE tenant_id = %s AND check_type = %s ORDER BY created_at, id",
        *(tenant, check_type),
    )


async def resolve(ledger: RunningLedger, finding: dict[str, Any]) -> None:
    await ledger.admin.ResolveFinding(
        admin_pb.ResolveFindingRequest(
            finding_id=finding["id"], idempotency_key="k", actor="asha", description="looked at it"
        )
    )


BROKEN_AND_MENDED = {
    "balance_mismatch": (
        "UPDATE tenant_credits SET balance = 99 WHERE tenant_id = %s",
        "UPDATE tenant_credits SET balance = 85 WHERE tenant_id = %s",
    ),
    "mirror_mismatch": (
        "UPDATE tenant_credits SET held = 3 WHERE tenant_id = %s",
        "UPDATE tenant_credits SET held = 0 WHERE tenant_id = %s",
    ),
    "ledger_sum_mismatch": (
        "UPDATE credit_transactions SET amount = amount - 1 WHERE tenant_id = %s AND first_seq = 5",
        "UPDATE credit_transactions SET amount = amount + 1 WHERE tenant_id = %s AND first_seq = 5",
    ),
}


@pytest.mark.parametrize("check_type", BROKEN_AND_MENDED)
async def test_what_holds_again_is_closed_in_the_auditors_name_and_what_comes_back_is_new(
    ledger: RunningLedger, hand: Hand, tenant: str, check_type: str
) -> None:
    breaking, mending = BROKEN_AND_MENDED[check_type]
    await a_history(ledger, tenant)
    hand.run(breaking, tenant)
    await run(ledger)
    await run(ledger)
    assert [row["resolved_by"] for row in history_of(hand, tenant, check_type)] == [None], "once, and open"

    hand.run(mending, tenant)
    rehearsed = await actions_audit.audit_integrity(ledger.ledger, dry_run=True, time_left_seconds=30)
    assert check_type in hand.findings(tenant)
    closing = await run(ledger)
    hand.run(breaking, tenant)
    await run(ledger)

    first, second = history_of(hand, tenant, check_type)
    assert (first["resolved_by"], second["resolved_by"]) == ("ledger.audit", None)
    assert first["resolved_at"] is not None
    assert (rehearsed.closed, closing.closed >= 1) == (0, True)
    await resolve(ledger, second)
    await run(ledger)
    assert [row["resolved_by"] for row in history_of(hand, tenant, check_type)] == [
        "ledger.audit",
        "asha",
        None,
    ], "still wrong: it comes back whoever closed it"


async def test_what_froze_an_account_waits_for_a_person(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE credit_buckets SET remaining = 99 WHERE tenant_id = %s AND lot = 1", tenant)
    await run(ledger)
    hand.run("UPDATE credit_buckets SET remaining = 85 WHERE tenant_id = %s AND lot = 1", tenant)

    await run(ledger)

    assert set(hand.findings(tenant)) == {"lot_mismatch"}
    assert hand.state(tenant) == "frozen"


async def test_a_mirror_of_lots_that_disagree_with_their_lines_is_not_taken_for_mended(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE tenant_credits SET held = 3 WHERE tenant_id = %s", tenant)
    await run(ledger)
    hand.run("UPDATE credit_buckets SET remaining = 99 WHERE tenant_id = %s AND lot = 1", tenant)

    await run(ledger)

    assert set(hand.findings(tenant)) == {"mirror_mismatch", "lot_mismatch"}


async def settle(ledger: RunningLedger) -> maintenance_pb.SettleExpiredResponse:
    return await ledger.maintenance.SettleExpired(
        maintenance_pb.SettleExpiredRequest(idempotency_key="job:settle_expired:now"), timeout=40
    )


def alert_of(answer: maintenance_pb.SettleExpiredResponse) -> alert_pb2.Alert | None:
    assert [alert.key for alert in answer.alerts] in ([], ["ledger.settle.overdue"])
    return answer.alerts[0] if answer.alerts else None


async def test_overdue_holds_are_found_told_and_closed_once_they_were_settled(
    ledger: RunningLedger, hand: Hand, tenant: str, travel: Travel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 20))
    await settle(ledger)
    for _ in range(2):
        await ledger.service.PlaceHold(a_hold(tenant, 5, seconds=60))
    settling_now = settling.settle_expired

    async def fails(*_: object, **__: object) -> Settlement:
        raise RuntimeError("no settling today")

    monkeypatch.setattr(settling, "settle_expired", fails)
    travel.forward(hours=0.9)
    await run(ledger)
    assert hand.findings(tenant) == {}, "late by less than an hour"
    travel.forward(hours=0.2)
    await run(ledger)
    finding = hand.findings(tenant)["overdue_expiry"]
    assert (finding["severity"], finding["observed"]["holds"]) == ("warning", 2)
    await resolve(ledger, finding)
    await run(ledger)
    assert hand.findings(tenant)["overdue_expiry"]["id"] != finding["id"]

    monkeypatch.setattr(settling, "settle_expired", settling_now)
    await run(ledger)

    assert [row["resolved_by"] for row in history_of(hand, tenant, "overdue_expiry")] == [
        "asha",
        "ledger.audit",
    ]
    assert hand.state(tenant) == "active"


async def test_a_frozen_accounts_overdue_hold_stays_open_until_it_is_settled(
    ledger: RunningLedger, hand: Hand, tenant: str, travel: Travel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 20))
    await ledger.service.PlaceHold(a_hold(tenant, 5, seconds=60))
    travel.forward(hours=2)
    with monkeypatch.context() as patch:
        patch.setattr(settling, "OVERDUE_AFTER", timedelta())
        patch.setattr(settling, "_list_due", _nobody)
        await run(ledger)
    hand.run("UPDATE tenant_credits SET state = 'frozen' WHERE tenant_id = %s", tenant)

    await run(ledger)

    assert set(hand.findings(tenant)) == {"overdue_expiry"}


async def _nobody(*_: object) -> list[str]:
    return []


async def test_the_settling_job_tells_of_whom_it_could_not_settle(
    ledger: RunningLedger,
    hand: Hand,
    tenant: str,
    travel: Travel,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settling, "SETTLE_PAGE", 1)  # a page is full of what cannot be settled
    for each in (tenant, f"{tenant}-other"):
        await ledger.funding.GrantCredits(a_grant(each, 20))
        await ledger.service.PlaceHold(a_hold(each, 5, seconds=60))
    hand.run(
        "INSERT INTO grace_periods (tenant_id, limit_key, expires_at, created_at)"
        " VALUES (%s, 'blog.posts', now(), now())",
        tenant,
    )
    travel.forward(hours=0.5)
    with psycopg.connect(database.admin_url) as somebody:
        somebody.execute("SELECT FROM ledger.tenant_credits WHERE tenant_id = %s FOR UPDATE", [tenant])
        with pytest.raises(errors.Unavailable):
            await settle(ledger)
        [other] = hand.look("SELECT held FROM tenant_credits WHERE tenant_id = %s", f"{tenant}-other")
        travel.forward(hours=1)
        late = alert_of(await settle(ledger))
    free = await settle(ledger)

    assert other["held"] == 0, "the others are settled meanwhile"
    assert late is not None
    assert late.severity == alert_pb2.ALERT_SEVERITY_WARNING
    assert (late.evidence["tenants"], late.evidence["holds"]) == (tenant, "1")
    assert late.evidence["grace_periods"] == "0", "no lock of the account keeps these"
    assert (free.holds, alert_of(free)) == (1, None)


async def test_a_finding_opened_by_two_runs_that_overlap_is_closed_by_one(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE tenant_credits SET balance = 99 WHERE tenant_id = %s", tenant)
    await run(ledger)
    await ledger.service.Debit(a_debit(tenant, 1))  # writes the mirror anew

    closed = await asyncio.gather(run(ledger), run(ledger))

    [finding] = history_of(hand, tenant, "balance_mismatch")
    assert finding["resolved_by"] == "ledger.audit"
    assert sum(each.closed for each in closed) == 1
