"""Pays what is owed to the ledger and the provider: right after the commit that caused it, and by the reconcile job."""

import asyncio
import contextvars
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions import metrics
from services.subscriptions.actions.overrides import lapse_overrides
from services.subscriptions.actions.performing import Performer
from services.subscriptions.actions.scheduled import ask_of_expired, follow_catalog, settle_due
from services.subscriptions.errors import TaskCompleted, UnknownTask
from services.subscriptions.rules.policy import Policy
from services.subscriptions.rules.tasks import (
    ATTEMPTS_MAX,
    BACKOFF_BASE_SECONDS,
    BACKOFF_MAX_SECONDS,
    LEASE,
    Counterpart,
    Task,
)
from services.subscriptions.store import keys
from services.subscriptions.store import tasks as store
from shared import logs, tracing
from shared.backoff import delay
from shared.clock import Clock
from shared.database import transaction
from shared.errors import BillingError
from shared.ops import store as ops

AT_ONCE = 8
# How long a caller waits for what follows from its call, while it goes on behind it.
PATIENCE_SECONDS = 2.0
# A failed task whose next attempt is no further away is taken up here; the job has the others, and those of the dead.
COME_BACK_WITHIN = timedelta(minutes=5)
COME_BACK_MAX = 10_000
DEFAULT_MAX = 2_000
# Less than the job's deadline, so that a run that meets a hanging neighbour still says what it did.
RUN_SECONDS = 180.0
ALERTS_MAX = 50
REBUILT_AT_ONCE = 500
# What the provider is asked only because time passed waits for what is owed.
ASKED_AT_ONCE = 20
RETRY = "RetryReconciliationTask"

_log = logs.get_logger()


@dataclass(frozen=True)
class Reconciled:
    """What one run did."""

    attempted: int = 0
    completed: int = 0
    abandoned: int = 0
    still_due: int = 0
    abandoned_tasks: list[Task] = field(default_factory=list)


