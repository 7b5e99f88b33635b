"""AuditSubscriptions: looks through every tenant's books and opens findings; it repairs nothing.

Tenants are read in pages, each page at one moment; the ledger is asked afterwards, outside of transactions. Between
the two a tenant may change, so a finding is opened only if a second look, a moment later, finds it as well. A run whose
time is too short ends where it stopped, and the next one goes on there.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.rules import findings as rules
from services.subscriptions.rules.catalog import Catalog
from services.subscriptions.rules.findings import Books, Found, Held, LedgerView, OpenFinding
from services.subscriptions.rules.policy import Policy
from services.subscriptions.store import audit as store
from services.subscriptions.store import catalog as catalog_store
from shared import logs
from shared.clock import Clock
from shared.database import transaction
from shared.errors import BillingError, NotFound
from shared.ops import store as ops

AUDITOR = "subscriptions.audit"
WALK = "audit"
TENANTS_PAGE = 100
# Calls to the ledger at once: the product's own come first.
AT_ONCE = 4
SECOND_LOOK_AFTER_SECONDS = 1.0
# So many silences in a row and the ledger is not asked again in this run.
SILENCES_MAX = 3
FINDINGS_SHOWN = 50
# A condition has one who reports it: what events opened is CheckHealth's.
TOLD = (rules.OURS | rules.WITH_LEDGER) - rules.TOLD_ELSEWHERE

_log = logs.get_logger()


@dataclass(frozen=True)
class Audited:
    """What a run came to."""

    tenants: int
    opened: int
    resolved: int
    open: list[OpenFinding]
    more: int
    # Tenants whose credits and limits in the ledger could not be compared.
    without_ledger: int
    finished: bool


@dataclass(frozen=True)
class _Seen:
    """What one look at a tenant found, and whether the ledger had its say."""

    found: dict[str, Found]
    whole: bool


@dataclass
class _Run:
    engine: AsyncEngine
    ledger: Ledger
    clock: Clock
    catalog: Catalog
    policy: Policy
    ends_at: float
    seen: dict[str, _Seen] = field(default_factory=dict)
    silences: int = 0

    async def look(self, tenants: Sequence[str]) -> dict[str, _Seen]:
        """One look at a few tenants."""
        async with store.snapshot(self.engine) as db:
            books = await store.read_books(db, tenants, completed_since=self.clock() - rules.IN_FLIGHT)
        few = asyncio.Semaphore(AT_ONCE)

        async def judged(one: Books) -> _Seen:
            async with few:
                view = None if self.silences >= SILENCES_MAX else await self._ask(one.row.tenant_id)
            found = rules.judge(one, self.catalog, self.clock(), view, self.policy.ladder)
            return _Seen({each.check_type: each for each in found}, whole=view is not None)

        seen = await asyncio.gather(*(judged(one) for one in books))
        return {one.row.tenant_id: each for one, each in zip(books, seen, strict=True)}

    async def _ask(self, tenant_id: str) -> LedgerView | None:
        try:
            view = await ask_ledger(self.ledger, tenant_id)
        except BillingError as error:
            self.silences += 1
            _log.warning("ledger_silent", tenant_id=tenant_id, reason=error.reason)
            return None
        self.silences = 0
        return view


async def ask_ledger(ledger: Ledger, tenant_id: str) -> LedgerView:
    """What the ledger holds of a tenant; nothing when it has no account."""
    try:
        return LedgerView(
            await ledger.get_entitlements(tenant_id),
            tuple(await ledger.list_grants(tenant_id)),
            await ledger.list_usage(tenant_id),
        )
    except NotFound:
        return LedgerView(Held(0, "", ()), ())


async def audit_subscriptions(
    engine: AsyncEngine,
    ledger: Ledger,
    policy: Policy,
    *,
    clock: Clock,
    dry_run: bool,
    time_left_seconds: float,
) -> Audited:
    """Open what is wrong, close in the auditor's name what no longer holds, and answer what stands open of both."""
    async with transaction(engine) as db:
        catalog = await catalog_store.read_catalog(db, with_retired=True)
        begun_at = await store.find_place(db, WALK)
    run = _Run(engine, ledger, clock, catalog, policy, time.monotonic() + time_left_seconds / 2)
    place, finished = await _walk(run, begun_at)
    await _look_again(run)
    opened, resolved = await _write(run, dry_run=dry_run)
    async with transaction(engine) as db:
        if not dry_run:
            await store.save_place(db, WALK, "" if finished else place)
        shown = await store.list_open(db, checks=TOLD, limit=FINDINGS_SHOWN)
        standing = await store.count_open(db, checks=TOLD)
    audited = Audited(
        tenants=len(run.seen),
        opened=opened,
        resolved=resolved,
        open=shown,
        more=standing - len(shown),
        without_ledger=sum(not seen.whole for seen in run.seen.values()),
        finished=finished,
    )
    _log.info(
        "audited", tenants=audited.tenants, opened=opened, resolved=resolved, open=standing, finished=finished
    )
    return audited


