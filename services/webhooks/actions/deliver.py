"""Handing events on: claim, normalise, ask subscriptions, write down what came of it."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.webhooks.clients import PaymentEvents
from services.webhooks.rules.delivery import (
    ATTEMPTS_EXHAUSTED,
    WORKER_DIED,
    Claimed,
    Decision,
    Patience,
    SetAside,
    after_failure,
)
from services.webhooks.rules.events import Facts
from services.webhooks.rules.inbox import LARGE_BYTES
from services.webhooks.rules.providers import PROVIDERS
from services.webhooks.store import inbox as store
from shared import logs, tracing
from shared.clock import Clock
from shared.database import transaction

# Of the database, for what takes it milliseconds: far less than a lease, so that a silent connection costs no claim.
_ANSWER_SECONDS = 5.0

_log = logs.get_logger()


class Courier:
    """Delivers claimed events. Any number may work on one inbox: each event has one claim at a time."""

    def __init__(
        self,
        engine: AsyncEngine,
        subscriptions: PaymentEvents,
        *,
        patience: Patience,
        clock: Clock,
        on_result: Callable[[str, str], None] = lambda _provider, _result: None,
    ) -> None:
        self._engine = engine
        self._subscriptions = subscriptions
        self._patience = patience
        self._clock = clock
        self._on_result = on_result

    async def claim(self, limit: int) -> list[Claimed]:
        """Takes up to so many due events; whoever is cancelled meanwhile has taken none."""
        taking = asyncio.create_task(self._take(limit))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # It may have committed already: nobody would deliver those before their lease ends.
            await asyncio.shield(self._give_back(taking))
            raise

    async def _take(self, limit: int) -> list[Claimed]:
        async with self._transaction() as db:
            return await store.claim_events(db, limit=limit, lease_seconds=self._patience.lease_seconds)

    async def _give_back(self, taking: asyncio.Task[list[Claimed]]) -> None:
        await asyncio.wait([taking])
        if not taking.cancelled() and taking.exception() is None:
            for event in taking.result():
                await self._release(event)

    def _transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return transaction(self._engine, cut_after_seconds=_ANSWER_SECONDS)

    async def deliver(self, event: Claimed, *, call_seconds: float | None = None) -> str:
        """One attempt; answers the outcome, `dead`, `failed`, or `lost` when another worker took over."""
        logs.request_id.set(event.request_id)
        try:
            with tracing.working("webhook delivery", provider=event.provider, attempt=event.attempt):
                result = await self._attempt(event, call_seconds or self._patience.call_seconds)
        except asyncio.CancelledError:
            # The answer is unknown and does not matter: whoever asks next gets `duplicate` if it was applied.
            await asyncio.shield(self._release(event))
            raise
        self._on_result(event.provider, result)
        return result

    async def deliver_due(self, *, concurrency: int, seconds: float) -> Counter[str]:
        """Delivers until nothing is due or the time is up; counts the results."""
        ends_at = time.monotonic() + seconds
        results: Counter[str] = Counter()
        while (left := ends_at - time.monotonic()) > 0.5:
            claimed = await self.claim(concurrency)
            if not claimed:
                break
            call_seconds = min(self._patience.call_seconds, left)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self.deliver(event, call_seconds=call_seconds)) for event in claimed
                ]
            results.update(task.result() for task in tasks)
        return results

    async def _attempt(self, event: Claimed, call_seconds: float) -> str:
        if event.retry_count >= self._patience.attempts_max:
            verdict = SetAside(ATTEMPTS_EXHAUSTED, WORKER_DIED)
            async with self._transaction() as db:
                mine = await store.set_aside(db, event, verdict, self._clock(), failed=0)
            return self._told(event, "dead" if mine else "lost", verdict.reason)
        try:
            facts = await self._normalise(event)
            decision = await self._subscriptions.apply(event, facts, timeout_seconds=call_seconds)
        except Exception as error:
            return await self._failed(event, error)
        async with self._transaction() as db:
            mine = await store.finish_event(db, event, decision, self._clock())
            if mine and decision.tenant_id and facts.order_id:
                await store.name_tenant(db, event, facts.order_id, decision.tenant_id)
        return self._told(event, decision.outcome if mine else "lost", decision.reason, decision)

    @staticmethod
    async def _normalise(event: Claimed) -> Facts:
        provider = PROVIDERS[event.provider]
        if len(event.body) > LARGE_BYTES:
            return await asyncio.to_thread(provider.normalise, event.body)
        return provider.normalise(event.body)

    async def _failed(self, event: Claimed, error: Exception) -> str:
        verdict = after_failure(error, retry_count=event.retry_count, patience=self._patience)
        async with self._transaction() as db:
            if isinstance(verdict, SetAside):
                mine = await store.set_aside(db, event, verdict, self._clock())
                result, reason = "dead", verdict.reason
            else:
                mine = await store.try_again(db, event, verdict)
                result, reason = "failed", verdict.error
        return self._told(event, result if mine else "lost", reason)

    def _told(self, event: Claimed, result: str, reason: str, decision: Decision | None = None) -> str:
        write = logs.often if decision is not None else _log.warning
        write(
            "event_delivered" if decision is not None else "event_not_delivered",
            webhook_event=event.id,
            event_type=event.event_type,
            result=result,
            reason=reason,
            attempt=event.attempt,
            tenant_id=decision.tenant_id if decision else event.tenant_id,
        )
        return result

    async def _release(self, event: Claimed) -> None:
        try:
            async with self._transaction() as db:
                await store.release_event(db, event)
        except Exception as error:
            _log.warning("claim_not_released", webhook_event=event.id, error=logs.brief(error))
