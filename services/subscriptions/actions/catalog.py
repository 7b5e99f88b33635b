"""Reads and applies the catalogue."""

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.rules import catalog as rules
from services.subscriptions.rules.catalog import Catalog, CatalogChange
from services.subscriptions.store import catalog as store
from shared import logs
from shared.database import transaction
from shared.ops import store as ops


async def read_catalog(engine: AsyncEngine) -> Catalog:
    """What is for sale."""
    async with transaction(engine) as db:
        return await store.read_catalog(db)


async def apply_catalog(
    engine: AsyncEngine, wanted: Catalog, *, actor: str, dry_run: bool
) -> list[CatalogChange]:
    """Make what is for sale equal to the file, and answer what differed; equal ones are left untouched."""
    async with transaction(engine) as db:
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
            reason=f"{len(changes)} differences",
            request_id=logs.request_id.get(),
        )
    return changes
