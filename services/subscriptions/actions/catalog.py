"""Reads and applies the catalogue."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.rules import catalog as rules
from services.subscriptions.rules.catalog import Catalog, CatalogChange
from services.subscriptions.store import catalog as store
from services.subscriptions.store import keys
from shared import logs
from shared.database import transaction
from shared.ops import store as ops

METHOD = "ApplyCatalog"
# The catalogue is no tenant's.
NO_TENANT = ""


@dataclass(frozen=True)
class CatalogApplied:
    """What differed, and the version that stands now."""

    changes: list[CatalogChange]
    version: str
    replayed: bool


async def read_catalog(engine: AsyncEngine) -> Catalog:
    """What is for sale."""
    async with transaction(engine) as db:
        return await store.read_catalog(db)


async def apply_catalog(
    engine: AsyncEngine, wanted: Catalog, *, actor: str, dry_run: bool
) -> list[CatalogChange]:
    """Make what is for sale equal to the file, and answer what differed; equal ones are left untouched."""
    async with transaction(engine) as db:
        return await _apply(db, wanted, actor=actor, reason=None, dry_run=dry_run)


async def apply_catalog_once(
    engine: AsyncEngine, wanted: Catalog, *, idempotency_key: str, actor: str, reason: str, dry_run: bool
) -> CatalogApplied:
    """The same under a key: a repeat is answered as the first call was; a dry run leaves no trace."""
    request = {"actor": actor, "reason": reason}
    async with transaction(engine) as db:
        await store.lock_catalog(db)
        answer = await keys.find_answer(
            db, tenant_id=NO_TENANT, method=METHOD, key=idempotency_key, request=request
        )
        if answer is not None:
            changes = [CatalogChange(**change) for change in answer["changes"]]
            return CatalogApplied(changes, answer["version"], replayed=True)
        before = await store.read_catalog(db)
        changes = await _apply(db, wanted, actor=actor, reason=reason, dry_run=dry_run)
        if dry_run:
            return CatalogApplied(changes, before.version, replayed=False)
        kept: Mapping[str, Any] = {
            "changes": [asdict(change) for change in changes],
            "version": wanted.version,
        }
        await keys.insert_answer(
            db, tenant_id=NO_TENANT, method=METHOD, key=idempotency_key, request=request, answer=kept
        )
    return CatalogApplied(changes, wanted.version, replayed=False)


async def _apply(
    db: AsyncConnection, wanted: Catalog, *, actor: str, reason: str | None, dry_run: bool
) -> list[CatalogChange]:
    await store.lock_catalog(db)
    changes = rules.differences(await store.read_catalog(db), wanted)
    if not changes or dry_run:
        return changes
    await store.write_catalog(db, wanted, actor=actor)
    await ops.record_audit(
        db,
        room="subscriptions",
        action="catalog.applied",
        actor_type="operator",
        actor_id=actor,
        tenant_id=None,
        resource_type="catalog",
        resource_id=wanted.version,
        before={f"{change.kind} {change.code}": change.before for change in changes},
        after={f"{change.kind} {change.code}": change.after for change in changes},
        reason=reason or f"{len(changes)} differences",
        request_id=logs.request_id.get(),
    )
    return changes
