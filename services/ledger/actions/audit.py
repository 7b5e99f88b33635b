"""The auditor: reads what was written since its last run and opens findings; it never repairs.

A finding whose check holds again is closed in the auditor's name, unless it froze an account.

Its cost follows writes. Mirrors, lots, holds and last lines are compared for every tenant in every run, since a hand
that edits them moves no seq; lines only after the last one that was checked, whose hash is kept; transactions by when
they were decided. A line or transaction that is changed after it was checked is found by VerifyLedger, and by each
run's second task: it reads the tenants that were not read longest once more from their first line, a bounded number
of lines each time, so that everything is read again eventually.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.actions import Ledger, settling
from services.ledger.rules import verify
from services.ledger.rules.evidence import Line
from services.ledger.rules.findings import OVERDUE_AFTER, Found, OpenCritical, mended, one_each
from services.ledger.store import findings
from services.ledger.store.audit import lines, mirrors, progress, standing
from services.ledger.store.audit.found import snapshot
from services.ledger.store.audit.mirrors import Point, Reading
from shared import clock, logs
from shared.database import transaction

TENANTS_PAGE = 500
# Lines that are checked at a time: their hashes are recomputed between two turns of the event loop.
LINES_PAGE = 500
AGAIN_TENANTS = 200
AGAIN_LINES = 200_000
FINDINGS_PAGE = 1000
# A sum that was wrong is taken anew in every run for this long after its finding was closed.
SUMS_DOUBTED = timedelta(days=7)
# A transaction is seen later than it was decided, by no longer than a statement may take.
OVERLAP = timedelta(minutes=10)

START = Point(seq=0, head=verify.GENESIS, posted=0, held=0, at=datetime.fromtimestamp(0, UTC))
# Each is an alert of its own, so that a second tenant's is heard while the first one's stands.
CRITICAL_SHOWN = 50
_FAR = datetime(9000, 1, 1, tzinfo=UTC)

_log = logs.get_logger()


@dataclass(slots=True)
class Audited:
    """What a run came to."""

    tenants: int = 0
    lines: int = 0  # read because they are new
    lines_again: int = 0
    opened: int = 0
    closed: int = 0  # in the auditor's name, since their checks hold again
    open: int = 0
    finished: bool = False
    critical: list[OpenCritical] = field(default_factory=list)  # the oldest first
    critical_more: int = 0  # beyond those


@dataclass(slots=True)
class _Run:
    ledger: Ledger
    dry_run: bool
    ends_at: float
    began: datetime
    audited: Audited = field(default_factory=Audited)
    found: dict[tuple[str, str], Found] = field(default_factory=dict)
    # Tenants by check: whose finding was open when the run began, and whose sum was doubted lately.
    doubted: dict[str, set[str]] = field(default_factory=dict)
    sums: list[str] = field(default_factory=list)

    @property
    def has_time(self) -> bool:
        return asyncio.get_running_loop().time() < self.ends_at

    async def keep(self, found: Sequence[Found]) -> None:
        """Opens findings, tenant by tenant; a dry run only counts them."""
        by_tenant: dict[str, list[Found]] = {}
        for each in one_each(found):
            if (each.tenant_id, each.check_type) not in self.found:
                by_tenant.setdefault(each.tenant_id, []).append(each)
                self.found[each.tenant_id, each.check_type] = each
        for tenant_id, own in sorted(by_tenant.items()):
            async with transaction(self.ledger.engine) as db:
                if self.dry_run:
                    known = await findings.list_known(db, tenant_id)
                    self.audited.opened += sum(each.check_type not in known for each in own)
                else:
                    _, opened = await findings.open_all(
                        db, tenant_id, own, now=clock.now(), request_id=logs.request_id.get()
                    )
                    self.audited.opened += opened

    async def close(self, mended: Sequence[tuple[str, str]]) -> None:
        """Closes findings of (tenant, check) that hold again."""
        for tenant_id, check_type in () if self.dry_run else mended:
            async with transaction(self.ledger.engine) as db:
                self.audited.closed += await findings.close(db, tenant_id, check_type)


async def audit_integrity(ledger: Ledger, *, dry_run: bool, time_left_seconds: float) -> Audited:
    """Checks what was written since the last run, and some of what was checked before; never repairs.

    Stops when half of the time is used, or when all is done; the next run goes on where this one stopped.
    """
    now = asyncio.get_running_loop().time()
    run = _Run(ledger, dry_run, ends_at=now + time_left_seconds / 2, began=clock.now())
    if not dry_run:
        await _settle(ledger, time_left_seconds / 4)
    await _recall(run)
    walked = await _walk_tenants(run)
    looked = await _walk_transactions(run)
    run.audited.finished = walked and looked
    await _look_at_ends(run)
    await _look_at_sums(run)
    await _read_again(run)
    await _conclude(run)
    _log.info(
        "audited",
        tenants=run.audited.tenants,
        lines=run.audited.lines,
        lines_again=run.audited.lines_again,
        opened=run.audited.opened,
        closed=run.audited.closed,
        finished=run.audited.finished,
    )
    return run.audited


async def _settle(ledger: Ledger, time_left_seconds: float) -> None:
    try:
        await settling.settle_expired(ledger, dry_run=False, time_left_seconds=time_left_seconds)
    except Exception as error:
        # One tenant's trouble is what the audit is for; what stays due for long is a finding.
        _log.warning("settling_failed", error=logs.brief(error))


async def _recall(run: _Run) -> None:
    """Which findings this run may close: none that is opened while it looks."""
    async with run.ledger.engine.connect() as db:
        for check_type, tenant_id, is_open in await findings.list_doubted(db, since=SUMS_DOUBTED):
            if is_open:
                run.doubted.setdefault(check_type, set()).add(tenant_id)
            if check_type == "ledger_sum_mismatch":
                run.sums.append(tenant_id)


async def _look_at_ends(run: _Run) -> None:
    """What should have been settled long ago, and accounts that are gone."""
    doubted = sorted(run.doubted.get("overdue_expiry", ()))
    late = {"offset": clock.offset(), "grace": OVERDUE_AFTER}
    async with snapshot(run.ledger.engine) as db:
        overdue = await mirrors.list_overdue(db, page=FINDINGS_PAGE, **late)
        still = await mirrors.list_still_overdue(db, doubted, **late)
        missing = await mirrors.list_missing(db, page=FINDINGS_PAGE)
    await run.keep(overdue + missing)
    await run.close([(tenant_id, "overdue_expiry") for tenant_id in doubted if tenant_id not in still])


async def _look_at_sums(run: _Run) -> None:
    """Sums that were doubted lately, since they are taken anew only when all of a tenant's lines are read."""
    for tenant_id in sorted(run.sums):
        if not run.has_time:
            return
        async with snapshot(run.ledger.engine) as db:
            found = await standing.check_sums(db, [tenant_id])
        await run.keep(found)
        if not found and tenant_id in run.doubted.get("ledger_sum_mismatch", ()):
            await run.close([(tenant_id, "ledger_sum_mismatch")])


