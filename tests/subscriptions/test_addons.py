"""Add-ons: one debit for each period, whatever is repeated, lost or raced, and limits that follow at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.subscriptions.catalogue import load_catalog
from shared.errors import BillingError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from tests.conftest import Database
from tests.subscriptions.addon_books import Books, books, selling
from tests.subscriptions.conftest import Room
from tests.subscriptions.flaky_ledger import Cut, another_room
from tests.subscriptions.test_reconciliation import provision_without_a_ledger

PERIOD = timedelta(days=30)


async def test_an_add_on_is_bought_with_credits_and_raises_its_limit(room: Room, tenant: str) -> None:
    of = await books(room, tenant, 1000)
    before = await of.limit()
    began = datetime.now(UTC)

    bought = await of.buy(units=2)

    assert (bought.credits, bought.replayed) == (600, False)
    assert (bought.addon.status, bought.addon.units) == (pb.ADDON_STATUS_ACTIVE, 2)
    assert bought.addon.credits_per_period == 600
    renewal = bought.addon.next_renewal_at.ToDatetime(UTC)
    assert began + PERIOD <= renewal <= datetime.now(UTC) + PERIOD
    assert await of.limit() == before + 2
    assert await of.available() == 400
    [debit] = of.debits()
    assert (debit["reason"], debit["amount"]) == ("addon.seat", -600)
    assert debit["idempotency_key"] == f"addon:{bought.addon.tenant_addon_id}:1:1"
    assert debit["reference_id"] == f"{bought.addon.tenant_addon_id}:1"
    [audit] = room.rows(
        "SELECT * FROM billing_audit_log WHERE resource_id = %s", bought.addon.tenant_addon_id
    )
    assert (audit["action"], audit["metadata"]["after"]["status"]) == ("addon.bought", "active")
    assert await of.listed() == [bought.addon]
    of.assert_charged_once(settled=True)
    await of.assert_entitled()


async def test_the_same_key_answers_the_same_and_another_purchase_is_refused(room: Room, tenant: str) -> None:
    of = await books(room, tenant, 1000)
    bought = await of.buy()
    await of.cancel(bought.addon.tenant_addon_id)

    again = await of.buy()

    assert (again.replayed, again.addon, again.credits) == (True, bought.addon, 300)
    with pytest.raises(FailedPrecondition) as other_content:
        await of.buy(units=5)
    assert other_content.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert other_content.value.metadata["field"] == "units"
    with pytest.raises(FailedPrecondition) as twice:
        await of.buy(key="another")
    assert twice.value.reason == "ADDON_EXISTS"
    assert twice.value.metadata["tenant_addon_id"] == bought.addon.tenant_addon_id
    assert twice.value.metadata["status"] == "canceling"
    assert len(of.debits()) == 1


async def test_what_credits_do_not_cover_leaves_nothing_behind(room: Room, tenant: str) -> None:
    of = await books(room, tenant, 100)
    before = await of.limit()

    for _ in range(2):
        with pytest.raises(FailedPrecondition) as refused:
            await of.buy()
        assert refused.value.reason == "INSUFFICIENT_CREDITS"
        assert refused.value.metadata == {"available": "100", "requested": "300", "shortfall": "200"}
        await of.fund(1000)  # the same key repeats its answer all the same

    assert of.debits() == []
    assert await of.listed() == []
    assert (await of.renew()).renewed == 0 or of.debits() == []
    assert await of.limit() == before
    assert (await of.buy(key="after the top-up")).credits == 300
    assert await of.limit() == before + 1
    [refused_row, bought] = of.rows()
    assert (refused_row["status"], bought["status"]) == ("canceled", "active")
    with pytest.raises(NotFound) as nothing:
        await of.resume(refused_row["id"])
    assert nothing.value.reason == "UNKNOWN_ADDON"


@pytest.mark.parametrize("cut", list(Cut))
async def test_a_lost_call_is_resumed_under_its_key(
    room: Room, database: Database, tenant: str, cut: Cut
) -> None:
    of = await books(room, tenant, 1000)
    before = await of.limit()
    async with another_room(room, database) as (product, _, line):
        line.decide = lambda: cut
        with pytest.raises(Unavailable) as lost:
            await of.buy(door=product)
        assert lost.value.reason == "LEDGER_UNAVAILABLE"
        assert len(of.debits()) == (cut is Cut.AFTER)
    [pending] = await of.listed()
    assert pending.status == pb.ADDON_STATUS_PENDING
    assert await of.limit() == before
    of.assert_charged_once(settled=False)
    with pytest.raises(FailedPrecondition) as busy:
        await of.buy(key="another")
    assert busy.value.reason == "ADDON_EXISTS"

    bought = await of.buy()

    assert (bought.addon.status, bought.replayed) == (pb.ADDON_STATUS_ACTIVE, True)
    assert bought.addon.tenant_addon_id == pending.tenant_addon_id
    assert await of.limit() == before + 1
    of.assert_charged_once(settled=True)


async def test_the_job_finishes_a_purchase_that_nobody_asked_about_again(
    room: Room, database: Database, tenant: str
) -> None:
    of = await books(room, tenant, 1000)
    async with another_room(room, database) as (product, maintenance, line):
        line.decide = lambda: Cut.AFTER
        with pytest.raises(Unavailable):
            await of.buy(door=product)
        done = await of.renew(door=maintenance)
        assert done.failed >= 1
        assert not [each for each in done.alerts if each.tenant_id == tenant], "silence passes by itself"
    # The price of a charge that is under way stays, or its key would no longer fit.
    async with selling(room, seat=replace(load_catalog().addons["seat"], credits=7)):
        await of.renew()

    [row] = of.rows()
    assert (row["status"], row["period"], row["charge_credits"]) == ("active", 1, None)
    of.assert_charged_once(settled=True)
    await of.assert_entitled()
    late = await of.buy()
    assert (late.replayed, late.credits, late.addon.status) == (True, 300, pb.ADDON_STATUS_ACTIVE)


async def test_many_purchases_at_once_are_one(room: Room, tenant: str) -> None:
    of = await books(room, tenant, 10_000)

    same = await asyncio.gather(*(of.buy("seat", "same") for _ in range(8)))
    others = await asyncio.gather(*(of.buy("storage", f"key {n}") for n in range(8)), return_exceptions=True)

    assert len({answer.addon.tenant_addon_id for answer in same}) == 1
    bought = [each for each in others if isinstance(each, pb.BuyAddonResponse)]
    refused = [each.reason for each in others if isinstance(each, BillingError)]
    assert (len(bought), set(refused), len(refused)) == (1, {"ADDON_EXISTS"}, 7)
    assert [debit["amount"] for debit in of.debits()] == [-300, -400]
    of.assert_charged_once(settled=True)
    await of.assert_entitled()


async def test_nobody_elses_and_nothing_unknown(room: Room, tenant: str) -> None:
    of, other = await books(room, tenant, 1000), await books(room, f"{tenant}_other")
    addon = (await of.buy()).addon.tenant_addon_id

    for call in (other.cancel(addon), other.resume(addon), of.cancel("tad_none")):
        with pytest.raises(NotFound) as unknown:
            await call
        assert unknown.value.reason == "UNKNOWN_ADDON"
    with pytest.raises(NotFound) as no_such:
        await of.buy("castle", "another")
    assert (no_such.value.reason, no_such.value.metadata["addon"]) == ("UNKNOWN_ADDON", "castle")
    stranger = Books(room, f"{tenant}_stranger")
    for stray in (stranger.buy(), stranger.listed()):
        with pytest.raises(NotFound) as nobody:
            await stray
        assert nobody.value.reason == "UNKNOWN_TENANT"
    with pytest.raises(InvalidArgument) as token:
        await room.product.ListTenantAddons(
            pb.ListTenantAddonsRequest(tenant_id=tenant, page_token="tad_what")
        )
    assert token.value.reason == "PAGE_TOKEN_INVALID"


async def test_a_purchase_waits_until_the_ledger_has_opened_the_account(
    room: Room, database: Database, tenant: str
) -> None:
    await provision_without_a_ledger(room, database, tenant)
    of = Books(room, tenant)

    with pytest.raises(Unavailable) as refused:
        await of.buy()

    assert refused.value.reason == "LEDGER_UNAVAILABLE"
    assert [row["status"] for row in of.rows()] == ["canceled"], (
        "nothing will be charged behind the caller's back"
    )
    room.clock.ahead = timedelta(hours=1)
    await room.reconcile()
    await of.fund(1000)
    assert (await of.buy()).addon.status == pb.ADDON_STATUS_ACTIVE
    of.assert_charged_once(settled=True)


async def test_a_charge_that_cannot_be_recorded_yet_is_recorded_later(room: Room, tenant: str) -> None:
    of = await books(room, tenant, 1000)
    room.change("UPDATE subscriptions SET plan_id = 'platinum' WHERE tenant_id = %s", tenant)

    with pytest.raises(Unavailable) as unknown:
        await of.buy()

    assert unknown.value.reason == "LEDGER_UNAVAILABLE", "the ledger has charged: no refusal may be definite"
    assert len(of.debits()) == 1
    done = await of.renew()
    assert done.failed >= 1
    [alert] = [each for each in done.alerts if each.tenant_id == tenant]
    assert alert.evidence["reason"] == "UNKNOWN_PLAN", "time alone does not mend it"
    room.change("UPDATE subscriptions SET plan_id = 'free' WHERE tenant_id = %s", tenant)
    assert (await of.renew()).renewed >= 1
    of.assert_charged_once(settled=True)
    await of.assert_entitled()


async def test_an_add_on_that_would_raise_nothing_is_not_sold(room: Room, tenant: str) -> None:
    of = await books(room, tenant, 1000)
    room.change("UPDATE subscriptions SET plan_id = 'business' WHERE tenant_id = %s", tenant)

    with pytest.raises(FailedPrecondition) as refused:
        await of.buy("blog_posts")

    assert refused.value.reason == "ADDON_WITHOUT_EFFECT"
    assert refused.value.metadata == {"addon": "blog_posts", "limit": "blog.posts", "plan_code": "business"}
    assert (await of.available(), of.rows()) == (1000, [])
    assert (await of.buy("seat")).credits == 300
