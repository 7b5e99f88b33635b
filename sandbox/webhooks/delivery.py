"""Events become signed bytes; the sender posts them with Razorpay's patience."""

import asyncio
import base64
import hashlib
import hmac
import json
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

from sandbox import ids
from sandbox.entities import Entity
from sandbox.state.world import Event, World
from shared import logs

log = logs.get_logger()

# Seconds since the first failure, as measured at Razorpay; the next step would pass 24 hours.
LADDER = (0.2, 6, 19, 40, 82, 164, 326, 650, 1294, 2576, 5_100, 10_300, 20_500, 41_000, 82_000)
SLOW_EVENTS = ("refund.created", "payment.failed")
TIMEOUT_SECONDS = 5.0
KEPT_DELIVERIES = 5_000
UNFINISHED = ("queued", "retrying")
# Deliveries leave in order, but a slow endpoint does not hold back the next one for long.
HEAD_START_SECONDS = 0.5


def serialise(event: Event, account_id: str) -> bytes:
    """The exact bytes: invoices come from a PHP service that escapes slashes and all but ASCII, others do not."""
    envelope = {
        "entity": "event",
        "account_id": account_id,
        "event": event.name,
        "contains": event.contains,
        "payload": {name: {"entity": entity} for name, entity in event.payload.items()},
        "created_at": event.created_at,
    }
    php = event.name.startswith("invoice.")
    text = json.dumps(envelope, separators=(",", ":"), ensure_ascii=php)
    return (text.replace("/", "\\/") if php else text).encode()


