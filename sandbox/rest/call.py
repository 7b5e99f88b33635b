"""A request as the operations see it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from sandbox import entities
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import checks
from sandbox.state.world import Record, World
from sandbox.till import Till

_LIST = "from to count skip expand[]"


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the operations see it."""

    till: Till
    path: dict[str, str]
    query: dict[str, str]
    body: Entity
    headers: dict[str, str]
    checkout_url: str

    def entity_id(self, prefix: str, name: str = "id") -> str:
        """The id in the path; a malformed one is refused before anything is looked up."""
        value = self.path[name]
        if not re.fullmatch(rf"{prefix}_[A-Za-z0-9]{{14}}", value):
            raise Refusal(f"{value} is not a valid id")
        return value

    def change(
        self, work: Callable[[World], Record], view: Callable[[Record], Entity] = lambda r: r.entity
    ) -> Entity:
        """Changes the world, sends what follows from it, answers the entity as it was right then."""
        shown, _ = self.till.ring_up(lambda world: dict(view(work(world))), subject=self.path.get("id", ""))
        return shown

    def page(
        self, kind: str, *, also: str = "", keep: Callable[[Entity], bool] = lambda _: True
    ) -> list[Record]:
        """One page of a list, newest first."""
        checks.only(self.query, f"{_LIST} {also}")
        count = checks.whole(self.query | {"count": self.query.get("count", "10")}, "count", least=1)
        if count > 100:
            raise Refusal("The count may not be greater than 100.", field="count")
        skip = checks.whole(self.query, "skip", least=0) if "skip" in self.query else 0
        since = checks.whole(self.query, "from") if "from" in self.query else 0
        until = checks.whole(self.query, "to") if "to" in self.query else 2**53
        # Lists lag behind at Razorpay while a fetch by id does not.
        visible = self.till.world.now() - self.till.faults.list_lag_seconds
        found: list[Record] = []
        for record in reversed(self.till.world.all(kind)):
            if len(found) == skip + count:
                break
            if since <= record.entity["created_at"] <= min(until, visible) and keep(record.entity):
                found.append(record)
        return found[skip:]


Operation = Callable[[Call], Entity]


def collection(records: list[Record]) -> Entity:
    """A page of a list."""
    return entities.collection([record.entity for record in records])
