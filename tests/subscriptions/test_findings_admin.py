"""Operators see this room's findings and close them by name, once."""

from __future__ import annotations

import json

import pytest
from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.store.audit import ROOM
from shared.database import transaction
from shared.errors import BillingError
from shared.ops import store as ops
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import refused


async def found(room: Room, tenant: str | None, check: str, severity: str = "warning") -> str:
    """A finding as an event opens it."""
    async with transaction(room.engine) as db:
        return await ops.open_finding(
            db,
            room=ROOM,
            check_type=check,
            tenant_id=tenant,
            severity=severity,  # type: ignore[arg-type]
            observed={"refundId": "rfnd_1", "kind": "refund"},
        )


def resolve(finding_id: str, *, key: str = "T-1", actor: str = "asha") -> pb.ResolveFindingRequest:
    return pb.ResolveFindingRequest(
        finding_id=finding_id, idempotency_key=key, actor=actor, reason="paid back by transfer"
    )


async def test_the_most_severe_come_first_then_the_newest_page_by_page(room: Room, tenant: str) -> None:
    old = await found(room, tenant, "late_charge")
    new = await found(room, tenant, "dispute_lost")
    worst = await found(room, tenant, "refund_failed", "critical")
    shown: list[str] = []
    token = ""
    while True:
        page = await room.admin.ListFindings(
            pb.ListFindingsRequest(tenant_id=tenant, page_size=1, page_token=token)
        )
        shown += [each.finding_id for each in page.findings]
        token = page.next_page_token
        if not token:
            break

    assert shown == [worst, new, old]
    only = await room.admin.ListFindings(
        pb.ListFindingsRequest(tenant_id=tenant, severity=pb.FINDING_SEVERITY_CRITICAL)
    )
    [critical] = only.findings
    assert (critical.check_type, critical.severity) == ("refund_failed", pb.FINDING_SEVERITY_CRITICAL)
    assert json.loads(critical.observed_json) == {"refundId": "rfnd_1", "kind": "refund"}
    assert not critical.HasField("resolved_at")
    by_check = await room.admin.ListFindings(
        pb.ListFindingsRequest(tenant_id=tenant, check_type="late_charge")
    )
    assert [each.finding_id for each in by_check.findings] == [old]
    async with refused("PAGE_TOKEN_INVALID"):
        await room.admin.ListFindings(pb.ListFindingsRequest(page_token="ZmluZGluZw"))


async def test_a_finding_is_closed_once_by_name_and_recorded(room: Room, tenant: str) -> None:
    finding_id = await found(room, tenant, "refund_failed", "critical")

    closed = await room.admin.ResolveFinding(resolve(finding_id))
    again = await room.admin.ResolveFinding(resolve(finding_id))

    assert (closed.replayed, again.replayed) == (False, True)
    assert closed.finding == again.finding
    assert (closed.finding.resolved_by, closed.finding.HasField("resolved_at")) == ("asha", True)
    assert (await room.admin.ListFindings(pb.ListFindingsRequest(tenant_id=tenant))).findings == []
    [listed] = (
        await room.admin.ListFindings(pb.ListFindingsRequest(tenant_id=tenant, include_resolved=True))
    ).findings
    assert listed == closed.finding
    [line] = room.rows("SELECT * FROM billing_audit_log WHERE resource_id = %s", finding_id)
    assert (line["action"], line["actor_id"], line["tenant_id"]) == ("finding.resolved", "asha", tenant)
    before, after = line["metadata"]["before"], line["metadata"]["after"]
    assert (before["check_type"], before["observed"]["refundId"]) == ("refund_failed", "rfnd_1")
    assert (before["resolved_by"], after["resolved_by"]) == (None, "asha")
    assert (line["metadata"]["reason"], bool(line["request_id"])) == ("paid back by transfer", True)


async def test_what_is_closed_unknown_or_another_rooms_is_refused(room: Room, tenant: str) -> None:
    finding_id = await found(room, None, f"nobodys_{tenant}")
    await room.admin.ResolveFinding(resolve(finding_id, key=tenant))

    async with refused("FINDING_RESOLVED", finding_id=finding_id, resolved_by="asha"):
        await room.admin.ResolveFinding(resolve(finding_id, key=f"{tenant}-2"))
    async with refused("IDEMPOTENCY_KEY_REUSED"):
        await room.admin.ResolveFinding(resolve(finding_id, key=tenant, actor="ravi"))
    async with refused("UNKNOWN_FINDING", finding_id="fnd_nowhere"):
        await room.admin.ResolveFinding(resolve("fnd_nowhere"))
    room.change(
        "INSERT INTO billing_integrity_reports (id, room, tenant_id, check_type, severity, observed)"
        " VALUES (%s, 'ledger', %s, 'balance_mismatch', 'critical', '{}')",
        f"fnd_{tenant}",
        tenant,
    )
    with pytest.raises(BillingError) as other:
        await room.admin.ResolveFinding(resolve(f"fnd_{tenant}"))
    assert other.value.reason == "UNKNOWN_FINDING"
    assert (await room.admin.ListFindings(pb.ListFindingsRequest(tenant_id=tenant))).findings == []
    room.change("DELETE FROM billing_integrity_reports WHERE id = %s", f"fnd_{tenant}")
    assert room.rows("SELECT count(*) FROM billing_audit_log WHERE resource_id = %s", finding_id) == [
        {"count": 1}
    ]