async def _walk(run: _Run, begun_at: str) -> tuple[str, bool]:
    """Every tenant once, from where the last run stopped and round to there; (place, whether it came round)."""
    place, round_again = begun_at, begun_at != ""
    while time.monotonic() < run.ends_at:
        async with transaction(run.engine) as db:
            tenants = await store.list_tenants(db, after=place, limit=TENANTS_PAGE)
        fresh = [tenant for tenant in tenants if tenant not in run.seen]
        run.seen |= await run.look(fresh)
        if len(fresh) < len(tenants):
            return place, True
        if len(tenants) < TENANTS_PAGE:
            if not round_again:
                return "", True
            place, round_again = "", False
        else:
            place = tenants[-1]
    return place, False


async def _look_again(run: _Run) -> None:
    """What is not open yet must be found twice: the first look may have come between cause and effect."""
    suspects = [tenant for tenant, seen in run.seen.items() if seen.found]
    if not suspects:
        return
    async with transaction(run.engine) as db:
        known = {
            (each.tenant_id, each.check_type)
            for page in _pages(suspects)
            for each in await store.list_open(db, tenants=page)
        }
    new = [t for t in suspects if any((t, check) not in known for check in run.seen[t].found)]
    if not new:
        return
    await asyncio.sleep(SECOND_LOOK_AFTER_SECONDS)
    for page in _pages(new):
        for tenant, again in (await run.look(page)).items():
            first = run.seen[tenant]
            both = {check: found for check, found in again.found.items() if check in first.found}
            run.seen[tenant] = _Seen(both, first.whole and again.whole)


async def _write(run: _Run, *, dry_run: bool) -> tuple[int, int]:
    """(findings opened, findings resolved): what a silent ledger kept from being judged stays as it is."""
    opened = resolved = 0
    for page in _pages(run.seen):
        async with transaction(run.engine) as db:
            checks = rules.OURS | rules.WITH_LEDGER
            known = {
                (e.tenant_id, e.check_type) for e in await store.list_open(db, checks=checks, tenants=page)
            }
            found = {(t, check): one for t in page for check, one in run.seen[t].found.items()}
            over = {
                (tenant, check)
                for tenant, check in known - found.keys()
                if tenant is not None and (check in rules.OURS or run.seen[tenant].whole)
            }
            opened += len(found.keys() - known)
            resolved += len(over)
            if dry_run:
                continue
            for one in found.values():
                await ops.open_finding(
                    db,
                    room=store.ROOM,
                    check_type=one.check_type,
                    tenant_id=one.tenant_id,
                    severity=one.severity,
                    observed=one.observed,
                )
            for tenant, check in sorted(over):
                await ops.resolve_finding(
                    db, room=store.ROOM, check_type=check, tenant_id=tenant, resolved_by=AUDITOR
                )
    return opened, resolved


def _pages(tenants: Iterable[str]) -> list[list[str]]:
    ordered = sorted(tenants)
    return [ordered[start : start + TENANTS_PAGE] for start in range(0, len(ordered), TENANTS_PAGE)]
