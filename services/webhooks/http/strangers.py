"""Limits for deliveries that no provider signed, kept with few questions to the database however many there are."""

import asyncio

from services.webhooks.rules import addresses
from services.webhooks.rules.addresses import Address
from shared.ops.limits import Limiter, per_quarter_hour

# Whoever owns many addresses could otherwise cause a statement with each of them.
_QUESTIONS_PER_SECOND = 20
_WAIT_SECONDS = 1.0
_REST_SECONDS = 5.0


class Strangers:
    """Asked only about requests whose signature was found wrong: what is signed never comes here."""

    def __init__(self, limiter: Limiter, *, per_15_minutes: int) -> None:
        self._limiter = limiter
        self._limit = per_quarter_hour(per_15_minutes) if per_15_minutes else None
        self._lock = asyncio.Lock()
        self._second = 0
        self._asked = 0
        self._rest_until = float("-inf")

    async def wait_seconds(self, address: Address | None) -> int:
        """0: within the limit, or nobody was asked. Else the whole seconds, at least one, until the next may come."""
        if self._limit is None:
            return 0
        key = f"unsigned:{addresses.bucket(address)}"
        if wait := self._limiter.remembered(key):
            return int(wait)
        now = asyncio.get_running_loop().time()
        if now < self._rest_until:
            return 0
        try:
            # One at a time: of a hundred at once from one address, the seventh finds the sixth's refusal in memory.
            async with asyncio.timeout(_WAIT_SECONDS), self._lock:
                if wait := self._limiter.remembered(key):
                    return int(wait)
                return int(await self._limiter.take(key, self._limit)) if self._may_ask() else 0
        except TimeoutError:
            self._rest_until = now + _WAIT_SECONDS + _REST_SECONDS
            return 0

    def _may_ask(self) -> bool:
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            self._second, self._asked = second, 0
        self._asked += 1
        return self._asked <= _QUESTIONS_PER_SECOND
