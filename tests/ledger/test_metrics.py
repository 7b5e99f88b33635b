"""What Prometheus is told of the ledger: every number follows what was done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from prometheus_client import REGISTRY

from services.ledger import errors, metrics
from services.ledger.lanes import Lanes
from services.ledger.rules.batch import Settled
from services.ledger.rules.requests import Group, Settle
from shared.errors import FailedPrecondition
from shared.metrics import Exposition
from tests.conftest import Database
from tests.ledger.builders import a_grant as granted
from tests.ledger.builders import a_hold, an_adjustment
from tests.ledger.conftest import RunningLedger, Travel
from tests.ledger.tampering import Hand
from tests.ledger.test_lanes import a_debit, a_grant


def shown(name: str, **labels: str) -> float:
    """A number of the ledger's own; 0 where it is not shown."""
    return metrics.registry.get_sample_value(name, labels) or 0.0


def operations(kind: str, outcome: str) -> float:
    return shown("billing_ledger_operations_total", kind=kind, outcome=outcome)


@pytest.fixture
async def lanes(database: Database) -> AsyncIterator[Lanes]:
    async with Lanes(database.url("ledger_rw"), count=1, waiting_max=40, waiting_per_tenant_max=40) as lanes:
        yield lanes


async def test_operations_are_counted_by_kind_and_by_what_became_of_them(lanes: Lanes, tenant: str) -> None:
    names = ("ok", "replayed", "INSUFFICIENT_CREDITS", "GROUP_ABORTED", "UNKNOWN_TENANT")
    before = {name: operations("debit", name) for name in names}
    settled = operations("settle", "ok")
    await lanes.submit(a_grant(tenant, 10))

    await lanes.submit(a_debit(tenant, "k"))
    await lanes.submit(a_debit(tenant, "k"))
    for key, owner in (("much", tenant), ("much", tenant), ("nobody", f"{tenant}-nobody")):
        with pytest.raises((FailedPrecondition, errors.UnknownTenant)):
            await lanes.submit(a_debit(owner, key, 1000))
    group = Group(tenant, "g", (a_debit(tenant, "a"), a_debit(tenant, "b", 1000)))
    await lanes.submit_all([group])
    assert isinstance(await lanes.submit(Settle(tenant)), Settled)

    counted = {name: operations("debit", name) - before[name] for name in names}
    assert counted == {
        "ok": 1,
        "replayed": 1,
        "INSUFFICIENT_CREDITS": 3,
        "GROUP_ABORTED": 1,
        "UNKNOWN_TENANT": 1,
    }
    assert operations("settle", "ok") == settled + 1


async def test_depth_and_batches_show_what_waits_and_what_went_together(lanes: Lanes, tenant: str) -> None:
    await lanes.submit(a_grant(tenant, 1000))
    written = shown("billing_ledger_batch_operations_sum")
    batches = shown("billing_ledger_batch_seconds_count")
    full = operations("debit", "LANE_FULL")

    calls = [asyncio.create_task(lanes.submit(a_debit(tenant, f"k{number}"))) for number in range(45)]
    await asyncio.sleep(0)
    depth = shown("billing_ledger_lane_waiting", lane="0")
    results = await asyncio.gather(*calls, return_exceptions=True)

    refused = sum(isinstance(each, errors.LaneFull) for each in results)
    assert (depth, refused) == (40, 5)
    assert shown("billing_ledger_lane_waiting", lane="0") == 0
    assert operations("debit", "LANE_FULL") - full == 5
    assert shown("billing_ledger_batch_operations_sum") - written == 40
    assert 1 <= shown("billing_ledger_batch_seconds_count") - batches <= 2
    assert shown("billing_ledger_batch_operations_bucket", le="+Inf") == shown(
        "billing_ledger_batch_seconds_count"
    )


async def test_an_operation_that_fails_alone_is_counted_once(lanes: Lanes, tenant: str) -> None:
    await lanes.submit(a_grant(tenant))
    ok, failed = operations("debit", "ok"), operations("debit", "INTERNAL")

    await lanes.submit_all([a_debit(tenant, "a"), a_debit(tenant, "poison\x00"), a_debit(tenant, "b")])

    assert (operations("debit", "ok") - ok, operations("debit", "INTERNAL") - failed) == (2, 1)


