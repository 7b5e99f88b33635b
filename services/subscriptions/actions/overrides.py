"""SetOverride, RemoveOverride, and the end of those whose time is over."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.errors import UnknownOverride
from services.subscriptions.rules.catalog import Catalog
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import keys
from services.subscriptions.store import overrides as store
from services.subscriptions.store import subscriptions as subscription_store
from services.subscriptions.store.overrides import TenantOverride
from shared import logs
from shared.database import transaction
from shared.errors import InvalidArgument
from shared.ids import new_id
from shared.ops import store as ops

SET = "SetOverride"
REMOVE = "RemoveOverride"

_log = logs.get_logger()


@dataclass(frozen=True)
class Wish:
    """The limit that an operator asks for; a value of None is no limit."""

    service: str
    key: str
    value: int | None
    expires_at: datetime | None
    actor: str
    reason: str

    def as_request(self) -> dict[str, Any]:
        """What a repeat must ask for too."""
        return {
            "service_code": self.service,
            "limit.key": self.key,
            "limit.value": self.value,
            "expires_at": self.expires_at.isoformat() if self.expires_at else None,
            "actor": self.actor,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Overridden:
    """The override, and the version of the entitlements that carry it."""

    override_id: str
    version: int
    replayed: bool


async def set_override(
    engine: AsyncEngine, *, tenant_id: str, idempotency_key: str, wish: Wish, now: datetime
) -> Overridden:
    """Set a limit for one tenant in place of the plan's, and of an earlier override of it."""
    request = wish.as_request()
    async with transaction(engine) as db:
        row = await subscription_store.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(
            db, tenant_id=tenant_id, method=SET, key=idempotency_key, request=request
        )
        if answer is not None:
            return Overridden(answer["override_id"], answer["version"], replayed=True)
        _check(wish, await catalog_store.read_catalog(db, with_retired=True), now)
        before = await store.find_live(db, tenant_id, wish.service, wish.key)
        if before is not None:
            await store.close_override(db, before.id, now)
        after = TenantOverride(
            id=new_id("ovr"),
            tenant_id=tenant_id,
            service_id=wish.service,
            limit_key=wish.key,
            value=wish.value,
            expires_at=wish.expires_at,
            reason=wish.reason,
            actor=wish.actor,
        )
        await store.insert_override(db, after, now)
        await _record(db, "override.set", before, after, actor=wish.actor, reason=wish.reason)
        version = (await standing.rebuild(db, row, now)).version
        await keys.insert_answer(
            db,
            tenant_id=tenant_id,
            method=SET,
            key=idempotency_key,
            request=request,
            answer={"override_id": after.id, "version": version},
        )
    return Overridden(after.id, version, replayed=False)


def _check(wish: Wish, catalog: Catalog, now: datetime) -> None:
    wrong = []
    if wish.service not in catalog.services:
        known = ", ".join(sorted(catalog.services))
        wrong.append(("service_code", f"the catalogue has no service {wish.service}: it has {known}"))
    elif f"{wish.service}.{wish.key}" not in catalog.limits:
        known = ", ".join(
            sorted(each.key for each in catalog.limits.values() if each.service == wish.service)
        )
        wrong.append(("limit.key", f"{wish.service} has no limit {wish.key}: it has {known}"))
    if wish.value is not None and wish.value < 0:
        wrong.append(("limit.value", "must not be negative; 0 allows nothing"))
    if wish.expires_at is not None and wish.expires_at <= now:
        wrong.append(("expires_at", "must be in the future; leave it out for a limit without an end"))
    if wrong:
        raise InvalidArgument("this limit cannot be set", violations=wrong)


async def remove_override(
    engine: AsyncEngine,
    *,
    tenant_id: str,
    idempotency_key: str,
    override_id: str,
    actor: str,
    reason: str,
    now: datetime,
) -> Overridden:
    """Give a tenant the plan's limit back."""
    request = {"override_id": override_id, "actor": actor, "reason": reason}
    async with transaction(engine) as db:
        row = await subscription_store.lock_subscription(db, tenant_id)
        answer = await keys.find_answer(
            db, tenant_id=tenant_id, method=REMOVE, key=idempotency_key, request=request
        )
        if answer is not None:
            return Overridden(override_id, answer["version"], replayed=True)
        before = await store.find_override(db, tenant_id, override_id)
        if before is None:
            raise UnknownOverride(f"no override {override_id} of this tenant holds", override_id=override_id)
        await store.close_override(db, before.id, now)
        await _record(db, "override.removed", before, None, actor=actor, reason=reason)
        version = (await standing.rebuild(db, row, now)).version
        await keys.insert_answer(
            db,
            tenant_id=tenant_id,
            method=REMOVE,
            key=idempotency_key,
            request=request,
            answer={"version": version},
        )
    return Overridden(override_id, version, replayed=False)


async def lapse_overrides(engine: AsyncEngine, *, now: datetime, limit: int) -> list[str]:
    """Close overrides whose time is over; answers the tenants whose entitlements may have changed."""
    async with transaction(engine) as db:
        tenants = await store.list_tenants_with_expired(db, now, limit=limit)
    lapsed = []
    for tenant_id in tenants:
        try:
            await _lapse(engine, tenant_id, now)
        except Exception:
            _log.exception("override_not_lapsed", tenant_id=tenant_id)  # the next run tries again
        else:
            lapsed.append(tenant_id)
    return lapsed


async def _lapse(engine: AsyncEngine, tenant_id: str, now: datetime) -> None:
    async with transaction(engine) as db:
        row = await subscription_store.lock_subscription(db, tenant_id)
        for override in await store.list_expired(db, tenant_id, now):
            await store.close_override(db, override.id, now)
            await _record(db, "override.lapsed", override, None, actor="", reason="its time is over")
        await standing.rebuild(db, row, now)


async def _record(
    db: AsyncConnection,
    action: str,
    before: TenantOverride | None,
    after: TenantOverride | None,
    *,
    actor: str,
    reason: str,
) -> None:
    about = after or before
    await ops.record_audit(
        db,
        room=standing.ROOM,
        action=action,
        actor_type="operator" if actor else "system",
        actor_id=actor or "reconcile",
        tenant_id=about.tenant_id if about else None,
        resource_type="override",
        resource_id=about.id if about else "",
        before=_audited(before),
        after=_audited(after),
        reason=reason,
        request_id=logs.request_id.get(),
    )


def _audited(override: TenantOverride | None) -> dict[str, Any] | None:
    if override is None:
        return None
    return {
        "override_id": override.id,
        "limit": f"{override.service_id}.{override.limit_key}",
        "value": override.value,
        "unlimited": override.value is None,
        "expires_at": override.expires_at.isoformat() if override.expires_at else None,
    }
