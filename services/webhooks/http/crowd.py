"""The connections of a process: so many, and nobody keeps one by being slow."""

import asyncio
from collections.abc import Callable
from typing import Protocol


class Connection(Protocol):
    """What the crowd must know of a connection."""

    def look(self, now: float) -> None:
        """Closes itself if its time is over."""

    def drop(self, why: str) -> None:
        """Closes itself at once, whatever is unsent."""

    def turn_away(self) -> None:
        """Says that there is no room, and closes itself."""


class Crowd:
    """Bounds connections: when there are too many, whoever has kept us waiting longest makes room for the newcomer.

    Whom we keep waiting for an answer is never dropped; if that is everybody, the newcomer is told to come again.
    """

    def __init__(self, connections_max: int, on_closed: Callable[[str], None]) -> None:
        self._connections_max = connections_max
        self._all: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # in the order in which the waiting began
        self.closed = on_closed

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, newcomer: Connection) -> bool:
        """Takes a connection in; False: it was turned away."""
        self._all.add(newcomer)
        if len(self._all) > self._connections_max:
            longest = next(iter(self._waiting), None)
            if longest is None:
                self.closed("turned_away")
                newcomer.turn_away()
                return False
            self.leave(longest)
            longest.drop("evicted")
        self._waiting[newcomer] = None
        return True

    def leave(self, connection: Connection) -> None:
        """It is closed."""
        self._all.discard(connection)
        self._waiting.pop(connection, None)

    def waiting(self, connection: Connection) -> None:
        """From now on we wait for it: for a request, or for it to read its answers."""
        if connection in self._all:
            self._waiting.pop(connection, None)
            self._waiting[connection] = None

    def working(self, connection: Connection) -> None:
        """From now on it waits for us."""
        self._waiting.pop(connection, None)

    async def watch(self, every_seconds: float) -> None:
        """Ends those whose time is over, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(every_seconds)
            now = loop.time()
            for connection in list(self._all):
                connection.look(now)
