"""The mirrors that people read: right after every operation, so that runbook 2a mends and never harms."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from billing.ledger.v1 import ledger_pb2 as pb

from shared import clock
from shared.errors import FailedPrecondition
from tests.ledger.builders import a_debit, a_grant
from tests.ledger.conftest import RunningLedger
from tests.operators.conftest import Operator

Travel = Callable[[timedelta], None]
_number = count(1)


def days(number: float) -> timedelta:
    return timedelta(days=number)


async def settle(ledger: RunningLedger) -> maintenance_pb.SettleExpiredResponse:
    """One run of the job."""
    key = f"job:settle_expired:{next(_number)}"
    return await ledger.maintenance.SettleExpired(maintenance_pb.SettleExpiredRequest(idempotency_key=key))


def mirror(operator: Operator, tenant: str) -> dict[str, Any]:
    [row] = operator.look("SELECT * FROM tenant_credits WHERE tenant_id = %s", tenant)
    return row


def assert_mirrors_hold(operator: Operator, tenant: str) -> dict[str, Any]:
    """The mirrors say what lots and transactions say, and runbook 2a finds nothing to change."""
    before = mirror(operator, tenant)
    [lots] = operator.look(
        "SELECT COALESCE(SUM(remaining) FILTER (WHERE bucket = 'subscription'), 0) AS subscription,"
        " COALESCE(SUM(remaining) FILTER (WHERE bucket <> 'subscription'), 0) AS permanent,"
        " MAX(expires_at) FILTER (WHERE bucket = 'subscription' AND remaining > 0) AS last_end"
        " FROM credit_buckets WHERE tenant_id = %s",
        tenant,
    )
    [ledger] = operator.look(
        "SELECT COALESCE(SUM(amount), 0) AS total FROM credit_transactions WHERE tenant_id = %s", tenant
    )
    assert before["balance"] == before["subscription_balance"] + before["permanent_balance"]
    assert before["subscription_balance"] == lots["subscription"]
    assert before["permanent_balance"] == lots["permanent"]
    assert before["subscription_expires_at"] == lots["last_end"]
    assert before["balance"] == ledger["total"]

    mended = operator.run("runbook_2a_fix", TENANT_ID=tenant)

    assert mended.changed == 1
    assert mended.row == {name: before[name] for name in mended.row}
    assert mirror(operator, tenant) == before
    return before


async def test_after_grants_and_debits_over_overlapping_lots(
    ledger: RunningLedger, operator: Operator, tenant: str
) -> None:
    early, late = clock.now() + days(3), clock.now() + days(30)
    await ledger.funding.GrantCredits(a_grant(tenant, 40, expires_at=late))
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=early))
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    row = assert_mirrors_hold(operator, tenant)
    assert (row["balance"], row["subscription_balance"], row["permanent_balance"]) == (170, 70, 100)
    assert row["subscription_expires_at"] == late

    await ledger.service.Debit(a_debit(tenant, 35))
    row = assert_mirrors_hold(operator, tenant)
    assert (row["subscription_balance"], row["subscription_expires_at"]) == (35, late)

    await ledger.service.Debit(a_debit(tenant, 36))
    row = assert_mirrors_hold(operator, tenant)
    assert (row["subscription_balance"], row["permanent_balance"]) == (0, 99)
    assert row["subscription_expires_at"] is None


async def test_after_the_longer_lot_is_spent_the_mirror_names_the_end_of_what_is_left(
    ledger: RunningLedger, operator: Operator, tenant: str, travel: Travel
) -> None:
    travel(days(-8))
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=clock.now() + days(7)))
    travel(days(0))
    middle, late = clock.now() + days(2), clock.now() + days(5)
    await ledger.funding.GrantCredits(a_grant(tenant, 20, expires_at=middle))
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=late))

    row = assert_mirrors_hold(operator, tenant)

    assert (row["subscription_balance"], row["subscription_expires_at"]) == (30, late)


async def test_after_one_of_overlapping_lots_expired_and_was_settled(
    ledger: RunningLedger, operator: Operator, tenant: str, travel: Travel
) -> None:
    travel(days(-8))
    late = clock.now() + days(20)
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=clock.now() + days(7)))
    await ledger.funding.GrantCredits(a_grant(tenant, 50, expires_at=late))
    await ledger.funding.GrantCredits(a_grant(tenant, 5))
    await ledger.service.Debit(a_debit(tenant, 10))
    assert mirror(operator, tenant)["balance"] == 75
    travel(days(0))

    settled = await settle(ledger)

    assert settled.lots >= 1
    row = assert_mirrors_hold(operator, tenant)
    assert (row["balance"], row["subscription_balance"], row["subscription_expires_at"]) == (55, 50, late)
    [expired] = operator.look(
        "SELECT amount FROM credit_transactions WHERE tenant_id = %s AND tx_status = 'expired'", tenant
    )
    assert expired["amount"] == -20


async def test_after_all_of_it_expired_nothing_is_left_to_expire(
    ledger: RunningLedger, operator: Operator, tenant: str, travel: Travel
) -> None:
    travel(days(-8))
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=clock.now() + days(6)))
    await ledger.funding.GrantCredits(a_grant(tenant, 20, expires_at=clock.now() + days(7)))
    await ledger.funding.GrantCredits(a_grant(tenant, 5))
    travel(days(0))

    await settle(ledger)

    row = assert_mirrors_hold(operator, tenant)
    assert (row["balance"], row["subscription_balance"], row["subscription_expires_at"]) == (5, 0, None)


async def test_2a_counts_what_is_due_as_gone_before_the_job_has_been_there(
    ledger: RunningLedger, operator: Operator, tenant: str, travel: Travel
) -> None:
    travel(days(-8))
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=clock.now() + days(7)))
    await ledger.funding.GrantCredits(a_grant(tenant, 5))
    travel(days(0))

    mended = operator.run("runbook_2a_fix", TENANT_ID=tenant)

    assert (mended.changed, mended.row["balance"]) == (1, 5)
    found = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))
    assert found.balance.available == 5
    await settle(ledger)
    assert assert_mirrors_hold(operator, tenant)["balance"] == 5


async def test_a_mirror_edited_by_hand_stops_nothing_and_2a_mends_it(
    ledger: RunningLedger, operator: Operator, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=clock.now() + days(7)))
    await ledger.funding.GrantCredits(a_grant(tenant, 5))
    operator.edit("UPDATE tenant_credits SET balance = 1000000 WHERE tenant_id = %s", tenant)

    found = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))
    with pytest.raises(FailedPrecondition) as refused:
        await ledger.service.Debit(a_debit(tenant, 36))
    assert (found.balance.available, refused.value.reason) == (35, "INSUFFICIENT_CREDITS")

    mended = operator.run("runbook_2a_fix", TENANT_ID=tenant)
    assert (mended.changed, mended.row["balance"]) == (1, 35)
    assert_mirrors_hold(operator, tenant)

    operator.edit("UPDATE tenant_credits SET balance = 0 WHERE tenant_id = %s", tenant)
    await ledger.service.Debit(a_debit(tenant, 4))
    assert assert_mirrors_hold(operator, tenant)["balance"] == 31


async def test_2a_touches_the_one_tenant(ledger: RunningLedger, operator: Operator, tenant: str) -> None:
    neighbour = f"{tenant}_neighbour"
    await ledger.funding.GrantCredits(a_grant(tenant, 7))
    await ledger.funding.GrantCredits(a_grant(neighbour, 8))
    operator.edit("UPDATE tenant_credits SET balance = 0 WHERE tenant_id = ANY(%s)", [tenant, neighbour])

    operator.run("runbook_2a_fix", TENANT_ID=tenant)

    assert (mirror(operator, tenant)["balance"], mirror(operator, neighbour)["balance"]) == (7, 0)


@pytest.mark.parametrize("history", range(4))
async def test_after_any_history(
    ledger: RunningLedger, operator: Operator, tenant: str, travel: Travel, history: int
) -> None:
    chance = random.Random(history)
    moment = days(-30)
    travel(moment)
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    for _ in range(25):
        match chance.choice(("grant", "lot", "lot", "debit", "debit", "time")):
            case "grant":
                await ledger.funding.GrantCredits(a_grant(tenant, chance.randint(1, 50)))
            case "lot":
                ends_at = clock.now() + days(chance.randint(1, 12))
                await ledger.funding.GrantCredits(a_grant(tenant, chance.randint(1, 80), expires_at=ends_at))
            case "debit":
                try:
                    await ledger.service.Debit(a_debit(tenant, chance.randint(1, 40)))
                except FailedPrecondition as refused:
                    assert refused.reason == "INSUFFICIENT_CREDITS"
            case "time":
                moment = min(moment + days(chance.randint(1, 5)), days(-1))
                travel(moment)
    travel(days(0))
    await settle(ledger)

    row = assert_mirrors_hold(operator, tenant)
    by_status = {row["tx_status"]: row for row in operator.run("runbook_2b", TENANT_ID=tenant).rows}
    assert sum(row["sum"] for row in by_status.values()) == row["balance"]
    assert by_status["expired"]["sum"] < 0