async def test_holds_freezes_and_findings_are_read_when_somebody_asks(
    ledger: RunningLedger, hand: Hand, tenant: str, travel: Travel
) -> None:
    async def look() -> tuple[float, float, float, float]:
        await metrics.refresh(ledger.ledger.engine)
        finding = {"room": "ledger", "check_type": "balance_mismatch", "severity": "critical"}
        return (
            shown("billing_ledger_holds_open"),
            shown("billing_ledger_holds_overdue"),
            shown("billing_ledger_accounts_frozen"),
            REGISTRY.get_sample_value("billing_integrity_findings_open", finding) or 0.0,
        )

    frozen = f"{tenant}-frozen"
    before = await look()
    for each in (tenant, frozen):
        await ledger.funding.GrantCredits(granted(each, 100))
        await ledger.service.PlaceHold(a_hold(each, 5, seconds=60))
    await ledger.admin.FreezeAccount(
        admin_pb.FreezeAccountRequest(tenant_id=frozen, idempotency_key="f", actor="asha", reason="a look")
    )
    at_first = await look()
    travel.forward(hours=0.5)
    soon = await look()
    travel.forward(hours=0.6)
    late = await look()
    hand.run("UPDATE tenant_credits SET state = 'active' WHERE tenant_id = %s", frozen)
    both = await look()
    hand.run(
        "INSERT INTO billing_integrity_reports (id, room, tenant_id, check_type, severity, observed)"
        " VALUES (%s, 'ledger', %s, 'balance_mismatch', 'critical', '{}')",
        *(f"fnd_{tenant}", tenant),
    )
    found = await look()
    hand.run("UPDATE billing_integrity_reports SET resolved_at = now() WHERE tenant_id = %s", tenant)

    assert [after - then for after, then in zip(at_first, before, strict=True)] == [2, 0, 1, 0]
    assert soon == at_first, "nobody is late yet"
    assert late[1] > soon[1]
    assert (both[1] - late[1], late[2] - both[2]) == (1, 1), "a frozen account's waits for a person"
    assert found[3] == both[3] + 1
    assert await look() == both


async def test_grace_periods_are_counted_while_they_last_and_when_they_end(
    ledger: RunningLedger, hand: Hand, tenant: str, travel: Travel
) -> None:
    key = f"blog.{tenant}"
    hand.run(
        "INSERT INTO grace_periods (tenant_id, limit_key, expires_at, created_at)"
        " SELECT %s || n, %s, now() + make_interval(days => n), now() FROM generate_series(1, 3) n",
        tenant,
        key,
    )

    async def active() -> float:
        await metrics.refresh(ledger.ledger.engine)
        return shown("grace_periods_active_total", limit_key=key)

    expired = shown("grace_periods_expired_total")
    at_first = await active()
    travel.forward(days=1.5)
    in_between = await active()
    answer = await ledger.maintenance.SettleExpired(
        maintenance_pb.SettleExpiredRequest(idempotency_key="job:settle_expired:now")
    )
    travel.forward(days=2)

    assert (at_first, in_between, await active()) == (3, 2, 0)
    assert shown("grace_periods_expired_total") - expired == answer.grace_periods >= 1
    assert 'limit_key="' + key not in (await Exposition(also=metrics.registry).text()).decode()


async def test_an_audited_operation_is_counted_once_it_is_written(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    def lines() -> float:
        labels = {"room": "ledger", "action": "adjust_credits"}
        return REGISTRY.get_sample_value("billing_audit_log_entries_total", labels) or 0.0

    await ledger.funding.GrantCredits(granted(tenant, 10))
    before = lines()
    request = an_adjustment(tenant, 5)

    await ledger.admin.AdjustCredits(request)
    await ledger.admin.AdjustCredits(request)
    with pytest.raises(FailedPrecondition):
        await ledger.admin.AdjustCredits(an_adjustment(tenant, -1000))

    assert lines() - before == 1
    assert len(hand.look("SELECT FROM billing_audit_log WHERE tenant_id = %s", tenant)) == 1
