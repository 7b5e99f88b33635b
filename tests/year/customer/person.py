"""What every customer has: an id, a generator of its own, and a memory."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.year.place import Place
from tests.year.tally import PutOff

Answer = TypeVar("Answer")
STATUS = pb.SubscriptionStatus


class Person:
    """A tenant; methods of the parts are what it can do."""

    def __init__(self, place: Place, number: int, seed: int) -> None:
        self.place = place
        self.tenant_id = f"tenant-{number:03d}"
        self.rng = random.Random(f"{seed}:{number}")
        self.today = 0
        self.provisioned = False
        self.current = pb.GetCurrentResponse()
        self.late: list[tuple[int, list[str]]] = []
        self.open_checkout: tuple[str, str, bool] | None = (
            None  # subscription, intent, whether it only authorises
        )
        self.debits: list[tuple[str, int]] = []
        self.holds: list[tuple[str, int]] = []
        self.disputes: list[str] = []
        self.unfinished: list[tuple[Any, Any, Any]] = []
        self._numbers = 0

    @property
    def standing(self) -> str:
        """free, paid, paused or past_due."""
        if self.current.plan_code == "free" and not self.current.subscription_id:
            return "free"
        return {
            STATUS.SUBSCRIPTION_STATUS_PAUSED: "paused",
            STATUS.SUBSCRIPTION_STATUS_PAST_DUE: "past_due",
        }.get(self.current.status, "paid")

    def key(self, what: str) -> str:
        """A key that names one intention of this customer."""
        self._numbers += 1
        return f"{what}-{self.today}-{self._numbers}"

    async def ask(
        self,
        method: Callable[..., Awaitable[Answer]],
        request: Any,
        then: Callable[[Answer], Awaitable[None]] | None = None,
    ) -> Answer | None:
        """The answer, handed to `then`; None when a rule refused, or nobody knows yet and another day must tell."""
        try:
            answer = await self.place.tally.ask(method, request, f"{self.tenant_id}, day {self.today}")
        except PutOff:
            self.unfinished.append((method, request, then))
            return None
        if answer is not None and then is not None:
            await then(answer)
        return answer

    async def take_up(self) -> None:
        """Asks again, with the same keys, what got no answer before."""
        unfinished, self.unfinished = self.unfinished, []
        for method, request, then in unfinished:
            await self.ask(method, request, then)

    async def provision(self) -> None:
        """The product signs the tenant up."""
        request = pb.ProvisionTenantRequest(tenant_id=self.tenant_id, idempotency_key="provision")
        await self.ask(self.place.product.ProvisionTenant, request)
        self.provisioned = True

    async def look(self) -> None:
        """Reads where it stands."""
        found = await self.ask(self.place.product.GetCurrent, pb.GetCurrentRequest(tenant_id=self.tenant_id))
        assert found is not None, f"{self.tenant_id} is provisioned, and nobody knows it"
        self.current = found

    async def receive_late(self, *, all_of_it: bool = False) -> None:
        """What the provider's queue held back for days arrives."""
        due = [ids for day, ids in self.late if all_of_it or day <= self.today]
        self.late = [(day, ids) for day, ids in self.late if not all_of_it and day > self.today]
        for ids in due:
            await self.place.replay(ids)

    def manners(self) -> dict[str, Any]:
        """How rudely the provider's deliveries come."""
        if self.rng.random() > 0.35:
            return {}
        return {
            "duplicates": self.rng.choice((0, 1, 2)),
            "shuffle": self.rng.random() < 0.7,
            "seed": self.rng.randrange(10**6),
        }
