"""The seam for payment providers: what a provider's module must be, and which ones there are."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from services.webhooks.rules import razorpay
from services.webhooks.rules.events import Facts, Glance
from services.webhooks.rules.razorpay import Headers


class Provider(Protocol):
    """One module of rules. It knows its provider's signature, headers and words, and nothing else does."""

    NAME: str

    def verify(self, headers: Headers, body: bytes, secrets: Iterable[bytes]) -> bool:
        """Whether the body was signed with one of the secrets; never raises."""

    def event_id(self, headers: Headers) -> str | None:
        """The unsigned event id, for people."""

    def glance(self, document: Mapping[str, Any]) -> Glance:
        """What the inbox can tell at once; never raises."""

    def normalise(self, body: bytes) -> Facts:
        """The body in our words, or Poison and nothing else."""


PROVIDERS: Mapping[str, Provider] = {razorpay.NAME: razorpay}
