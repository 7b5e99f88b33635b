"""Runbook 2: the integrity audit failed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from billing.ledger.v1 import ledger_admin_pb2, ledger_admin_pb2_grpc, ledger_maintenance_pb2, ledger_pb2
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.database import transaction
from shared.errors import FailedPrecondition
from shared.ops import store as ops
from shared.rpc.client import open_channel
from tests.ledger.builders import a_debit, a_grant, in_days
from tests.ledger.conftest import SECRETS, RunningLedger
from tests.operators import staging
from tests.operators.conftest import Operator
from tests.subscriptions.conftest import Room

WriteAs = Callable[..., None]
MISMATCH = {"balance": 12, "expected_balance": 5}


async def find(engine: AsyncEngine, tenant: str | None, **changes: Any) -> str:
    """A finding of the ledger's, as its auditor would open it."""
    values: dict[str, Any] = {
        "room": "ledger",
        "check_type": "balance_mismatch",
        "tenant_id": tenant,
        "severity": "critical",
        "observed": MISMATCH,
    }
    async with transaction(engine) as db:
        return await ops.open_finding(db, **(values | changes))


async def audit(ledger: RunningLedger, tenant: str) -> ledger_maintenance_pb2.AuditIntegrityResponse:
    """One run of the job."""
    return await ledger.maintenance.AuditIntegrity(
        ledger_maintenance_pb2.AuditIntegrityRequest(idempotency_key=f"job:audit_integrity:{tenant}")
    )


async def test_2_1_shows_what_is_open_the_critical_first_and_then_the_newest(
    operator: Operator, engines: dict[str, AsyncEngine], tenant: str
) -> None:
    first = await find(engines["ledger"], tenant)
    mild = await find(
        engines["subscriptions"],
        tenant,
        room="subscriptions",
        check_type="orphan_pending_sub",
        severity="warning",
        observed={"razorpaySubscriptionId": "sub_1"},
    )
    second = await find(engines["ledger"], tenant, check_type="ledger_sum_mismatch")
    nobody = await find(engines["ledger"], None, check_type=f"silence_{tenant}")

    answer = operator.run("runbook_2_1")

    assert [row["id"] for row in answer.of(tenant)] == [second, first, mild]
    assert [row["severity"] for row in answer.of(tenant)] == ["critical", "critical", "warning"]
    severities = [row["severity"] for row in answer.rows]
    assert severities == sorted(severities), "critical sorts before warning, by letters too"
    assert answer.of(tenant)[1]["observed"] == MISMATCH
    assert nobody in {row["id"] for row in answer.rows}


async def test_2a_resolve_closes_one_finding_under_a_name_and_the_next_is_a_new_one(
    operator: Operator, engines: dict[str, AsyncEngine], tenant: str
) -> None:
    mine = await find(engines["ledger"], tenant)
    other = await find(engines["ledger"], tenant, check_type="ledger_sum_mismatch")

    resolved = operator.run("runbook_2a_resolve", REPORT_ID=mine, YOUR_USERNAME="asha")

    assert resolved.changed == 1
    assert [row["id"] for row in operator.run("runbook_2_1").of(tenant)] == [other]
    [row] = operator.look("SELECT * FROM billing_integrity_reports WHERE id = %s", mine)
    assert row["resolved_by"] == "asha"
    assert row["created_at"] <= row["resolved_at"] <= datetime.now(UTC)
    again = await find(engines["ledger"], tenant)
    assert again != mine
    assert again in {row["id"] for row in operator.run("runbook_2_1").of(tenant)}


async def test_2a_a_mirror_edited_by_hand_is_found_mended_and_not_found_again(
    ledger: RunningLedger, operator: Operator, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=in_days(7)))
    await ledger.funding.GrantCredits(a_grant(tenant, 5))
    operator.edit("UPDATE tenant_credits SET balance = 42 WHERE tenant_id = %s", tenant)

    await audit(ledger, tenant)

    [finding] = operator.run("runbook_2_1").of(tenant)
    assert (finding["check_type"], finding["severity"]) == ("balance_mismatch", "critical")
    assert finding["observed"] == {"balance": 42, "expected_balance": 35}
    assert (await ledger.service.Debit(a_debit(tenant, 1))).balance.available == 34, "it stops nothing"
    operator.run("runbook_2a_fix", TENANT_ID=tenant)
    operator.run("runbook_2a_resolve", REPORT_ID=finding["id"], YOUR_USERNAME="asha")
    await audit(ledger, f"{tenant}:again")
    assert operator.run("runbook_2_1").of(tenant) == []


