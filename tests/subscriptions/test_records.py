"""Who changed what and why, page by page; and the catalogue, applied once under a key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.catalogue import load_catalog
from shared.errors import FailedPrecondition, InvalidArgument
from tests.subscriptions.conftest import Room


async def records(running: Room, /, **asked: Any) -> pb.ListAuditLogResponse:
    return await running.admin.ListAuditLog(pb.ListAuditLogRequest(**asked))


async def rebuild(room: Room, tenant: str, key: str) -> None:
    await room.admin.RebuildEntitlements(
        pb.RebuildEntitlementsRequest(
            tenant_id=tenant, idempotency_key=key, actor="asha", reason=f"because of {key}"
        )
    )


async def test_every_change_is_listed_with_who_what_before_after_and_why(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    await rebuild(room, tenant, "ticket-1")
    subscription_id = (await room.checkout(tenant)).checkout.subscription_id
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card"):
        await room.deliver(delivery)

    found = (await records(room, tenant_id=tenant)).entries

    assert {entry.tenant_id for entry in found} == {tenant}
    moments = [entry.created_at.ToDatetime() for entry in found]
    assert moments == sorted(moments, reverse=True)
    by_action = {entry.action: entry for entry in found}
    rebuilt = by_action["entitlements.rebuilt"]
    assert (rebuilt.actor_type, rebuilt.actor_id, rebuilt.reason) == (
        *("operator", "asha"),
        "because of ticket-1",
    )
    assert json.loads(rebuilt.before_json) == {"entitlements_version": 1}
    assert json.loads(rebuilt.after_json) == {"entitlements_version": 2}
    moved = [entry for entry in found if "plan_id" in json.loads(entry.after_json or "{}")]
    assert {json.loads(entry.after_json)["plan_id"] for entry in moved} >= {"pro"}
    assert found[-1].action == "tenant.provisioned"


async def test_all_rooms_are_listed_by_name_with_the_request_of_each(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    await rebuild(room, tenant, "ticket-1")
    room.change(
        "INSERT INTO billing_audit_log (id, room, action, actor_type, actor_id, tenant_id, resource_type,"
        " resource_id, metadata) VALUES (%s, 'ledger', 'adjust_credits', 'operator', 'asha', %s, 'account', %s, '{}')",
        *(f"aud_{tenant}", tenant, tenant),
    )

    found = (await records(room, tenant_id=tenant)).entries

    assert {entry.room for entry in found} == {"ledger", "subscriptions"}
    [foreign] = (await records(room, tenant_id=tenant, room="ledger")).entries
    assert (foreign.action, foreign.before_json, foreign.after_json) == ("adjust_credits", "", "")
    ours = (await records(room, tenant_id=tenant, room="subscriptions")).entries
    assert len(ours) == len(found) - 1
    assert all(entry.request_id.startswith("req_") for entry in ours)


async def test_pages_stay_where_they_are_while_others_write(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    for number in range(5):
        await rebuild(room, tenant, f"ticket-{number}")
    whole = [entry.audit_id for entry in (await records(room, tenant_id=tenant)).entries]

    seen, token = [], ""
    while True:
        page = await records(room, tenant_id=tenant, page_size=2, page_token=token)
        seen += [entry.audit_id for entry in page.entries]
        assert len(page.entries) <= 2
        await rebuild(room, tenant, f"meanwhile-{len(seen)}")
        if not (token := page.next_page_token):
            break

    assert seen == whole
    assert len(set(seen)) == 6


async def test_an_action_and_a_tenant_narrow_the_list(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    await rebuild(room, tenant, "ticket-1")
    await room.provision(f"{tenant}_other")

    rebuilt = await records(room, tenant_id=tenant, action="entitlements.rebuilt")
    everybody = await records(room, action="tenant.provisioned", page_size=1)

    assert [entry.reason for entry in rebuilt.entries] == ["because of ticket-1"]
    assert [entry.tenant_id for entry in everybody.entries] == [f"{tenant}_other"]


@pytest.mark.parametrize("token", ["1", "nonsense!", "MjAyNg", "MjAyNi0xMS0yMVQwMDowMDowMCBhdWRfMQ"])
async def test_a_token_that_is_not_ours_is_refused(room: Room, token: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await records(room, page_token=token)
    assert refused.value.reason == "PAGE_TOKEN_INVALID"


async def apply(
    room: Room, key: str, *, actor: str = "asha", dry_run: bool = False
) -> pb.ApplyCatalogResponse:
    return await room.admin.ApplyCatalog(
        pb.ApplyCatalogRequest(
            idempotency_key=key, actor=actor, reason="new prices in November", dry_run=dry_run
        )
    )


async def price(room: Room, plan: str) -> int:
    """What a plan costs a month."""
    plans = (await room.catalog.ListPlans(catalog_pb2.ListPlansRequest())).plans
    [found] = [each for each in plans if each.code == plan]
    [monthly] = [each for each in found.prices if each.cycle == catalog_pb2.BILLING_CYCLE_MONTHLY]
    return monthly.amount_paise


async def test_the_catalogue_is_shown_then_applied_once(room: Room, tenant: str) -> None:
    rightful = await price(room, "pro")
    room.change("UPDATE plans SET price_monthly_paise = 100, price_yearly_paise = 1200 WHERE id = 'pro'")

    shown = await apply(room, tenant, dry_run=True)
    assert [(each.kind, each.code, each.change) for each in shown.changes] == [("plan", "pro", "change")]
    assert await price(room, "pro") == 100
    assert shown.catalog_version != load_catalog().version
    applied = await apply(room, tenant)
    assert (list(applied.changes), applied.replayed) == (list(shown.changes), False)
    assert applied.catalog_version == load_catalog().version
    assert await price(room, "pro") == rightful

    room.change("UPDATE plans SET price_monthly_paise = 100, price_yearly_paise = 1200 WHERE id = 'pro'")
    again = await apply(room, tenant)
    assert (again.replayed, list(again.changes)) == (True, list(applied.changes))
    assert await price(room, "pro") == 100, "a repeat is an answer, not an effect"
    with pytest.raises(FailedPrecondition) as reused:
        await apply(room, tenant, actor="eve")
    assert (reused.value.reason, reused.value.metadata["field"]) == ("IDEMPOTENCY_KEY_REUSED", "actor")
    assert len((await apply(room, f"{tenant}-2")).changes) == 1
    assert (await apply(room, f"{tenant}-3")).changes == []

    entry = (await records(room, action="catalog.applied", page_size=1)).entries[0]
    assert (entry.actor_id, entry.reason, entry.tenant_id) == ("asha", "new prices in November", "")
    assert "plan pro" in json.loads(entry.before_json)