async def _walk_tenants(run: _Run) -> bool:
    """Compares every tenant and reads the new lines; whether the walk came to its end."""
    engine = run.ledger.engine
    async with engine.connect() as db:
        after, _ = await progress.find_walk(db, "tenants")
    begun_at = after
    while run.has_time:
        async with snapshot(engine) as db:
            tenants = await mirrors.list_tenants(db, after=after, page=TENANTS_PAGE)
            compared = await mirrors.compare(db, tenants)
            await run.keep(compared)
            await run.close(mended(run.doubted, compared, tenants))
            changed = await mirrors.list_changed(db, tenants, START)
            done = await _read(run, db, changed, run_out=lambda: not run.has_time)
        run.audited.tenants += len(tenants)
        if not done:
            return False
        after = tenants[-1] if len(tenants) == TENANTS_PAGE else ""
        if not run.dry_run:
            async with transaction(engine) as db:
                await progress.advance_walk(db, "tenants", tenant_id=after, now=clock.now())
        if after == "":
            # Those before the place where the run before had stopped come next.
            if begun_at == "":
                return True
            begun_at = ""
    return False


async def _read(
    run: _Run, db: AsyncConnection, readings: list[Reading], *, run_out: Callable[[], bool]
) -> bool:
    """Checks the lines that each reading still has to do, in one snapshot; False when the time was too short."""
    begun = {each.tenant_id: each.point.seq for each in readings}
    left = list(readings)
    while left:
        if run_out():
            return False
        windows, rest = _cut(left)
        windows = await _whole(db, windows)
        found, read = await examine(db, windows, begun)
        _count(run, windows[0][0].again, read)
        await run.keep(found)
        rest = [each for each, _ in windows if each.point.seq < each.until] + rest
        await _save(run, [reading for reading, _ in windows])
        left = rest
    return True


async def examine(
    db: AsyncConnection, windows: list[tuple[Reading, int]], begun: Mapping[str, int]
) -> tuple[list[Found], int]:
    """(what is wrong with each window of lines, how many were read); each reading moves to the end of its window.

    Where that is the last one, the tenant's lots and holds are compared: with all lines, or those after `begun`.
    """
    found = await lines.check(db, windows)
    read = await lines.list_lines(db, windows)
    for reading, until in windows:
        found += _advance(reading, until, read[reading.tenant_id])
    ended = [reading for reading, _ in windows if reading.point.seq >= reading.until]
    found += await _check_ended(db, ended, begun)
    return found, sum(map(len, read.values()))


def _cut(readings: Sequence[Reading]) -> tuple[list[tuple[Reading, int]], list[Reading]]:
    """(up to a page of lines as windows, each up to a line; the readings that have none in it)."""
    windows: list[tuple[Reading, int]] = []
    room = LINES_PAGE
    for position, reading in enumerate(readings):
        if room <= 0:
            return windows, list(readings[position:])
        until = min(reading.until, reading.point.seq + room)
        windows.append((reading, until))
        room -= until - reading.point.seq
    return windows, []