class Reconciler:
    """Attempts tasks, each under a lease, with no transaction open while another side is asked."""

    def __init__(self, engine: AsyncEngine, performer: Performer, *, clock: Clock, policy: Policy) -> None:
        self._engine = engine
        self._clock = clock
        self._policy = policy
        self.performer = performer
        self._at_work: set[asyncio.Task[None]] = set()
        self._coming_back: dict[tuple[str, Counterpart], asyncio.Task[None]] = {}
        self._few = asyncio.Semaphore(AT_ONCE)

    async def attempt(self, tenant_id: str) -> None:
        """Pay what a tenant is owed now. Its cause is committed, so nothing here fails or long delays the caller."""
        await asyncio.wait({self._begin(self._attempt(tenant_id))}, timeout=PATIENCE_SECONDS)

    async def drain(self) -> None:
        """Wait a little for attempts that outlived their callers; the job finds what is left."""
        for waiting in self._coming_back.values():
            waiting.cancel()
        if self._at_work:
            await asyncio.wait(self._at_work, timeout=PATIENCE_SECONDS)

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        # What is owed outlives the call that caused it: of that call it keeps the id and the trace, not the deadline.
        fresh = contextvars.Context()
        fresh.run(logs.request_id.set, logs.request_id.get())
        tracing.carry_into(fresh)
        begun = asyncio.create_task(work, context=fresh)
        self._at_work.add(begun)
        begun.add_done_callback(self._at_work.discard)
        return begun

    async def _attempt(self, tenant_id: str) -> None:
        # A silent provider must not keep the ledger waiting, nor the other way round; but what one of them said may be
        # owed to the other.
        try:
            async with transaction(self._engine) as db:
                due = await store.find_due_sides(db, tenant_id, self._clock())
        except Exception:
            _log.exception("attempt_failed", tenant_id=tenant_id)  # the job takes it up
            return
        while due:
            told = await asyncio.gather(*(self._empty_line(tenant_id, side) for side in due))
            due = set[Counterpart]().union(*told)

    async def _empty_line(self, tenant_id: str, counterpart: Counterpart) -> set[Counterpart]:
        """Perform what is due of a tenant's line; to whom else something was due after the last of it."""
        # Looks again with each task: a neighbour's may have been written behind one that we hold.
        due = {counterpart}
        try:
            while counterpart in due:
                claimed = await self._claim(1, tenant_id=tenant_id, counterpart=counterpart)
                if not claimed:
                    return due - {counterpart}
                [(_, due)] = await self._run(claimed)
        except Exception:
            _log.exception("attempt_failed", tenant_id=tenant_id)  # the job takes it up
            return set()
        return due

    async def reconcile(self, *, max_tasks: int, dry_run: bool) -> Reconciled:
        """Try everything that is due, each task once, those of one tenant in the order in which they arose."""
        counts = {"completed": 0, "failed": 0, "abandoned": 0}
        limit, ends_at = max_tasks or DEFAULT_MAX, time.monotonic() + RUN_SECONDS
        if not dry_run:
            await settle_due(self._engine, now=self._clock(), policy=self._policy, limit=limit)
            await ask_of_expired(self._engine, now=self._clock(), policy=self._policy, limit=ASKED_AT_ONCE)
            await lapse_overrides(self._engine, now=self._clock(), limit=limit)
            await follow_catalog(self._engine, now=self._clock(), limit=REBUILT_AT_ONCE)
        while not dry_run and (left := limit - sum(counts.values())) > 0 and time.monotonic() < ends_at:
            claimed = await self._claim(min(left, AT_ONCE))
            if not claimed:
                break
            for outcome, _ in await self._run(claimed):
                counts[outcome] += 1
        async with transaction(self._engine) as db:
            still_due = await store.count_due(db, self._clock())
            abandoned = await store.list_abandoned(db, limit=ALERTS_MAX)
        attempted = still_due if dry_run else sum(counts.values())
        return Reconciled(attempted, counts["completed"], counts["abandoned"], still_due, abandoned)

    async def take_over(self, *, every: timedelta = LEASE) -> None:
        """Again and again take up what is due and nobody holds: what a killed process had claimed or planned.

        The reconcile job would find it as well, minutes later. A killed process holds nothing longer than a lease.
        """
        while True:
            await asyncio.sleep(every.total_seconds())
            try:
                await self.reconcile(max_tasks=0, dry_run=False)
            except Exception:
                _log.exception("take_over_failed")  # a database that is away; the next round tries again

    async def _claim(
        self, limit: int, *, tenant_id: str | None = None, counterpart: Counterpart | None = None
    ) -> list[Task]:
        async with transaction(self._engine) as db:
            return await store.claim_tasks(
                db, self._clock(), limit=limit, tenant_id=tenant_id, counterpart=counterpart
            )

    async def _run(self, claimed: Sequence[Task]) -> list[tuple[str, set[Counterpart]]]:
        return await asyncio.gather(*(self._settle(task) for task in claimed))

    async def _settle(self, task: Task) -> tuple[str, set[Counterpart]]:
        """What became of a task, and to whom its tenant owes something that is due now."""
        try:
            note = await self.performer.perform(task)
        except Exception as error:
            return await self._postpone(task, error)
        async with transaction(self._engine) as db:
            await store.complete_task(db, task, self._clock(), note)
            due = await store.find_due_sides(db, task.tenant_id, self._clock())
        metrics.task_attempted(task.task_type, "completed")
        _log.info("task_completed", task_id=task.id, task_type=task.task_type, tenant_id=task.tenant_id)
        return "completed", due

    async def _postpone(self, task: Task, error: Exception) -> tuple[str, set[Counterpart]]:
        now = self._clock()
        given_up = task.attempts >= ATTEMPTS_MAX
        wait = delay(task.attempts, base_seconds=BACKOFF_BASE_SECONDS, max_seconds=BACKOFF_MAX_SECONDS)
        words = (
            f"{error.reason}: {error.message}" if isinstance(error, BillingError) else type(error).__name__
        )
        async with transaction(self._engine) as db:
            await store.postpone_task(
                db,
                task,
                error=words[:500],
                next_attempt_at=now + wait,
                abandoned_at=now if given_up else None,
            )
            due = await store.find_due_sides(db, task.tenant_id, now)
        metrics.task_attempted(task.task_type, "abandoned" if given_up else "failed")
        _log.warning(
            "task_abandoned" if given_up else "task_failed",
            task_id=task.id,
            task_type=task.task_type,
            tenant_id=task.tenant_id,
            attempts=task.attempts,
            error=words,
            exc_info=not isinstance(error, BillingError),
        )
        if not given_up:
            self._come_back(task, wait)
        return "abandoned" if given_up else "failed", due

    def _come_back(self, task: Task, wait: timedelta) -> None:
        """Take the tenant's line up again when the task is due, rather than at the job's next tick."""
        line = (task.tenant_id, task.counterpart)
        if wait > COME_BACK_WITHIN or line in self._coming_back or len(self._coming_back) >= COME_BACK_MAX:
            return
        self._coming_back[line] = self._begin(self._take_up(*line, wait))

    async def _take_up(self, tenant_id: str, counterpart: Counterpart, wait: timedelta) -> None:
        try:
            await asyncio.sleep(wait.total_seconds())
        finally:
            del self._coming_back[tenant_id, counterpart]
        async with self._few:
            if await self._empty_line(tenant_id, counterpart):
                await self._attempt(tenant_id)


