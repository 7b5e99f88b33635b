"""The file is the truth: applied once, shown first, and what was sold stays on record."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from billing.ledger.v1 import ledger_pb2
from billing.subscriptions.v1 import catalog_pb2 as pb

from services.subscriptions.actions import catalog as actions
from shared.errors import InvalidArgument
from tests.subscriptions.builders import CATALOG
from tests.subscriptions.conftest import Room


@asynccontextmanager
async def restored(room: Room) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await actions.apply_catalog(room.engine, CATALOG, actor="tests", dry_run=False)


async def test_what_is_applied_is_what_is_read(room: Room) -> None:
    assert await actions.read_catalog(room.engine) == CATALOG
    assert await actions.apply_catalog(room.engine, CATALOG, actor="tests", dry_run=False) == []


async def test_a_dry_run_shows_the_difference_and_changes_nothing(room: Room) -> None:
    dearer = replace(CATALOG.plans["pro"], price_monthly_paise=249_900)
    wanted = replace(CATALOG, plans={**CATALOG.plans, "pro": dearer})

    [change] = await actions.apply_catalog(room.engine, wanted, actor="tests", dry_run=True)

    assert (change.change, change.kind, change.code) == ("change", "plan", "pro")
    assert "price_monthly_paise=199900" in change.before
    assert "price_monthly_paise=249900" in change.after
    assert await actions.read_catalog(room.engine) == CATALOG


async def test_what_is_no_longer_sold_is_retired_and_its_tenants_keep_it(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    plans = {code: plan for code, plan in CATALOG.plans.items() if code != "pro"}

    async with restored(room):
        await actions.apply_catalog(room.engine, replace(CATALOG, plans=plans), actor="tests", dry_run=False)
        listed = [plan.code for plan in (await room.catalog.ListPlans(pb.ListPlansRequest())).plans]
        for delivery in room.sandbox.act(f"subscriptions/{checkout.subscription_id}/pay", method="card"):
            await room.deliver(delivery)
        current = await room.current(tenant)

    assert listed == ["free", "starter", "business"]
    assert (current.plan_code, current.credits.subscription) == ("pro", 15_000)
    limits = {f"{u.service_code}.{u.limit.key}": u.limit.value for u in current.usage}
    assert limits["blog.posts"] == 500
    versions = room.rows("SELECT content FROM catalog_versions ORDER BY created_at")
    assert any("pro" not in version["content"]["plans"] for version in versions)
    assert await actions.read_catalog(room.engine) == CATALOG


async def test_plans_show_prices_taxes_limits_and_the_mandate_ceiling(room: Room) -> None:
    answer = await room.catalog.ListPlans(pb.ListPlansRequest())

    plans = {plan.code: plan for plan in answer.plans}
    assert list(plans) == ["free", "starter", "pro", "business"]
    assert not plans["free"].prices
    monthly, yearly = plans["pro"].prices
    assert (monthly.amount_paise, monthly.tax_paise, monthly.total_paise) == (199_900, 35_982, 235_882)
    assert (yearly.credits, yearly.total_display, yearly.exceeds_mandate_ceiling) == (
        180_000,
        "₹23,588.20",
        True,
    )
    assert (monthly.exceeds_mandate_ceiling, plans["pro"].yearly_discount_pct) == (False, 16)
    limits = {
        f"{s.service_code}.{limit.key}": limit for s in plans["business"].services for limit in s.limits
    }
    assert limits["blog.posts"].unlimited
    assert limits["media.storage_mb"].value == 512_000
    assert answer.catalog_version == CATALOG.version


async def test_every_list_comes_in_pages(room: Room) -> None:
    first = await room.catalog.ListPlans(pb.ListPlansRequest(page_size=3))
    rest = await room.catalog.ListPlans(pb.ListPlansRequest(page_size=3, page_token=first.next_page_token))
    packs = await room.catalog.ListCreditPacks(pb.ListCreditPacksRequest())
    addons = await room.catalog.ListAddons(pb.ListAddonsRequest())
    costs = await room.catalog.ListCreditCosts(pb.ListCreditCostsRequest())

    assert [plan.code for plan in [*first.plans, *rest.plans]] == ["free", "starter", "pro", "business"]
    assert rest.next_page_token == ""
    assert [(p.code, p.credits, p.total_display) for p in packs.credit_packs] == [
        ("small", 500, "₹415.00"),
        ("medium", 2_200, "₹1,660.00"),
        ("large", 6_000, "₹4,150.00"),
    ]
    assert {a.code: (f"{a.service_code}.{a.limit_key}", a.quantity, a.credits) for a in addons.addons} == {
        "storage": ("media.storage_mb", 10_240, 400),
        "seat": ("platform.seats", 1, 300),
        "email_sends": ("comms.email_sends", 10_000, 250),
        "blog_posts": ("blog.posts", 25, 150),
        "custom_domain": ("platform.custom_domains", 1, 500),
    }
    assert {cost.action: cost.credits for cost in costs.credit_costs}["blog.publish"] == 5
    with pytest.raises(InvalidArgument) as refused:
        await room.catalog.ListPlans(pb.ListPlansRequest(page_token="next"))
    assert refused.value.reason == "PAGE_TOKEN_INVALID"


async def test_a_new_catalogue_reaches_those_who_have_the_plan(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    before = (await room.current(tenant)).entitlements_version
    free = CATALOG.plans["free"]
    roomier = replace(free, limits={**free.limits, "blog.posts": 11})

    async with restored(room):
        wanted = replace(CATALOG, plans={**CATALOG.plans, "free": roomier})
        await actions.apply_catalog(room.engine, wanted, actor="tests", dry_run=False)
        while (await room.current(tenant)).entitlements_version == before:
            await room.reconcile()
        await room.reconcile()

    current = await room.current(tenant)
    checked = await room.ledger.service.CheckLimit(
        ledger_pb2.CheckLimitRequest(tenant_id=tenant, limit_key="blog.posts", requested=1, current_usage=10)
    )
    usage = {f"{each.service_code}.{each.limit.key}": each.limit.value for each in current.usage}
    assert (usage["blog.posts"], current.entitlements_version) == (11, before + 1)
    assert (checked.decision.allowed, checked.decision.limit) == (True, 11)
