"""Add-ons as time passes: one debit for each period, pauses for want of credits, ends and new beginnings."""

from __future__ import annotations

import asyncio
from datetime import UTC, timedelta

import pytest
from billing.ledger.v1 import ledger_admin_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from pydantic import SecretStr

from services.subscriptions.actions import renewals
from services.subscriptions.actions.addon_charges import carry_out
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.rules.addons import Charge
from shared import clock
from shared.errors import FailedPrecondition, NotFound, Unavailable
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS, Travel
from tests.subscriptions.addon_books import books, selling
from tests.subscriptions.conftest import Room
from tests.subscriptions.flaky_ledger import Cut, another_room

PERIOD = timedelta(days=30)


async def test_a_period_is_renewed_once_by_any_number_of_runs(
    room: Room, tenant: str, travel: Travel
) -> None:
    of = await books(room, tenant, 1000)
    bought = await of.buy()
    first = bought.addon.next_renewal_at.ToDatetime(UTC)
    await of.renew()
    assert len(of.debits()) == 1, "nothing is due yet"

    travel.forward(days=30, hours=1)
    foreseen = await of.renew(dry_run=True)
    assert foreseen.renewed >= 1
    assert len(of.debits()) == 1, "a dry run charges nothing"
    await asyncio.gather(*(of.renew() for _ in range(4)))

    [row] = of.rows()
    assert (row["status"], row["period"], row["next_renewal"]) == ("active", 2, first + PERIOD)
    assert [debit["reference_id"] for debit in of.debits()] == [f"{row['id']}:1", f"{row['id']}:2"]
    of.assert_charged_once(settled=True)
    actions = room.rows(
        "SELECT action FROM billing_audit_log WHERE resource_id = %s ORDER BY created_at, id", row["id"]
    )
    assert [each["action"] for each in actions] == ["addon.bought", "addon.renewed"]


async def test_after_a_standstill_one_period_is_charged(room: Room, tenant: str, travel: Travel) -> None:
    of = await books(room, tenant, 10_000)
    await of.buy()

    travel.forward(days=200)
    await of.renew()
    await of.renew()

    [row] = of.rows()
    assert (row["period"], len(of.debits())) == (2, 2)
    assert clock.now() + PERIOD - timedelta(minutes=1) <= row["next_renewal"] <= clock.now() + PERIOD


async def test_want_of_credits_pauses_and_new_credits_start_again(
    room: Room, tenant: str, travel: Travel
) -> None:
    of = await books(room, tenant, 350)
    before = await of.limit()
    addon = (await of.buy()).addon.tenant_addon_id

    travel.forward(days=31)
    assert (await of.renew(dry_run=True)).paused >= 1
    assert (await of.renew()).paused >= 1

    assert await of.limit() == before, "the ledger's limits follow within the same call"
    [row] = of.rows()
    assert (row["status"], row["period"], row["attempt"]) == ("paused", 1, 2)
    assert row["paused_at"] is not None
    [alert] = (await room.current(tenant)).alerts
    assert (alert.kind, alert.subject) == (pb.TENANT_ALERT_KIND_ADDON_PAUSED, "seat")
    assert alert.since_at.ToDatetime(UTC) == row["paused_at"]
    [notice] = room.rows("SELECT * FROM billing_notifications WHERE tenant_id = %s", tenant)
    assert (notice["kind"], notice["cycle_ref"]) == ("addon_paused", f"{addon}:2")
    assert notice["payload"]["credits"] == 300
    assert notice["payload"]["available"] == 50
    await of.renew()
    assert [each["attempt"] for each in of.rows()] == [2], "without new credits nothing is tried"

    await of.fund(300)
    await of.renew()

    [row] = of.rows()
    assert (row["status"], row["period"], row["attempt"], row["paused_at"]) == ("active", 2, 1, None)
    assert of.debits()[-1]["idempotency_key"] == f"addon:{addon}:2:2"
    assert row["next_renewal"] > clock.now() + PERIOD - timedelta(minutes=1), "the pause is not charged"
    assert await of.limit() == before + 1
    assert list((await room.current(tenant)).alerts) == []
    of.assert_charged_once(settled=True)


async def test_a_person_resumes_a_paused_add_on(room: Room, tenant: str, travel: Travel) -> None:
    of = await books(room, tenant, 300)
    addon = (await of.buy()).addon.tenant_addon_id
    travel.forward(days=31)
    await of.renew()

    for _ in range(2):
        with pytest.raises(FailedPrecondition) as refused:
            await of.resume(addon)
        assert refused.value.reason == "INSUFFICIENT_CREDITS"
        assert refused.value.metadata["shortfall"] == "300"
    assert [row["status"] for row in of.rows()] == ["paused"]
    await of.fund(1000)
    answers = await asyncio.gather(*(of.resume(addon, "with credits") for _ in range(5)), of.renew())

    assert {answer.credits for answer in answers[:5] if isinstance(answer, pb.ResumeAddonResponse)} <= {
        0,
        300,
    }
    [row] = of.rows()
    assert (row["status"], row["period"]) == ("active", 2)
    assert len(of.debits()) == 2
    idle = await of.resume(addon, "once more")
    assert (idle.credits, idle.addon.status) == (0, pb.ADDON_STATUS_ACTIVE)
    of.assert_charged_once(settled=True)
    await of.assert_entitled()