def sign(secret: str, body: bytes) -> str:
    """Lower-case hex of the HMAC over the raw body."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@dataclass(slots=True)
class Delivery:
    """One event on its way to the merchant."""

    event: str
    event_id: str
    body: bytes
    signature: str
    created_at: int
    url: str = ""
    status: str = "returned"  # returned (never sent) · queued · retrying · delivered · abandoned
    attempts: list[dict[str, Any]] = field(default_factory=list)

    def headers(self) -> dict[str, str]:
        """The headers Razorpay sends; no attempt number and no timestamp among them."""
        return {
            "User-Agent": "Razorpay-Webhook/v1",
            "Content-Type": "application/json",
            "request-id": self.event_id,
            "x-razorpay-event-id": self.event_id,
            "X-Razorpay-Signature": self.signature,
        }

    def as_entity(self) -> Entity:
        """What the control API shows and the journal keeps."""
        return {
            "id": self.event_id,
            "event": self.event,
            "event_id": self.event_id,
            "body_base64": base64.b64encode(self.body).decode(),
            "headers": self.headers(),
            "created_at": self.created_at,
            "url": self.url,
            "status": self.status,
            "attempts": self.attempts,
        }

    @classmethod
    def from_entity(cls, entity: Entity) -> "Delivery":
        """A delivery the journal kept."""
        return cls(
            event=entity["event"],
            event_id=entity["event_id"],
            body=base64.b64decode(entity["body_base64"]),
            signature=entity["headers"]["X-Razorpay-Signature"],
            created_at=entity["created_at"],
            url=entity["url"],
            status=entity["status"],
            attempts=entity["attempts"],
        )


@dataclass(frozen=True, slots=True)
class Manners:
    """Misbehaviour that is allowed to Razorpay: sending twice, and in any order."""

    duplicates: int = 0
    shuffle: bool = False
    seed: int | None = None

    def order(self, deliveries: list[Delivery]) -> list[Delivery]:
        """The deliveries as they leave."""
        leaving = [delivery for delivery in deliveries for _ in range(1 + self.duplicates)]
        if self.shuffle:
            random.Random(self.seed).shuffle(leaving)
        return leaving


class Sender:
    """Posts deliveries one after another; each that fails climbs the ladder on its own."""

    def __init__(self, world: World, *, url: str | None, secret: str, scale: float = 1.0) -> None:
        self._world = world
        self._scale = scale
        self._configured = url
        self.url, self._secret, self.disabled = url, secret, False
        self._queue: asyncio.Queue[tuple[Delivery, int]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        # The merchant's own machine: no proxy, no redirects.
        self._client = httpx.AsyncClient(trust_env=False, headers={"Accept-Encoding": "gzip"})
        self._remember_endpoint()

    def _remember_endpoint(self) -> None:
        # An endpoint registered by hand outlives a restart, until the environment names another one.
        kept = self._world.find("endpoint", "endpoint")
        if kept is not None and kept.inner["configured"] == self._configured:
            self.url, self._secret = kept.inner["url"], kept.inner["secret"]
            self.disabled = kept.inner["disabled"]

    def register(self, url: str | None, secret: str | None) -> None:
        """Sends from now on to this URL, signed with this secret; also re-enables a disabled endpoint."""
        self.url, self._secret, self.disabled = url, secret or self._secret, False
        self._keep_endpoint()

    def _keep_endpoint(self) -> None:
        self._world.add(
            "endpoint",
            {"id": "endpoint"},
            configured=self._configured,
            url=self.url,
            secret=self._secret,
            disabled=self.disabled,
        )
        self._world.commit()

    def build(self, events: list[Event], *, deliver: bool) -> list[Delivery]:
        """Stages a signed delivery for each event, with an id of its own; without an endpoint it is not sent."""
        url = self.url if deliver and not self.disabled else None
        deliveries = []
        for event in events:
            body = serialise(event, self._world.account_id)
            signature = sign(self._secret, body)
            delivery = Delivery(event.name, ids.token(14), body, signature, event.created_at)
            if url:
                delivery.url, delivery.status = url, "queued"
            self._world.add("delivery", delivery.as_entity())
            deliveries.append(delivery)
        return deliveries

    def queue(self, deliveries: list[Delivery], manners: Manners) -> None:
        """Lets go of what `build` marked for sending."""
        for delivery in manners.order(deliveries):
            if delivery.status == "queued":
                self._queue.put_nowait((delivery, 0))

    def replay(self, event_id: str) -> Delivery:
        """The same body and event id once more, signed with the secret of today."""
        delivery = Delivery.from_entity(self._world.get("delivery", event_id).entity)
        delivery.signature = sign(self._secret, delivery.body)
        if self.url and not self.disabled:
            delivery.url, delivery.status = self.url, "queued"
            self._save(delivery)
            self.queue([delivery], Manners())
        return delivery

    def list(self) -> list[Entity]:
        """Every delivery that is still remembered, oldest first."""
        return [record.entity for record in self._world.all("delivery")]

    def start(self) -> None:
        """Takes up what an earlier process had not finished, then works until stopped."""
        for record in self._world.all("delivery"):
            if record.entity["status"] in UNFINISHED:
                delivery = Delivery.from_entity(record.entity)
                self._queue.put_nowait((delivery, len(delivery.attempts)))
        self._spawn(self._work())

    async def stop(self) -> None:
        """Drops everything in flight; the journal has it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work(self) -> None:
        while True:
            delivery, failures = await self._queue.get()
            task = self._spawn(self._deliver(delivery, failures))
            await asyncio.wait({task}, timeout=HEAD_START_SECONDS)

    async def _deliver(self, delivery: Delivery, failures: int) -> None:
        if not await self._attempt(delivery):
            self._spawn(self._climb(delivery, failures))

    async def _climb(self, delivery: Delivery, failures: int) -> None:
        steps = LADDER[1:] if delivery.event in SLOW_EVENTS else LADDER
        for before, step in pairwise((0.0, *steps)[failures:]):
            await asyncio.sleep((step - before) * self._scale)
            if await self._attempt(delivery):
                return
        delivery.status = "abandoned"
        self._save(delivery)
        self.disabled = True
        self._keep_endpoint()
        log.warning("webhook endpoint disabled", url=delivery.url, event_id=delivery.event_id)

    async def _attempt(self, delivery: Delivery) -> bool:
        outcome: dict[str, Any] = {"at": self._world.now()}
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                response = await self._client.post(
                    delivery.url, content=delivery.body, headers=delivery.headers()
                )
            outcome["status"] = response.status_code
            accepted = response.is_success
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            outcome["error"] = type(error).__name__
            accepted = False
        delivery.attempts.append(outcome)
        delivery.status = "delivered" if accepted else "retrying"
        self._save(delivery)
        log.info("webhook sent", event_name=delivery.event, event_id=delivery.event_id, **outcome)
        return accepted

    def _save(self, delivery: Delivery) -> None:
        self._world.add("delivery", delivery.as_entity())
        self._world.commit()
        old = self._world.all("delivery")[:-KEPT_DELIVERIES]
        self._world.remove(
            "delivery", [record.entity["id"] for record in old if record.entity["status"] not in UNFINISHED]
        )
