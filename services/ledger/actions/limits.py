"""What a tenant may use, and what it has used."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger import errors
from services.ledger.actions import Ledger, unknown_tenant
from services.ledger.rules import limits
from services.ledger.rules.limits import LimitDecision, ServiceEntitlement, decide
from services.ledger.rules.model import GENESIS
from services.ledger.store import entitlements, reads
from shared import clock
from shared.database import transaction


async def set_entitlements(
    ledger: Ledger, tenant_id: str, *, version: int, plan_code: str, services: list[ServiceEntitlement]
) -> tuple[bool, int]:
    """Replace what the tenant may use if `version` is newer: (whether it holds now, the version stored).

    A version is the key of its content: the same one with anything else is refused.
    """
    now = clock.now()
    async with transaction(ledger.engine) as db:
        await entitlements.open_account(db, tenant_id, genesis=GENESIS, now=now)
        stored = await entitlements.lock_version(db, tenant_id)
        if version > stored:
            await entitlements.replace(db, tenant_id, services, version=version, plan_code=plan_code, now=now)
        elif version == stored:
            await _refuse_other_content(db, tenant_id, version, plan_code, services)
    return version >= stored, max(version, stored)


async def get_entitlements(ledger: Ledger, tenant_id: str) -> tuple[int, str, list[ServiceEntitlement]]:
    """(version, plan, services) as pushed last."""
    async with ledger.engine.connect() as db:
        found = await entitlements.find_entitlements(db, tenant_id)
    if found is None:
        raise unknown_tenant(tenant_id)
    return found


async def list_usage(
    ledger: Ledger, tenant_id: str, *, after: str, page: int
) -> list[tuple[str, int, datetime]]:
    """(limit key, used, when it changed), by key; one more than `page` when there are more."""
    async with ledger.engine.connect() as db:
        found = await entitlements.list_usage(db, tenant_id, after=after, page=page + 1)
        if not found and not await reads.has_account(db, tenant_id):
            raise unknown_tenant(tenant_id)
    return found


async def check_limit(
    ledger: Ledger,
    tenant_id: str,
    limit_key: str,
    *,
    requested: int,
    current_usage: int | None,
    max_staleness_ms: int,
) -> tuple[LimitDecision, int, datetime]:
    """(what the limit says about `requested` more, by which version of the entitlements, as of when)."""
    found = await ledger.limit_reads.find(tenant_id, limit_key, max_staleness_ms=max_staleness_ms)
    if found is None:
        raise unknown_tenant(tenant_id)
    state = found.state
    if not state.known:
        raise limits.unknown_limit(limit_key)
    decision = decide(state, requested, found.as_of, current_usage=current_usage)
    return decision, state.entitlements_version, found.as_of


async def _refuse_other_content(
    db: AsyncConnection, tenant_id: str, version: int, plan_code: str, services: list[ServiceEntitlement]
) -> None:
    found = await entitlements.find_entitlements(db, tenant_id)
    if found is None:
        raise unknown_tenant(tenant_id)
    _, known_plan, known = found
    differs = "plan_code" if plan_code != known_plan else "services"
    if differs == "plan_code" or limits.meaning(services) != limits.meaning(known):
        raise errors.IdempotencyKeyReused(
            f"version {version} was set before with other {differs}; changes need a new version",
            field=differs,
            version=version,
        )
