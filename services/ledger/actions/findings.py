"""The ledger's proof of itself, asked for by people, and its findings."""

import asyncio
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger import errors
from services.ledger.actions import Ledger
from services.ledger.rules.findings import FindingRow
from services.ledger.rules.verify import Verifier
from services.ledger.store import findings, history
from services.ledger.store.audit.found import snapshot
from shared import clock, logs
from shared.database import transaction
from shared.errors import InvalidArgument

# Lines are hashed between two turns of the event loop: few enough that no other call waits for it.
LINES_PAGE = 500


@dataclass(frozen=True, slots=True)
class Verification:
    """What the recomputation of a tenant came to."""

    tenant_id: str
    entries: int
    chain_head: bytes
    findings: tuple[FindingRow, ...]
    not_verified: tuple[str, ...]

    @property
    def verified(self) -> bool:
        """Whether everything was checked and agrees."""
        return not self.findings and not self.not_verified


async def verify_ledger(
    ledger: Ledger, *, tenant_id: str | None, after: str, page: int, time_left_seconds: float
) -> tuple[list[Verification], str | None]:
    """(recomputations, of one tenant or a page of all; where the next page begins, None at the end).

    What disagrees is opened as a finding, with the same consequences as the auditor's. A page ends early when the
    time does; a tenant that the time was too short for says after which line.
    """
    ends_at = asyncio.get_running_loop().time() + time_left_seconds * 0.8
    if tenant_id is not None:
        return [await _verify(ledger, tenant_id, ends_at)], None
    async with ledger.engine.connect() as db:
        tenants = await history.list_tenants(db, after=after, page=page + 1)
    verified: list[Verification] = []
    for each in tenants[:page]:
        if verified and asyncio.get_running_loop().time() >= ends_at:
            break
        verified.append(await _verify(ledger, each, ends_at))
    more = len(tenants) > len(verified)
    return verified, verified[-1].tenant_id if more else None


async def recompute(db: AsyncConnection, tenant_id: str, ends_at: float) -> tuple[Verifier, int]:
    """(what was found, how many lines were read), within one snapshot and the time."""
    exists, checked = await history.find_checked(db, tenant_id)
    if not exists:
        raise errors.UnknownTenant(f"tenant {tenant_id} has no account", tenant_id=tenant_id)
    verifier = Verifier(tenant_id, checked=checked)
    ends = await history.list_ends(db, tenant_id)
    entries = 0
    while lines := await history.list_lines(db, tenant_id, after=verifier.seq, page=LINES_PAGE):
        verifier.feed(lines, ends)
        entries += len(lines)
        if asyncio.get_running_loop().time() >= ends_at and len(lines) == LINES_PAGE:
            verifier.stop("ran out of time")
            return verifier, entries
    verifier.close(await history.find_standing(db, tenant_id, booked=verifier.booked))
    return verifier, entries


async def list_findings(
    ledger: Ledger,
    *,
    tenant_id: str | None,
    check_type: str | None,
    severity: str | None,
    resolved: bool,
    before: str | None,
    page: int,
) -> list[FindingRow]:
    """Findings, most severe first, then newest; one more than `page` when there are more."""
    async with ledger.engine.connect() as db:
        if before is not None and await findings.find(db, before) is None:
            raise InvalidArgument(
                "page_token is not one of ours",
                violations=[("page_token", "pass the next_page_token of the page before, or nothing")],
            )
        return await findings.list_findings(
            db,
            tenant_id=tenant_id,
            check_type=check_type,
            severity=severity,
            resolved=resolved,
            before=before,
            page=page + 1,
        )


async def resolve_finding(ledger: Ledger, finding_id: str, *, actor: str, description: str) -> FindingRow:
    """The finding, closed and audited once; who asks again is told who closed it."""
    async with transaction(ledger.engine) as db:
        closed = await findings.resolve(
            db, finding_id, actor=actor, description=description, request_id=logs.request_id.get()
        )
        if closed is None:
            closed = await findings.find(db, finding_id)
    if closed is None:
        raise errors.UnknownFinding(f"there is no finding {finding_id}", finding_id=finding_id)
    return closed


async def _verify(ledger: Ledger, tenant_id: str, ends_at: float) -> Verification:
    async with snapshot(ledger.engine) as db:
        verifier, entries = await recompute(db, tenant_id, ends_at)
    rows: list[FindingRow] = []
    if verifier.found:
        async with transaction(ledger.engine) as db:
            rows, _ = await findings.open_all(
                db, tenant_id, verifier.found, now=clock.now(), request_id=logs.request_id.get()
            )
    return Verification(tenant_id, entries, verifier.head, tuple(rows), tuple(verifier.not_verified))