async def test_2b_adds_up_what_the_ledger_did_by_what_became_of_it(
    ledger: RunningLedger, operator: Operator, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=in_days(7)))
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    debit = a_debit(tenant, 12)
    for _ in range(2):
        await ledger.service.Debit(debit)
    too_much = a_debit(tenant, 1000)
    for _ in range(2):
        with pytest.raises(FailedPrecondition):
            await ledger.service.Debit(too_much)

    rows = operator.run("runbook_2b", TENANT_ID=tenant).rows

    by_status = {row["tx_status"]: (row["count"], row["sum"]) for row in rows}
    assert by_status == {"posted": (3, 28), "rejected": (1, 0)}
    [account] = operator.look("SELECT balance FROM tenant_credits WHERE tenant_id = %s", tenant)
    assert account["balance"] == 28


async def test_2b_counts_held_captured_and_voided_rows_as_they_will_be_written(
    operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    for number, (kind, status, amount) in enumerate(
        [
            *(("grant", "posted", 100), ("hold", "held", 0), ("capture", "captured", -30)),
            *(("hold", "held", 0), ("void", "voided", 0), ("lapse", "expired", 0)),
            *(("expiry", "expired", -20), ("refund", "posted", 10), ("revoke", "posted", -5)),
        ]
    ):
        write_as(
            "ledger",
            "INSERT INTO credit_transactions (tenant_id, id, idempotency_key, fingerprint, fingerprint_version, kind,"
            " amount, tx_status, reason, description, reference_id, hold_id, refunded_transaction_id, metadata,"
            " answer, first_seq, last_seq, created_at)"
            " VALUES (%s, %s, %s, '', 1, %s, %s, %s, 'test', '', '', '', '', '{}', '{}', 0, 0, now())",
            *(tenant, f"txn_{tenant}_{number}", f"key-{number}", kind, amount, status),
        )

    rows = operator.run("runbook_2b", TENANT_ID=tenant).rows

    assert {row["tx_status"]: (row["count"], row["sum"]) for row in rows} == {
        "posted": (3, 105),
        "held": (2, 0),
        "captured": (1, -30),
        "voided": (1, 0),
        "expired": (2, -20),
    }


async def test_2b_holds_move_the_balance_only_when_they_are_captured(
    ledger: RunningLedger, operator: Operator, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100, expires_at=in_days(7)))
    held = []
    for number in range(2):
        placed = await ledger.service.PlaceHold(
            ledger_pb2.PlaceHoldRequest(
                tenant_id=tenant,
                idempotency_key=f"hold-{number}",
                credits=30,
                ttl=Duration(seconds=600),
                reason="ai.generate",
            )
        )
        held.append(placed.hold.id)
    await ledger.service.CaptureHold(
        ledger_pb2.CaptureHoldRequest(
            tenant_id=tenant, idempotency_key="capture", hold_id=held[0], credits=20
        )
    )
    await ledger.service.VoidHold(
        ledger_pb2.VoidHoldRequest(tenant_id=tenant, idempotency_key="void", hold_id=held[1])
    )

    rows = operator.run("runbook_2b", TENANT_ID=tenant).rows

    assert {row["tx_status"]: (row["count"], row["sum"]) for row in rows} == {
        "posted": (1, 100),
        "held": (2, 0),
        "captured": (1, -20),
        "voided": (1, 0),
    }
    mended = operator.run("runbook_2a_fix", TENANT_ID=tenant)
    assert (mended.row["balance"], mended.row["subscription_balance"]) == (80, 80)


async def test_2a_leaves_the_mirrors_of_a_tenant_with_held_credits_alone(
    ledger: RunningLedger, operator: Operator, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 40, expires_at=in_days(7)))
    await ledger.service.PlaceHold(
        ledger_pb2.PlaceHoldRequest(
            tenant_id=tenant,
            idempotency_key="hold",
            credits=40,
            ttl=Duration(seconds=600),
            reason="ai.generate",
        )
    )
    query = "SELECT * FROM tenant_credits WHERE tenant_id = %s"
    before = operator.look(query, tenant)

    mended = operator.run("runbook_2a_fix", TENANT_ID=tenant)

    assert (mended.row["balance"], mended.row["subscription_balance"]) == (40, 40)
    assert mended.row["subscription_expires_at"] is not None
    assert operator.look(query, tenant) == before


async def test_2b_a_row_that_no_operation_wrote_is_found(
    ledger: RunningLedger, operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 35))
    write_as(
        "ledger",
        "INSERT INTO credit_transactions SELECT tenant_id, 'txn_stray_' || tenant_id, 'stray', fingerprint,"
        " fingerprint_version, 'adjustment', 7, 'posted', reason, description, '', '', '', actor, metadata, answer,"
        " 0, 0, now() FROM credit_transactions WHERE tenant_id = %s",
        tenant,
    )

    await audit(ledger, tenant)

    found = {row["check_type"]: row for row in operator.run("runbook_2_1").of(tenant)}
    assert found["ledger_sum_mismatch"]["observed"] == {"balance": 35, "ledger_sum": 42}
    assert found["ledger_sum_mismatch"]["severity"] == "critical"
    assert "balance_mismatch" not in found