async def test_a_cancelled_add_on_counts_until_its_period_ends(
    room: Room, tenant: str, travel: Travel
) -> None:
    of = await books(room, tenant, 1000)
    before = await of.limit()
    addon = (await of.buy()).addon.tenant_addon_id

    canceled = await of.cancel(addon)
    assert (canceled.addon.status, canceled.replayed) == (pb.ADDON_STATUS_CANCELING, False)
    assert (await of.cancel(addon)).replayed
    assert (await of.cancel(addon, "again")).addon.status == pb.ADDON_STATUS_CANCELING
    assert await of.limit() == before + 1
    resumed = await of.resume(addon)
    assert (resumed.credits, resumed.addon.status) == (0, pb.ADDON_STATUS_ACTIVE)
    await of.cancel(addon, "after all")
    travel.forward(days=31)
    assert (await of.renew()).ended >= 1

    assert await of.limit() == before
    [ended] = await of.listed()
    assert ended.status == pb.ADDON_STATUS_CANCELED
    assert not ended.HasField("next_renewal_at")
    assert len(of.debits()) == 1
    back = await of.resume(addon, "after the end")
    assert (back.credits, back.addon.status) == (300, pb.ADDON_STATUS_ACTIVE)
    assert await of.limit() == before + 1
    of.assert_charged_once(settled=True)


async def test_one_that_ended_gives_way_to_one_bought_anew(room: Room, tenant: str, travel: Travel) -> None:
    of = await books(room, tenant, 1000)
    addon = (await of.buy()).addon.tenant_addon_id
    await of.cancel(addon)
    travel.forward(days=31)
    await of.renew()
    anew = (await of.buy(key="anew")).addon.tenant_addon_id

    with pytest.raises(FailedPrecondition) as refused:
        await of.resume(addon)

    assert refused.value.reason == "ADDON_EXISTS"
    assert refused.value.metadata["tenant_addon_id"] == anew
    assert (await of.cancel(addon, "of what has ended")).addon.status == pb.ADDON_STATUS_CANCELED
    assert [each.tenant_addon_id for each in await of.listed()] == [anew, addon]
    page = await room.product.ListTenantAddons(pb.ListTenantAddonsRequest(tenant_id=tenant, page_size=1))
    rest = await room.product.ListTenantAddons(
        pb.ListTenantAddonsRequest(tenant_id=tenant, page_size=1, page_token=page.next_page_token)
    )
    assert [page.addons[0].tenant_addon_id, rest.addons[0].tenant_addon_id] == [anew, addon]
    assert rest.next_page_token == ""


async def test_cancelling_while_a_renewal_is_under_way_ends_after_the_period_it_paid(
    room: Room, database: Database, tenant: str, travel: Travel
) -> None:
    of = await books(room, tenant, 1000)
    addon = (await of.buy()).addon.tenant_addon_id
    travel.forward(days=31)
    async with another_room(room, database) as (_, maintenance, line):
        line.decide = lambda: Cut.AFTER
        await of.renew(door=maintenance)
    of.assert_charged_once(settled=False)
    assert len(of.debits()) == 2

    canceled = await of.cancel(addon)

    assert canceled.addon.status == pb.ADDON_STATUS_CANCELING
    assert canceled.addon.next_renewal_at.ToDatetime(UTC) > clock.now() + timedelta(days=28)
    of.assert_charged_once(settled=True)


async def test_a_frozen_account_is_charged_nothing_and_reported(
    room: Room, tenant: str, travel: Travel
) -> None:
    of = await books(room, tenant, 1000)
    await of.buy()
    freeze = ledger_admin_pb2.FreezeAccountRequest(
        tenant_id=tenant, idempotency_key="freeze", actor="asha", reason="under investigation"
    )
    await room.ledger.admin.FreezeAccount(freeze)

    with pytest.raises(FailedPrecondition) as refused:
        await of.buy("storage", "while frozen")
    assert refused.value.reason == "ACCOUNT_FROZEN"
    travel.forward(days=31)
    done = await of.renew()

    [seat, storage] = of.rows()
    assert (seat["status"], seat["charge_credits"]) == ("active", None)
    assert storage["status"] == "canceled"
    [alert] = [each for each in done.alerts if each.tenant_id == tenant]
    assert alert.evidence["reason"] == "ACCOUNT_FROZEN"
    unfreeze = ledger_admin_pb2.UnfreezeAccountRequest(
        tenant_id=tenant, idempotency_key="unfreeze", actor="asha", reason="all is well"
    )
    await room.ledger.admin.UnfreezeAccount(unfreeze)
    assert not [each for each in (await of.renew()).alerts if each.tenant_id == tenant]
    assert (await of.buy("storage", "while frozen")).credits == 400, "the same key goes on"
    assert [row["period"] for row in of.rows()] == [2, 1]
    of.assert_charged_once(settled=True)


