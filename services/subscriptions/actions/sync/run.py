"""One run of the comparison: its time, its few calls at once, and what it came to."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions.payment_events import apply_event, count_charge
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import ProviderRefused, ProviderUnavailable
from services.subscriptions.rules.events import look
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.rules.tasks import fetch_and_apply
from services.subscriptions.store import tasks as task_store
from shared import logs
from shared.clock import Clock
from shared.database import transaction

AT_ONCE = 4
# So many silences in a row and the provider is not asked again in this run.
SILENCES_MAX = 3
NAMED_MAX = 50

Answer = TypeVar("Answer")
_log = logs.get_logger()


@dataclass(frozen=True)
class Notice:
    """A condition that deserves a person."""

    key: str
    severity: Literal["warning", "critical"]
    title: str
    tenant_id: str = ""
    evidence: dict[str, str] = field(default_factory=dict)
    # Of a finding that stands: the oldest are named first, so that no newer one takes the place of one that was named.
    standing_since: datetime | None = None


@dataclass(frozen=True)
class Synced:
    """What a run came to; `touched` are the tenants that are owed something now."""

    compared: int
    differences: int
    tasks_queued: int
    orphans: int
    notices: list[Notice]
    touched: list[str]


class Run:
    """What the parts of a run share."""

    def __init__(
        self,
        engine: AsyncEngine,
        razorpay: Razorpay,
        *,
        mode: str,
        clock: Clock,
        policy: Policy,
        tenant_id: str | None,
        cause: str,
        dry_run: bool,
        time_left_seconds: float,
    ) -> None:
        self.engine = engine
        self.razorpay = razorpay
        self.clock = clock
        self.tenant_id = tenant_id
        self.dry_run = dry_run
        self.compared = 0
        self.differences = 0
        self.orphans = 0
        self.silences = 0
        self.finished = True
        self._mode = mode
        self.policy = policy
        self._cause = cause
        self._tasks_queued = 0
        self._in_a_row = 0
        self._last_words = ""
        self._touched: dict[str, None] = {}
        self._notices: dict[str, Notice] = {}
        self._few = asyncio.Semaphore(AT_ONCE)
        self._began = time.monotonic()
        self._seconds = time_left_seconds

    def has_time(self, share: float = 0.8) -> bool:
        """Whether there is a point in going on: within this share of the time, and while the provider answers."""
        going_on = time.monotonic() < self._began + self._seconds * share and not self.is_down
        self.finished = self.finished and going_on
        return going_on

    @property
    def is_down(self) -> bool:
        """True once the provider was silent several times in a row."""
        return self._in_a_row >= SILENCES_MAX

    async def ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """The provider's answer; None when it gave none, which the run will tell. A refusal is raised."""
        if self.is_down:
            return None
        async with self._few:
            try:
                answer = await question()
            except ProviderUnavailable as error:
                self.silences += 1
                self._in_a_row += 1
                self._last_words = error.message
                _log.warning("provider_silent", reason=error.reason, error=error.message)
                return None
            except ProviderRefused:
                self._in_a_row = 0
                raise
        self._in_a_row = 0
        return answer

    async def owe_fetch(self, known: KnownSubscription) -> None:
        """Queue the task that fetches a subscription and applies what it says."""
        if self.dry_run:
            self._tasks_queued += 1
            return
        async with transaction(self.engine) as db:
            await self.owe_fetch_in(db, known)

    async def owe_fetch_in(self, db: AsyncConnection, known: KnownSubscription) -> None:
        """The same within a transaction."""
        if await task_store.insert_task(db, fetch_and_apply(known, self._cause), self.clock()):
            self._tasks_queued += 1
        self._touched[known.tenant_id] = None

    async def apply(self, event_type: str, tenant_id: str, **entities: Any) -> None:
        """Apply what the provider answered, as a webhook that tells it would be."""
        self.differences += 1
        if self.dry_run:
            return
        now = self.clock()
        seen = look(event_type, self._mode, now, **entities)
        try:
            async with transaction(self.engine) as db:
                applied = await apply_event(
                    db, seen, idempotency_key="", mode=self._mode, now=now, policy=self.policy
                )
        except Exception as error:  # one tenant's trouble is not the others'
            _log.exception("sync_not_applied", event_type=event_type, tenant_id=tenant_id)
            self.tell(
                Notice(
                    f"subscriptions.sync.not_applied:{tenant_id}",
                    "critical",
                    "What the provider holds could not be applied",
                    tenant_id,
                    {"event_type": event_type, "error": type(error).__name__},
                )
            )
            return
        count_charge(applied)
        self._touched[tenant_id] = None
        _log.info("sync_applied", event_type=event_type, tenant_id=tenant_id, reason=applied.reason)

    def tell(self, notice: Notice) -> None:
        """Report a condition; one key is one condition."""
        self._notices[notice.key] = notice

    def conclude(self) -> Synced:
        """What the run came to, and what kept it from coming to more."""
        notices = sorted(self._notices.values(), key=_place)
        if len(notices) > NAMED_MAX:
            more = len(notices) - NAMED_MAX
            notices = notices[:NAMED_MAX]
            notices.append(
                Notice("subscriptions.sync.more", "warning", f"and {more} more differences with the provider")
            )
        if self.silences:
            words = "The provider did not answer: what was compared so far is kept"
            evidence = {
                "silences": str(self.silences),
                "compared": str(self.compared),
                "last_error": self._last_words,
            }
            severity: Literal["warning", "critical"] = "critical" if self.is_down else "warning"
            notices.append(Notice("subscriptions.sync.provider_silent", severity, words, evidence=evidence))
        if not self.finished and not self.is_down:
            words = (
                "The time was too short to compare everything; the next run goes on where this one stopped"
            )
            notices.append(Notice("subscriptions.sync.unfinished", "warning", words))
        if not self.razorpay.configured:
            words = "No provider keys are set: nothing was compared"
            notices.append(Notice("subscriptions.sync.not_configured", "warning", words))
        return Synced(
            compared=self.compared,
            differences=self.differences,
            tasks_queued=self._tasks_queued,
            orphans=self.orphans,
            notices=notices,
            touched=list(self._touched),
        )


def _place(notice: Notice) -> tuple[bool, float]:
    since = notice.standing_since
    return since is None, since.timestamp() if since else 0.0
