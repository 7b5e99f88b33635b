"""What was: balances of past moments, and lists however long."""

import asyncio
from datetime import UTC, timedelta
from pathlib import Path

import psycopg
import pytest
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from billing.ledger.v1 import ledger_pb2 as pb

from services.ledger.store import reads
from shared import clock, errors, paging
from tests.conftest import Database
from tests.ledger.builders import a_debit, a_grant, a_hold, a_revocation, in_days
from tests.ledger.conftest import RunningLedger, Travel


async def test_a_balance_of_the_past_is_what_the_lines_said(ledger: RunningLedger, tenant: str) -> None:
    moments = [in_days(0)]
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    for _ in range(9):
        answer = await ledger.service.Debit(a_debit(tenant, 10))
        moments.append(answer.transaction.created_at.ToDatetime(UTC))

    async def at(**moment: object) -> int:
        answer = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant, **moment))
        return answer.balance.available

    assert [await at(as_of_seq=seq) for seq in range(11)] == [0, *range(100, 0, -10)]
    assert [await at(as_of=moment) for moment in moments] == [0, *range(90, 0, -10)]
    assert await at(as_of=moments[4] - timedelta(microseconds=1)) == 70
    assert await at(as_of=in_days(400)) == 10


async def test_a_line_that_is_not_there_yet_is_refused(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))

    with pytest.raises(errors.NotFound) as refusal:
        await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant, as_of_seq=2))

    assert refusal.value.reason == "UNKNOWN_LINE"
    assert refusal.value.metadata == {"as_of_seq": "2", "last_seq": "1"}


async def test_a_search_for_what_is_rare_ends_and_goes_on(
    ledger: RunningLedger, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "SCAN_MAX", 4)
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    for reason in ("seo.audit", *["blog.publish"] * 9):
        await ledger.service.Debit(a_debit(tenant, 1, reason=reason))

    found, pages, token = [], 0, ""
    while token or not pages:
        answer = await ledger.service.ListTransactions(
            pb.ListTransactionsRequest(tenant_id=tenant, page_token=token, reason_prefix="seo.")
        )
        found += [each.reason for each in answer.transactions]
        pages, token = pages + 1, answer.next_page_token

    assert found == ["seo.audit"]
    assert pages == 3


async def test_every_transaction_is_on_one_page(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    for _ in range(6):
        await ledger.service.Debit(a_debit(tenant, 1))

    seqs, token, pages = [], "", 0
    while token or not pages:
        answer = await ledger.service.ListTransactions(
            pb.ListTransactionsRequest(tenant_id=tenant, page_token=token, page_size=3)
        )
        seqs += [each.first_seq for each in answer.transactions]
        pages, token = pages + 1, answer.next_page_token

    assert seqs == [7, 6, 5, 4, 3, 2, 1]
    assert pages == 3


async def test_a_page_token_of_another_list_is_refused(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant))

    with pytest.raises(errors.InvalidArgument):
        await ledger.funding.ListGrants(
            funding_pb.ListGrantsRequest(tenant_id=tenant, page_token=paging.token("txn_1"))
        )


async def test_a_clock_that_goes_back_brings_nothing_back(
    ledger: RunningLedger, tenant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "clock"
    clock.move_to(file, timedelta())
    monkeypatch.setenv("BILLING_TEST_CLOCK", str(file))
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(5)))
    await ledger.funding.GrantCredits(a_grant(tenant, 3))

    clock.move_to(file, timedelta(days=6))
    await ledger.service.Debit(a_debit(tenant, 1))
    clock.move_to(file, timedelta(days=1))
    seen = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))
    spent = await ledger.service.Debit(a_debit(tenant, 1))

    assert (seen.balance.available, spent.balance.available) == (2, 1)


async def test_a_tenant_that_cannot_be_settled_keeps_nobody_waiting(
    ledger: RunningLedger, database: Database, tenant: str
) -> None:
    broken = f"{tenant}-broken"
    for name in (broken, tenant):
        await ledger.funding.GrantCredits(a_grant(name, 10, expires_at=in_days(0.2 / 86400)))
    await asyncio.sleep(0.4)

    async def set_seq(seq: int) -> None:
        async with await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True) as admin:
            await admin.execute(
                "UPDATE ledger.tenant_credits SET seq = %s WHERE tenant_id = %s", [seq, broken]
            )

    await set_seq(0)  # its next line would take a number that is taken
    try:
        with pytest.raises(errors.Internal):
            await ledger.maintenance.SettleExpired(
                maintenance_pb.SettleExpiredRequest(idempotency_key="job:b")
            )
    finally:
        await set_seq(1)
    listed = await ledger.service.ListTransactions(pb.ListTransactionsRequest(tenant_id=tenant))
    await ledger.maintenance.SettleExpired(maintenance_pb.SettleExpiredRequest(idempotency_key="job:c"))

    assert [each.amount for each in listed.transactions] == [-10, 10]


async def test_a_balance_of_this_moment_is_the_balance_where_a_claimed_hold_has_lapsed(
    ledger: RunningLedger, tenant: str, travel: Travel
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100, reference_id="pay"))
    await ledger.service.PlaceHold(a_hold(tenant, 60, seconds=60))
    await ledger.funding.RevokeGrant(a_revocation(tenant, "pay", 90))
    travel.forward(hours=1)  # the lapse is not booked yet, nor what the revocation then takes

    now = (await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))).balance
    then = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant, as_of=clock.now()))

    assert (now.available, now.posted) == (10, 10)
    assert (then.balance.available, then.balance.posted) == (10, 10)
