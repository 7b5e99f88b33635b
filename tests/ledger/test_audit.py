"""The auditor: every way in which a ledger can be tampered with is found, by name, and nothing else is."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.maintenance.v1 import alert_pb2

from services.ledger.actions import audit as actions_audit
from shared import errors
from tests.ledger.builders import a_capture, a_debit, a_grant, a_hold, in_days
from tests.ledger.conftest import RunningLedger
from tests.ledger.tampering import (
    FREEZES_NOTHING,
    STOPS_NOTHING,
    TAMPERED,
    Hand,
    a_history,
    everything,
    forge,
    run,
    stage,
    verify_one,
)


async def audit(ledger: RunningLedger, *, dry_run: bool = False) -> maintenance_pb.AuditIntegrityResponse:
    return await ledger.maintenance.AuditIntegrity(
        maintenance_pb.AuditIntegrityRequest(idempotency_key="job:audit_integrity:now", dry_run=dry_run)
    )


async def test_what_the_ledger_did_itself_is_sound(ledger: RunningLedger, hand: Hand, tenant: str) -> None:
    await everything(ledger, tenant)

    await run(ledger)
    again = await run(ledger)

    assert hand.findings(tenant) == {}
    assert again.lines_again > 20


@pytest.fixture(scope="module")
async def tampered(ledger: RunningLedger, hand: Hand) -> dict[str, dict[str, str]]:
    """What was done by hand before the audit looked for the first time, and after it had."""
    after = await stage(ledger, hand, "after", audited=True)
    before = await stage(ledger, hand, "before", audited=False)
    await run(ledger)
    return {"before": before, "after": after}


@pytest.mark.parametrize("what", TAMPERED)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_audit_names_what_was_changed_before_and_after_it_had_looked(
    hand: Hand, tampered: dict[str, dict[str, str]], what: str, when: str
) -> None:
    tenant = tampered[when][what]

    found = hand.findings(tenant)

    assert TAMPERED[what][1] in found
    assert {row["severity"] for row in found.values()} == {"critical"}
    assert hand.state(tenant) == ("active" if found.keys() <= STOPS_NOTHING else "frozen")
    assert (hand.state(tenant) == "active") == (what in FREEZES_NOTHING)


async def test_what_was_found_about_a_mirror_has_exactly_the_runbooks_words(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE tenant_credits SET balance = 99 WHERE tenant_id = %s", tenant)
    hand.run(TAMPERED["transaction that no operation wrote"][0], tenant)

    await run(ledger)
    found = {name: row["observed"] for name, row in hand.findings(tenant).items()}

    assert found["balance_mismatch"] == {"balance": 99, "expected_balance": 85}
    assert found["ledger_sum_mismatch"] == {"balance": 85, "ledger_sum": 92}


@pytest.mark.parametrize("all_of_them", [False, True], ids=["one hash", "every hash and the head"])
async def test_a_forged_hash_is_found_though_it_was_recomputed(
    ledger: RunningLedger, hand: Hand, tenant: str, all_of_them: bool
) -> None:
    await a_history(ledger, tenant)
    await run(ledger)
    await forge(ledger, hand, tenant, all_of_them=all_of_them)

    await run(ledger)

    assert set(hand.findings(tenant)) == {"chain_mismatch"}


async def test_a_frozen_tenant_says_why_and_reads_go_on(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE credit_buckets SET remaining = 99 WHERE tenant_id = %s AND lot = 1", tenant)
    await run(ledger)

    with pytest.raises(errors.FailedPrecondition) as refusal:
        await ledger.service.Debit(a_debit(tenant, 1))
    await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))

    finding = hand.findings(tenant)["lot_mismatch"]
    assert refusal.value.reason == "ACCOUNT_FROZEN"
    assert refusal.value.metadata["reason_given"] == f"lot_mismatch: finding {finding['id']}"
    [line] = hand.look("SELECT * FROM billing_audit_log WHERE tenant_id = %s", tenant)
    assert (line["action"], line["actor_type"], line["actor_id"]) == (
        "freeze_account",
        "system",
        "ledger.audit",
    )


async def test_a_person_who_unfroze_it_is_not_overruled_by_the_same_finding(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE credit_buckets SET remaining = 99 WHERE tenant_id = %s AND lot = 1", tenant)
    await run(ledger)
    first = hand.findings(tenant)["lot_mismatch"]
    hand.run("UPDATE tenant_credits SET state = 'active', frozen_reason = '' WHERE tenant_id = %s", tenant)

    await run(ledger)
    assert hand.state(tenant) == "active"
    assert hand.findings(tenant)["lot_mismatch"]["id"] == first["id"]
    hand.run(
        "UPDATE billing_integrity_reports SET resolved_at = now(), resolved_by = 'asha' WHERE tenant_id = %s",
        tenant,
    )
    await run(ledger)

    assert hand.findings(tenant)["lot_mismatch"]["id"] != first["id"], "it comes back as a new one"
    assert hand.state(tenant) == "frozen"


async def test_a_dry_run_reports_and_changes_nothing(ledger: RunningLedger, hand: Hand, tenant: str) -> None:
    await run(ledger)
    await a_history(ledger, tenant)
    hand.run("UPDATE credit_buckets SET remaining = 99 WHERE tenant_id = %s AND lot = 1", tenant)

    answer = await audit(ledger, dry_run=True)

    assert answer.opened >= 1
    [alert] = [each for each in answer.alerts if each.key == f"ledger.integrity.lot_mismatch:{tenant}"]
    assert (alert.tenant_id, alert.evidence["finding"]) == (tenant, "")
    assert hand.findings(tenant) == {}
    assert hand.state(tenant) == "active"
    assert hand.look("SELECT * FROM audit_state WHERE tenant_id = %s", tenant) == []


async def test_the_next_run_reads_only_what_is_new(ledger: RunningLedger, tenant: str) -> None:
    await a_history(ledger, tenant)
    await run(ledger)

    idle = await run(ledger)
    await ledger.service.Debit(a_debit(tenant, 3))
    busy = await run(ledger)

    assert (idle.lines, busy.lines) == (0, 1)
    assert idle.tenants == busy.tenants > 0
    assert idle.finished
    assert busy.finished


async def test_a_long_history_is_read_in_pages_that_end_with_a_transaction(
    ledger: RunningLedger, hand: Hand, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(ledger)
    for number in range(5):
        await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(10 + number)))
    for _ in range(4):
        await ledger.service.Debit(a_debit(tenant, 11))  # two lines each, from the first on
    monkeypatch.setattr(actions_audit, "LINES_PAGE", 6)

    first = await run(ledger)
    second = await run(ledger)

    assert (first.lines, second.lines) == (13, 0)
    assert hand.findings(tenant) == {}


async def test_a_run_that_has_no_time_is_taken_up_by_the_next(
    ledger: RunningLedger, hand: Hand, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions_audit, "TENANTS_PAGE", 3)
    for number in range(5):
        await ledger.funding.GrantCredits(a_grant(f"{tenant}_{number}", 10))
    hand.run("UPDATE tenant_credits SET balance = 11 WHERE tenant_id = %s", f"{tenant}_4")
    runs = 0

    while "balance_mismatch" not in hand.findings(f"{tenant}_4"):
        runs += 1
        assert runs < 5000, "no run came to the last tenant"
        run_out = await actions_audit.audit_integrity(ledger.ledger, dry_run=False, time_left_seconds=0.02)

    assert runs > 1
    assert not run_out.finished
    assert (await run(ledger)).finished


async def test_an_account_that_is_gone_is_missed(ledger: RunningLedger, hand: Hand, tenant: str) -> None:
    await a_history(ledger, tenant)
    await run(ledger)
    hand.run("DELETE FROM tenant_credits WHERE tenant_id = %s", tenant)

    await run(ledger)

    assert hand.findings(tenant)["account_missing"]["observed"] == {"checked_seq": 5}


async def test_writers_and_auditors_do_not_disturb_each_other(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    tenants = [f"{tenant}_{number}" for number in range(3)]
    for each in tenants:
        await ledger.funding.GrantCredits(a_grant(each, 10_000))
    done = asyncio.Event()

    async def write(to: str) -> None:
        while not done.is_set():
            hold = (await ledger.service.PlaceHold(a_hold(to, 3, seconds=60))).hold
            await ledger.service.CaptureHold(a_capture(to, hold.id, 2))

    writers = [asyncio.create_task(write(each)) for each in tenants * 3]
    audited = [await run(ledger) for _ in range(3)]
    done.set()
    await asyncio.gather(*writers)
    await run(ledger)

    assert sum(each.lines for each in audited) > 20
    assert [hand.findings(each) for each in tenants] == [{}, {}, {}]
    assert all([(await verify_one(ledger, each)).verified for each in tenants])


async def test_two_runs_at_once_open_one_finding(ledger: RunningLedger, hand: Hand, tenant: str) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE credit_buckets SET remaining = 99 WHERE tenant_id = %s AND lot = 1", tenant)

    one, other = await asyncio.gather(run(ledger), run(ledger))

    assert one.opened + other.opened == len(hand.findings(tenant))
    [line] = hand.look("SELECT * FROM billing_audit_log WHERE tenant_id = %s", tenant)
    assert line["action"] == "freeze_account"


async def test_an_expiry_that_nobody_settles_is_a_warning(
    ledger: RunningLedger, hand: Hand, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(0.2 / 86_400)))
    await asyncio.sleep(0.3)
    monkeypatch.setattr(actions_audit, "OVERDUE_AFTER", timedelta())

    async def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no settling today")

    monkeypatch.setattr("services.ledger.actions.settling.settle_expired", fails)
    await run(ledger)

    finding = hand.findings(tenant)["overdue_expiry"]
    assert finding["severity"] == "warning"
    assert (finding["observed"]["lots"], finding["observed"]["holds"]) == (1, 0)
    assert hand.state(tenant) == "active"


async def test_due_lots_are_settled_before_anything_is_compared(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(0.2 / 86_400)))
    await asyncio.sleep(0.3)
    hand.run("UPDATE tenant_credits SET balance = 12 WHERE tenant_id = %s", tenant)

    await run(ledger)

    # The expiry wrote the mirrors anew: what an operator would have mended is gone.
    assert hand.findings(tenant) == {}
    [account] = hand.look("SELECT balance, seq FROM tenant_credits WHERE tenant_id = %s", tenant)
    assert (account["balance"], account["seq"]) == (0, 2)


async def test_a_forged_history_is_found_by_the_next_line_too(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    await run(ledger)
    await forge(ledger, hand, tenant, all_of_them=True)
    await ledger.service.Debit(a_debit(tenant, 1))

    await run(ledger)

    assert set(hand.findings(tenant)) == {"chain_mismatch"}


async def test_each_critical_finding_is_an_alert_until_it_is_resolved(
    ledger: RunningLedger, hand: Hand, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(answer: maintenance_pb.AuditIntegrityResponse) -> dict[str, str]:
        """Of our tenants; other tests leave findings too."""
        alerts = {alert.key: alert.tenant_id for alert in answer.alerts}
        return {key: of for key, of in alerts.items() if of in tenants}

    monkeypatch.setattr(actions_audit, "CRITICAL_SHOWN", 100_000)
    tenants = [f"{tenant}_{number}" for number in range(3)]
    for each in tenants:
        await ledger.funding.GrantCredits(a_grant(each, 10))
    edit = "UPDATE tenant_credits SET balance = %s WHERE tenant_id = ANY(%s)"
    hand.run(edit, 11, tenants[:1])
    one = told(await audit(ledger))
    hand.run(edit, 11, tenants[1:])

    answer = await audit(ledger)

    assert list(one.values()) == tenants[:1]
    assert one.items() < told(answer).items(), "what was told keeps its key, and others have theirs"
    assert set(told(answer).values()) == set(tenants)
    critical = [each for each in answer.alerts if each.severity == alert_pb2.ALERT_SEVERITY_CRITICAL]
    monkeypatch.setattr(actions_audit, "CRITICAL_SHOWN", 2)
    few = {alert.key: alert for alert in (await audit(ledger)).alerts}
    assert few["ledger.integrity.more"].evidence["more"] == str(len(critical) - 2)
    assert {critical[0].key, critical[1].key} < few.keys(), "the oldest stay named"

    monkeypatch.setattr(actions_audit, "CRITICAL_SHOWN", 100_000)
    hand.run(edit, 10, tenants)
    for each in tenants:
        await ledger.admin.ResolveFinding(
            admin_pb.ResolveFindingRequest(
                finding_id=hand.findings(each)["balance_mismatch"]["id"],
                idempotency_key="k",
                actor="asha",
                description="mended",
            )
        )
    assert told(await audit(ledger)) == {}