async def retry_task(
    engine: AsyncEngine, *, task_id: str, idempotency_key: str, actor: str, reason: str, now: datetime
) -> tuple[str, bool]:
    """Give a task ten new attempts; answers its tenant and whether an earlier call did so."""
    request = {"task_id": task_id, "actor": actor, "reason": reason}
    async with transaction(engine) as db:
        task = await store.find_task(db, task_id, lock=True)
        if task is None:
            raise UnknownTask(f"there is no task {task_id}", task_id=task_id)
        answer = await keys.find_answer(
            db, tenant_id=task.tenant_id, method=RETRY, key=idempotency_key, request=request
        )
        if answer is not None:
            return task.tenant_id, True
        if task.completed_at is not None:
            raise TaskCompleted(f"task {task_id} is done", task_id=task_id)
        await store.reset_task(db, task.id, now)
        await ops.record_audit(
            db,
            room="subscriptions",
            action="task.retried",
            actor_type="operator",
            actor_id=actor,
            tenant_id=task.tenant_id,
            resource_type="task",
            resource_id=task.id,
            before={"attempts": task.attempts, "abandoned": task.abandoned_at is not None},
            after={"attempts": 0, "abandoned": False},
            reason=reason,
            request_id=logs.request_id.get(),
        )
        await keys.insert_answer(
            db,
            tenant_id=task.tenant_id,
            method=RETRY,
            key=idempotency_key,
            request=request,
            answer={"task_id": task.id},
        )
    return task.tenant_id, False


async def get_task(engine: AsyncEngine, task_id: str) -> Task:
    """A task as it stands."""
    async with transaction(engine) as db:
        task = await store.find_task(db, task_id)
    if task is None:
        raise UnknownTask(f"there is no task {task_id}", task_id=task_id)
    return task


async def list_tasks(
    engine: AsyncEngine, *, tenant_id: str | None, state: str | None, after: int, limit: int
) -> list[Task]:
    """A page of tasks, oldest first."""
    async with transaction(engine) as db:
        return await store.list_tasks(db, tenant_id=tenant_id, state=state, after=after, limit=limit)


async def newest_position(engine: AsyncEngine) -> int:
    """Tasks that arise from now on have a greater position."""
    async with transaction(engine) as db:
        return await store.newest_position(db)


async def list_since(engine: AsyncEngine, *, tenant_id: str, position: int, limit: int) -> list[Task]:
    """A tenant's tasks that arose after a position, in the order in which they did."""
    async with transaction(engine) as db:
        return await store.list_since(db, tenant_id, position, limit=limit)
