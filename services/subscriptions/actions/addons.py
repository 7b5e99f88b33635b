"""BuyAddon, CancelAddon, ResumeAddon and ListTenantAddons."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.actions.addon_charges import (
    BUY,
    RESUME,
    Answer,
    answer_of,
    carry_out,
    read_answer,
    record_audit,
)
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.errors import (
    AddonExists,
    AddonWithoutEffect,
    Conflict,
    UnknownAddon,
    UnknownTenant,
)
from services.subscriptions.rules import addons as rules
from services.subscriptions.rules.addons import Shown, TenantAddon
from services.subscriptions.rules.catalog import Addon
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.requests import assert_same
from services.subscriptions.store import addons as store
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import keys
from services.subscriptions.store import subscriptions as subscription_store
from shared.clock import Clock
from shared.database import transaction
from shared.ids import new_id

CANCEL = "CancelAddon"
# How often a call finishes somebody else's charge before it does its own work.
TURNS = 3


async def buy_addon(
    engine: AsyncEngine,
    ledger: Ledger,
    *,
    tenant_id: str,
    idempotency_key: str,
    addon_code: str,
    units: int,
    clock: Clock,
) -> Answer:
    """Buy an add-on, or resume the purchase under this key; credits that do not cover it leave nothing behind."""
    request = {"addon_code": addon_code, "units": units}
    async with transaction(engine) as db:
        subscription = await subscription_store.lock_subscription(db, tenant_id)
        stored = await keys.find_answer(
            db, tenant_id=tenant_id, method=BUY, key=idempotency_key, request=request
        )
        if stored is not None:
            return read_answer(stored, replayed=True)
        row = await store.find_by_key(db, tenant_id, idempotency_key)
        replayed = row is not None
        if row is None:
            row = await _begin_purchase(db, subscription, idempotency_key, addon_code, units, clock())
        else:
            assert_same(BUY, {"addon_code": row.addon_id, "units": row.units}, request)
            if row.charge is None and not row.was_bought:
                row = await _begin_again(db, subscription, row, idempotency_key)
        if row.charge is None:  # bought so long ago that the answer is no longer kept
            shown = rules.show(row, (await _catalogue(db))[row.addon_id])
            return Answer(shown, shown.credits_per_period, replayed=True)
    settlement = await carry_out(engine, ledger, row.charge, clock)
    return await answer_of(engine, settlement, row, idempotency_key, replayed=replayed)


async def _begin_purchase(
    db: AsyncConnection, subscription: Subscription, key: str, addon_code: str, units: int, now: datetime
) -> TenantAddon:
    addon = await _on_sale(db, subscription, addon_code)
    await _assert_free(db, subscription.tenant_id, addon_code)
    row = TenantAddon(
        id=new_id("tad"),
        tenant_id=subscription.tenant_id,
        addon_id=addon_code,
        units=units,
        status="pending",
        period=0,
        attempt=1,
        next_renewal=None,
        idempotency_key=key,
        paused_at=None,
        charge_credits=rules.price(addon, units),
        charge_key=key,
        created_at=now,
    )
    await store.insert_addon(db, row)
    return row


async def _begin_again(
    db: AsyncConnection, subscription: Subscription, row: TenantAddon, key: str
) -> TenantAddon:
    """Charge what has ended, or what the ledger would not charge before."""
    addon = await _on_sale(db, subscription, row.addon_id)
    await _assert_free(db, row.tenant_id, row.addon_id)
    row = rules.begin(row, rules.price(addon, row.units), key)
    await store.save_addon(db, row)
    return row


async def _on_sale(db: AsyncConnection, subscription: Subscription, addon_code: str) -> Addon:
    catalog = await catalog_store.read_catalog(db)
    addon = catalog.addons.get(addon_code)
    if addon is None:
        raise UnknownAddon(f"no add-on {addon_code} is for sale: see ListAddons", addon=addon_code)
    # A plan that is no longer sold bounds nothing that we know here: then the tenant decides.
    plan = catalog.plans.get(subscription.entitling_plan_id)
    if plan is not None and not rules.has_effect(addon, plan):
        raise AddonWithoutEffect(
            f"the plan {plan.code} has no bound on {addon.limit} that {addon_code} would raise",
            addon=addon_code,
            limit=addon.limit,
            plan_code=plan.code,
        )
    return addon


async def _assert_free(db: AsyncConnection, tenant_id: str, addon_code: str) -> None:
    live = await store.find_live(db, tenant_id, addon_code)
    if live is not None:
        raise AddonExists(
            f"the tenant has {addon_code} already, {live.status}: resume it, or buy anew once it has ended",
            addon=addon_code,
            tenant_addon_id=live.id,
            status=live.status,
        )


async def cancel_addon(
    engine: AsyncEngine,
    ledger: Ledger,
    *,
    tenant_id: str,
    idempotency_key: str,
    tenant_addon_id: str,
    clock: Clock,
) -> tuple[Shown, bool]:
    """End an add-on with its period; answers it and whether an earlier call did so."""
    request = {"tenant_addon_id": tenant_addon_id}
    for _ in range(TURNS):
        async with transaction(engine) as db:
            subscription = await subscription_store.lock_subscription(db, tenant_id)
            stored = await keys.find_answer(
                db, tenant_id=tenant_id, method=CANCEL, key=idempotency_key, request=request
            )
            if stored is not None:
                return rules.shown_from_json(stored), True
            row = await _of_tenant(db, tenant_id, tenant_addon_id)
            if row.charge is None:
                after = rules.cancel(row)
                await _save(db, subscription, row, after, "addon.canceled", clock())
                shown = rules.show(after, (await _catalogue(db))[row.addon_id])
                await keys.insert_answer(
                    db,
                    tenant_id=tenant_id,
                    method=CANCEL,
                    key=idempotency_key,
                    request=request,
                    answer=shown.as_json(),
                )
                return shown, False
        # Whether the period under way is paid decides when the add-on ends.
        await carry_out(engine, ledger, row.charge, clock)
    raise Conflict("the add-on is being charged: ask again with the same key")


async def resume_addon(
    engine: AsyncEngine,
    ledger: Ledger,
    *,
    tenant_id: str,
    idempotency_key: str,
    tenant_addon_id: str,
    clock: Clock,
) -> Answer:
    """Start an add-on again; charges a period unless the running one is paid."""
    request = {"tenant_addon_id": tenant_addon_id}
    for _ in range(TURNS):
        async with transaction(engine) as db:
            subscription = await subscription_store.lock_subscription(db, tenant_id)
            stored = await keys.find_answer(
                db, tenant_id=tenant_id, method=RESUME, key=idempotency_key, request=request
            )
            if stored is not None:
                return read_answer(stored, replayed=True)
            row = await _of_tenant(db, tenant_id, tenant_addon_id)
            ours = row.was_bought and row.charge_key == idempotency_key
            replayed, now = ours, clock()
            if row.charge is None:
                if rules.can_resume_free(row, now):
                    return await _resume_free(db, subscription, row, idempotency_key, now)
                row, ours = await _begin_resumption(db, subscription, row, idempotency_key), True
        if row.charge is not None:
            settlement = await carry_out(engine, ledger, row.charge, clock)
            if ours:
                return await answer_of(engine, settlement, row, idempotency_key, replayed=replayed)
    raise Conflict("the add-on is being charged: ask again with the same key")


async def _resume_free(
    db: AsyncConnection, subscription: Subscription, row: TenantAddon, key: str, now: datetime
) -> Answer:
    after = rules.resume_free(row)
    await _save(db, subscription, row, after, "addon.resumed", now)
    shown = rules.show(after, (await _catalogue(db))[row.addon_id])
    await keys.insert_answer(
        db,
        tenant_id=row.tenant_id,
        method=RESUME,
        key=key,
        request={"tenant_addon_id": row.id},
        answer={"addon": shown.as_json(), "credits": 0},
    )
    return Answer(shown, 0, replayed=False)


async def _begin_resumption(
    db: AsyncConnection, subscription: Subscription, row: TenantAddon, key: str
) -> TenantAddon:
    other = await store.find_charged_for(db, row.tenant_id, key)
    if other is not None and other.was_bought:  # its answer will take the key
        assert_same(RESUME, {"tenant_addon_id": other.id}, {"tenant_addon_id": row.id})
    if not row.was_bought:
        raise UnknownAddon("this purchase was refused: buy the add-on anew", addon=row.id)
    if row.status == "canceled":
        return await _begin_again(db, subscription, row, key)
    # What a tenant has is kept although it is no longer sold.
    addon = (await _catalogue(db))[row.addon_id]
    row = rules.begin(row, rules.price(addon, row.units), key)
    await store.save_addon(db, row)
    return row


async def list_addons(
    engine: AsyncEngine, *, tenant_id: str, before: str | None, limit: int
) -> Sequence[Shown]:
    """A page of a tenant's add-ons, newest first."""
    async with transaction(engine) as db:
        if await subscription_store.find_subscription(db, tenant_id) is None:
            raise UnknownTenant(
                f"tenant {tenant_id} was never provisioned: call ProvisionTenant first", tenant_id=tenant_id
            )
        catalogue = await _catalogue(db)
        rows = await store.list_addons(db, tenant_id, before=before, limit=limit)
    return [rules.show(row, catalogue[row.addon_id]) for row in rows]


async def _of_tenant(db: AsyncConnection, tenant_id: str, tenant_addon_id: str) -> TenantAddon:
    row = await store.find_addon(db, tenant_id, tenant_addon_id)
    if row is None:
        raise UnknownAddon(
            f"the tenant has no add-on {tenant_addon_id}: see ListTenantAddons", addon=tenant_addon_id
        )
    return row


async def _catalogue(db: AsyncConnection) -> dict[str, Addon]:
    return dict((await catalog_store.read_catalog(db, with_retired=True)).addons)


async def _save(
    db: AsyncConnection,
    subscription: Subscription,
    before: TenantAddon,
    after: TenantAddon,
    action: str,
    now: datetime,
) -> None:
    if after == before:
        return
    await store.save_addon(db, after)
    await record_audit(db, before, after, action, by_caller=True)
    await standing.rebuild(db, subscription, now)
