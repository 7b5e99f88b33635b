"""The seam for payment providers: what a provider's module must be."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from services.webhooks.rules.events import Facts, Glance

# As they came: raw bytes, names in lower case, repeated names repeated.
Headers = Sequence[tuple[bytes, bytes]]


class Provider(Protocol):
    """One module of pure functions. It knows its provider's signature, headers and words, and nothing else does."""

    # The word in the endpoint's path and in the rows: `/webhooks/<NAME>`.
    NAME: str

    def verify(self, headers: Headers, body: bytes, secrets: Sequence[bytes], now: datetime) -> int | None:
        """Which of the secrets signed these very bytes, by position; None: none did. Never raises, in constant time.

        `now` is for providers that sign a timestamp; they refuse one that is too far from it, in either direction.
        """

    def event_id(self, headers: Headers) -> str | None:
        """What an unsigned header claims to be the event's id, for people; None: nothing fit to be kept. Never raises."""

    def glance(self, document: Mapping[str, Any]) -> Glance:
        """What the inbox can tell at once; never raises."""

    def normalise(self, body: bytes) -> Facts:
        """The body in our words, or Poison and nothing else."""