async def _whole(db: AsyncConnection, windows: list[tuple[Reading, int]]) -> list[tuple[Reading, int]]:
    """The same windows, none ending inside a transaction."""
    cut = [(each.tenant_id, until) for each, until in windows if until < each.until]
    ends = await lines.list_ends(db, cut) if cut else {}
    return [(each, min(each.until, ends.get(each.tenant_id, until))) for each, until in windows]


def _advance(reading: Reading, until: int, read: Sequence[Line]) -> list[Found]:
    """Moves the reading to the end of its window; what its hashes disagree about."""
    point, tenant_id = reading.point, reading.tenant_id
    head, wrong = verify.follow(point.head, read)
    found = [Found(tenant_id, "chain_mismatch", {"seq": seq}) for seq in wrong]
    if until == reading.until and head != reading.head:
        observed = {"seq": until, "hash": head.hex(), "expected": reading.head.hex()}
        found.append(Found(tenant_id, "chain_mismatch", observed))
    last = read[-1] if read else None
    # From here on what is stored is taken for granted: what is wrong was said.
    reading.point = Point(
        seq=until,
        head=reading.head if until == reading.until else head,
        posted=last.account_posted_after if last else point.posted,
        held=last.account_held_after if last else point.held,
        at=max(point.at, last.at) if last else point.at,
    )
    return found


async def _check_ended(db: AsyncConnection, ended: list[Reading], begun: Mapping[str, int]) -> list[Found]:
    """What lots, holds and sums say of tenants whose lines were all read."""
    if not ended:
        return []
    whole = [each for each in ended if each.again or begun[each.tenant_id] == 0]
    found = await standing.check(
        db, [(each, 0 if each in whole else begun[each.tenant_id]) for each in ended]
    )
    return found + await standing.check_whole(db, [each.tenant_id for each in whole])


async def _save(run: _Run, readings: list[Reading]) -> None:
    if run.dry_run:
        return
    for each in readings:
        if each.again and each.point.seq >= each.until:
            each.point = START
            each.until = 0
    async with transaction(run.ledger.engine) as db:
        await progress.save(db, readings, start=START, now=clock.now())


def _count(run: _Run, again: bool, read: int) -> None:
    if again:
        run.audited.lines_again += read
    else:
        run.audited.lines += read


async def _walk_transactions(run: _Run) -> bool:
    """Looks for transactions that no operation wrote, by when they were decided; whether it came to the present."""
    engine = run.ledger.engine
    async with engine.connect() as db:
        _, until = await progress.find_walk(db, "transactions")
        since, present = await progress.find_span(db, until)
    step = timedelta(minutes=10)
    since -= OVERLAP
    while run.has_time:
        ends = since + step if since + step < present else _FAR
        began = asyncio.get_running_loop().time()
        async with snapshot(engine) as db:
            strays = await progress.list_strays(db, since=since, until=ends, page=FINDINGS_PAGE)
            moved = sorted({found.tenant_id for found, moves in strays if moves})
            found = [each for each, _ in strays] + await standing.check_sums(db, moved)
        await run.keep(found)
        since = min(ends, present - OVERLAP)
        if not run.dry_run:
            async with transaction(engine) as db:
                await progress.advance_walk(db, "transactions", until=since, now=clock.now())
        if ends == _FAR:
            return True
        # Years without a transaction cost a few looks, a busy hour several.
        quick = asyncio.get_running_loop().time() - began < 0.5
        step = step * 2 if quick else max(step / 2, timedelta(minutes=1))
    return False


async def _read_again(run: _Run) -> None:
    """Reads the lines of the tenants that were not read longest once more, from the first."""
    engine = run.ledger.engine
    ends_at_lines = run.audited.lines_again + AGAIN_LINES
    async with snapshot(engine) as db:
        # Not those that this run was the first to read.
        due = await progress.list_due_again(db, before=run.began, page=AGAIN_TENANTS)
        await _read(
            run,
            db,
            due,
            run_out=lambda: not run.has_time or run.audited.lines_again >= ends_at_lines,
        )


async def _conclude(run: _Run) -> None:
    """What is open now, whoever found it."""
    async with run.ledger.engine.connect() as db:
        run.audited.open = await findings.count_open(db)
        critical, count = await findings.list_critical(db, limit=CRITICAL_SHOWN)
        if run.dry_run:
            for each in run.found.values():
                if each.severity == "critical" and each.check_type not in await findings.list_known(
                    db, each.tenant_id
                ):
                    critical.insert(0, OpenCritical("", each.tenant_id, each.check_type, each.observed))
                    count += 1
    run.audited.critical = critical[:CRITICAL_SHOWN]
    run.audited.critical_more = count - len(run.audited.critical)