async def test_what_a_tenant_has_is_renewed_although_it_is_no_longer_sold(
    room: Room, tenant: str, travel: Travel
) -> None:
    of = await books(room, tenant, 2000)
    addon = (await of.buy("custom_domain")).addon.tenant_addon_id
    async with selling(room, custom_domain=None):
        travel.forward(days=31)
        await of.renew()
        assert [row["period"] for row in of.rows()] == [2]
        assert await of.limit("platform.custom_domains") == 1
        await of.cancel(addon)
        travel.forward(days=31)
        await of.renew()
        for refusal in (of.resume(addon), of.buy("custom_domain", "anew")):
            with pytest.raises(NotFound) as refused:
                await refusal
            assert refused.value.reason == "UNKNOWN_ADDON"
    assert len(of.debits()) == 2


async def test_tenants_are_walked_in_pages_and_a_run_goes_on_where_the_last_one_stopped(
    room: Room, tenant: str, travel: Travel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewals, "PAGE", 2)
    several = [await books(room, f"{tenant}_{n}", 650) for n in range(5)]
    for of in several:
        await of.buy("storage")
    travel.forward(days=31)
    done = await several[0].renew()
    assert done.paused >= 5
    for of in several:
        await of.fund(1000)
    # A run without time for those who wait does not forget where to begin.
    room.change(
        "INSERT INTO walks (name, place) VALUES (%s, %s)"
        " ON CONFLICT (name) DO UPDATE SET place = EXCLUDED.place",
        renewals.WALK,
        several[2].tenant,
    )

    await several[0].renew()
    assert [of.rows()[0]["status"] for of in several] == ["paused"] * 3 + ["active"] * 2
    await several[0].renew()

    assert [of.rows()[0]["period"] for of in several] == [2] * 5
    for of in several:
        of.assert_charged_once(settled=True)


async def test_resuming_after_the_period_ended_charges_the_next_one(
    room: Room, tenant: str, travel: Travel
) -> None:
    of = await books(room, tenant, 1000)
    bought = (await of.buy()).addon
    await of.cancel(bought.tenant_addon_id)
    travel.forward(days=30, hours=1)  # and no run has ended it yet

    resumed = await of.resume(bought.tenant_addon_id)

    assert (resumed.credits, resumed.addon.status) == (300, pb.ADDON_STATUS_ACTIVE)
    assert resumed.addon.next_renewal_at.ToDatetime(UTC) == bought.next_renewal_at.ToDatetime(UTC) + PERIOD
    await of.renew()
    assert len(of.debits()) == 2
    of.assert_charged_once(settled=True)


async def test_what_is_being_resumed_is_not_bought_a_second_time(
    room: Room, database: Database, tenant: str, travel: Travel
) -> None:
    of = await books(room, tenant, 1000)
    addon = (await of.buy()).addon.tenant_addon_id
    await of.cancel(addon)
    travel.forward(days=31)
    await of.renew()
    async with another_room(room, database) as (product, _, line):
        line.decide = lambda: Cut.AFTER
        with pytest.raises(Unavailable):
            await of.resume(addon, door=product)

    with pytest.raises(FailedPrecondition) as refused:
        await of.buy(key="anew")

    assert (refused.value.reason, refused.value.metadata["status"]) == ("ADDON_EXISTS", "pending")
    resumed = await of.resume(addon)
    assert (resumed.credits, resumed.addon.status, resumed.replayed) == (300, pb.ADDON_STATUS_ACTIVE, True)
    assert len(of.debits()) == 2
    of.assert_charged_once(settled=True)


async def test_a_worker_that_comes_back_late_changes_nothing(
    room: Room, database: Database, tenant: str, travel: Travel
) -> None:
    of = await books(room, tenant, 300)
    addon = (await of.buy()).addon.tenant_addon_id
    travel.forward(days=31)
    await of.renew()
    async with another_room(room, database) as (product, _, line):
        line.decide = lambda: Cut.BEFORE
        with pytest.raises(Unavailable):
            await of.resume(addon, door=product)
    before = of.rows()
    assert [(row["attempt"], row["charge_credits"]) for row in before] == [(2, 300)]

    late = Charge(tenant, addon, "seat", period=2, attempt=1, credits=300)
    async with open_channel(room.ledger.address, SecretStr(SECRETS["room_secret"])) as channel:
        settled = await carry_out(room.engine, Ledger(channel), late, room.clock)

    assert (settled.outcome.kind, settled.recorded) == ("unaffordable", False)
    assert of.rows() == before
