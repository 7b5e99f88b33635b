"""Every delivery that is still remembered, and the endpoint they go to."""

from dataclasses import asdict, dataclass

from sandbox import ids
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state.world import Event, World
from sandbox.webhooks.delivery import UNFINISHED, Delivery, serialise, sign

KEPT_DELIVERIES = 5_000
# Forgetting costs a walk over all of them, so it is done for many at once.
_FORGOTTEN_AT_ONCE = 500
REPLAYS_A_DAY = 5
_DAY = 86_400


@dataclass(slots=True)
class Endpoint:
    """Where events go, how they are signed, and which of them were asked for."""

    url: str | None
    secret: str
    disabled: bool = False
    events: list[str] | None = None

    def shown(self) -> Entity:
        """All but the secret."""
        return {"url": self.url, "disabled": self.disabled, "events": self.events}


class Outbox:
    """Builds deliveries, remembers a bounded number of them, and survives a restart."""

    def __init__(self, world: World, *, url: str | None, secret: str) -> None:
        self._world = world
        self._configured = url
        self.endpoint = Endpoint(url, secret)
        self._replays: list[int] = []
        # An endpoint registered by hand outlives a restart, until the environment names another one.
        kept = world.find("endpoint", "endpoint")
        if kept is not None and kept.inner.get("configured") == url:
            known = {name: kept.inner[name] for name in asdict(self.endpoint) if name in kept.inner}
            self.endpoint = Endpoint(**known)
        self._forget(world.count("delivery") - KEPT_DELIVERIES)

    def register(self, url: str | None, secret: str | None, events: list[str] | None) -> None:
        """Sends from now on to this URL; also re-enables a disabled endpoint. An empty secret leaves unsigned."""
        secret = self.endpoint.secret if secret is None else secret
        self.endpoint = Endpoint(url, secret, events=events)
        self._keep_endpoint()

    def disable(self) -> None:
        """Nothing is sent any more until somebody registers the endpoint again."""
        self.endpoint.disabled = True
        self._keep_endpoint()

    def _keep_endpoint(self) -> None:
        self._world.add("endpoint", {"id": "endpoint"}, configured=self._configured, **asdict(self.endpoint))
        self._world.commit()

    def _signature(self, body: bytes) -> str | None:
        return sign(self.endpoint.secret, body) if self.endpoint.secret else None

    def build(self, events: list[Event], *, deliver: bool) -> list[Delivery]:
        """Stages a signed delivery for each event, with an id of its own; without an endpoint it is not sent."""
        endpoint = self.endpoint
        deliveries = []
        for event in events:
            body = serialise(event, self._world.account_id)
            delivery = Delivery(event.name, ids.token(14), body, self._signature(body), event.created_at)
            if deliver and endpoint.url and (endpoint.events is None or event.name in endpoint.events):
                delivery.url = endpoint.url
                delivery.status = "missed" if endpoint.disabled else "queued"
            self._world.add("delivery", delivery.as_entity())
            deliveries.append(delivery)
        if (surplus := self._world.count("delivery") - KEPT_DELIVERIES) > _FORGOTTEN_AT_ONCE:
            self._forget(surplus)
        return deliveries

    def save(self, delivery: Delivery) -> None:
        """Keeps how far it has come."""
        self._world.add("progress", {"id": delivery.event_id}, **delivery.progress())
        self._world.commit()

    def get(self, event_id: str) -> Delivery:
        """One delivery as it stands."""
        return Delivery.of(self._world.get("delivery", event_id), self._world.find("progress", event_id))

    def all(self) -> list[Delivery]:
        """Every delivery that is still remembered, oldest first."""
        return [self.get(record.entity["id"]) for record in self._world.all("delivery")]

    def unfinished(self) -> list[Delivery]:
        """What an earlier process had not finished."""
        return [delivery for delivery in self.all() if delivery.status in UNFINISHED]

    def take_again(self, event_id: str) -> Delivery:
        """The same body and event id once more, signed with the secret of today."""
        delivery = self.get(event_id)
        delivery.signature = self._signature(delivery.body)
        if self.endpoint.url and not self.endpoint.disabled:
            delivery.url, delivery.status = self.endpoint.url, "queued"
            self.save(delivery)
        return delivery

    def take_missed(self) -> list[Delivery]:
        """The dashboard's replay: enables the endpoint and takes what a week left unacknowledged."""
        now = self._world.now()
        self._replays = [at for at in self._replays if at > now - _DAY]
        if len(self._replays) >= REPLAYS_A_DAY:
            raise Refusal(f"Events can be replayed {REPLAYS_A_DAY} times in 24 hours")
        if not self.endpoint.url:
            raise Refusal("There is no webhook endpoint")
        self._replays.append(now)
        self.endpoint.disabled = False
        self._keep_endpoint()
        return [
            self.take_again(delivery.event_id)
            for delivery in self.all()
            if delivery.status in ("missed", "abandoned") and delivery.created_at > now - 7 * _DAY
        ]

    def _forget(self, surplus: int) -> None:
        if surplus <= 0:
            return
        oldest = [record.entity["id"] for record in self._world.all("delivery")[:surplus]]
        finished = [event_id for event_id in oldest if self.get(event_id).status not in UNFINISHED]
        self._world.remove("delivery", finished)
        self._world.remove("progress", finished)