async def test_2b_a_correction_is_a_row_of_the_ledger(
    ledger: RunningLedger, operator: Operator, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 35))
    async with open_channel(ledger.address, SecretStr(SECRETS["operator_secret"])) as channel:
        admin = ledger_admin_pb2_grpc.LedgerAdminServiceStub(channel)
        await admin.AdjustCredits(
            ledger_admin_pb2.AdjustCreditsRequest(
                tenant_id=tenant,
                idempotency_key="ticket-1",
                credits=-5,
                reason="admin.adjustment",
                description="a debit that was lost",
                actor="asha",
            )
        )

    [row] = operator.run("runbook_7_2", TENANT_ID=tenant, SERVICE="admin", WINDOW="1 hour").rows
    assert (row["amount"], row["reason"]) == (-5, "admin.adjustment")
    [posted] = operator.run("runbook_2b", TENANT_ID=tenant).rows
    assert posted["sum"] == 30


async def test_2c_an_upgrade_given_up_is_cleared_and_the_customer_may_begin_another(
    room: Room, operator: Operator, engines: dict[str, AsyncEngine], tenant: str
) -> None:
    hanging = await staging.pending(room, tenant)
    neighbour = f"{tenant}_neighbour"
    theirs = await staging.pending(room, neighbour)
    finding = await find(
        engines["subscriptions"],
        tenant,
        room="subscriptions",
        check_type="orphan_pending_sub",
        severity="warning",
        observed={"razorpaySubscriptionId": hanging},
    )
    [before] = operator.look("SELECT updated_at FROM subscriptions WHERE tenant_id = %s", tenant)
    look = operator.run("runbook_2c_look", TENANT_ID=tenant).row
    assert look == {"pending_razorpay_subscription_id": hanging}
    assert (await room.current(tenant)).HasField("pending_change")
    for delivery in room.sandbox.act(f"subscriptions/{hanging}/cancel", by="merchant"):
        await room.deliver(delivery)

    assert operator.run("runbook_2c_fix", TENANT_ID=tenant).changed == 1
    assert operator.run("runbook_2a_resolve", REPORT_ID=finding, YOUR_USERNAME="asha").changed == 1

    assert operator.run("runbook_2c_look", TENANT_ID=tenant).row["pending_razorpay_subscription_id"] is None
    assert (
        operator.run("runbook_2c_look", TENANT_ID=neighbour).row["pending_razorpay_subscription_id"] == theirs
    )
    assert operator.run("runbook_2_1").of(tenant) == []
    [row] = operator.look("SELECT * FROM subscriptions WHERE tenant_id = %s", tenant)
    assert (row["pending_plan_id"], row["pending_billing_cycle"], row["plan_id"]) == (None, None, "free")
    assert row["updated_at"] > before["updated_at"]
    assert not (await room.current(tenant)).HasField("pending_change")
    begun = await room.checkout(tenant, plan="starter", key="another")
    look = operator.run("runbook_2c_look", TENANT_ID=tenant).row
    assert look == {"pending_razorpay_subscription_id": begun.checkout.subscription_id}


async def test_2c_cleared_while_the_provider_still_has_it_stays_cleared(
    room: Room, operator: Operator, tenant: str
) -> None:
    await staging.pending(room, tenant)

    operator.run("runbook_2c_fix", TENANT_ID=tenant)

    current = await room.current(tenant)
    assert (current.plan_code, current.HasField("pending_change")) == ("free", False)
    await room.reconcile()
    assert not (await room.current(tenant)).HasField("pending_change")


async def test_2c_an_upgrade_pending_for_three_days_is_found(
    room: Room, operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    hanging, patient = await staging.pending(room, tenant), f"{tenant}_patient"
    await staging.pending(room, patient)
    for each, hours in ((tenant, 73), (patient, 71)):
        write_as(
            "subscriptions",
            "UPDATE subscriptions SET pending_since = now() - make_interval(hours => %s) WHERE tenant_id = %s",
            *(hours, each),
        )

    await staging.audit_subscriptions(room, tenant)

    [finding] = operator.run("runbook_2_1").of(tenant)
    assert (finding["check_type"], finding["severity"]) == ("orphan_pending_sub", "warning")
    assert hanging in finding["observed"].values()
    assert operator.run("runbook_2_1").of(patient) == []
    operator.run("runbook_2c_fix", TENANT_ID=tenant)
    operator.run("runbook_2a_resolve", REPORT_ID=finding["id"], YOUR_USERNAME="asha")
    await staging.audit_subscriptions(room, f"{tenant}:again")
    assert operator.run("runbook_2_1").of(tenant) == [], (
        "the fix leaves pending_kind and pending_since behind"
    )
