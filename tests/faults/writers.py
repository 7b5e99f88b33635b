"""Writers that never wait for good weather: impatient, forgetful, and persistent by turns."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import Message

from tests.faults.journal import Call, Journal, Send, Told
from tests.faults.ledgers import Client
from tests.faults.operations import World, a_grant, entitlements

OPENING_CREDITS = 400
PATIENT_SECONDS = 8.0
SETTLE_SECONDS_MAX = 60


class Writers:
    """Callers at work on one world; what they are told stands in the journal."""

    def __init__(self, world: World, clients: Sequence[Client], seed: int, *, count: int = 8) -> None:
        self.world = world
        self.clients = clients
        self.journal = Journal()
        self._seed = seed
        self._count = count
        self._stop = asyncio.Event()

    async def open_accounts(self) -> None:
        """While nothing is harmed yet."""
        for number, tenant in enumerate(self.world.tenants):
            await self.clients[0].funding.SetEntitlements(entitlements(tenant))
            call = Call("opening", "GrantCredits", a_grant(tenant, f"opening-{number}", OPENING_CREDITS))
            await settle(self.journal.add(call), self.clients[0])

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """They work for as long as the block lasts; a writer's failure is the block's."""
        tasks = [asyncio.create_task(self._write(number)) for number in range(self._count)]
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.wait(tasks)
        for task in tasks:
            task.result()

    async def _write(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        client = self.clients[number % len(self.clients)]
        while not self._stop.is_set():
            await self._pursue(self.journal.add(self.world.next_call(rng)), client, rng)

    async def _pursue(self, call: Call, client: Client, rng: random.Random) -> None:
        """Asks until the answer is definite, or gives up and leaves the outcome unknown."""
        while True:
            answers = await call.ask(self._manner(call, client, rng))
            call.tell(answers)
            for answer in answers.values():
                self.world.learn(answer)
            if call.is_settled or self._stop.is_set() or rng.random() < 0.25:
                return
            await asyncio.sleep(rng.uniform(0.02, 0.15))

    def _manner(self, call: Call, client: Client, rng: random.Random) -> Send:
        """Patient, with a deadline too short to be kept, or hanging up in the middle."""
        chance = rng.random()
        if chance < 0.06:
            return client.send(call.rpc, timeout=rng.uniform(0.025, 0.08))
        send = client.send(call.rpc, timeout=PATIENT_SECONDS)
        if chance > 0.06 + 0.04:
            return send

        async def hang_up(request: Message) -> Any:
            return await asyncio.wait_for(send(request), rng.uniform(0.001, 0.03))

        return hang_up


async def settle(call: Call, client: Client) -> None:
    """Asks with the same key until the answer is definite; healed ledgers give one soon."""
    async with asyncio.timeout(SETTLE_SECONDS_MAX):
        while not call.is_settled:
            answers = await call.ask(client.send(call.rpc, timeout=PATIENT_SECONDS))
            call.tell(answers)
            if any(answer.told is Told.TURNED_AWAY for answer in answers.values()):
                await asyncio.sleep(0.2)
