"""What the ingress knows of a delivery before anybody has read its meaning."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

# Beyond this, hashing and reading would hold up every other delivery: a thread does it.
LARGE_BYTES = 64 << 10


# Which secret of the endpoint signed a delivery; after a rotation the previous one falls silent.
SignedWith = Literal["current", "previous"]


@dataclass(frozen=True)
class Endpoint:
    """One address that a provider posts to: whose account and mode it is, and which secrets sign for it.

    Account and mode are part of a delivery's identity, so they come from here and never from a body. `path` is the
    last part of the address; empty: the provider's default one.
    """

    provider: str
    path: str
    account_id: str
    mode: str
    secrets: tuple[bytes, ...]  # the first is the current one, the others were good before it

    def __post_init__(self) -> None:
        # With the empty secret anybody can sign.
        if not self.secrets or not all(self.secrets):
            raise ValueError(f"{self.address} has no secret")

    @property
    def address(self) -> str:
        """Where the provider posts to."""
        return "/".join(("/webhooks", self.provider, *([self.path] if self.path else [])))

    @property
    def belongs_to(self) -> tuple[str, str, str]:
        """Whose deliveries come here."""
        return (self.provider, self.account_id, self.mode)


@dataclass(frozen=True)
class NewEvent:
    """A signed delivery, ready to be stored."""

    id: str
    provider: str
    account_id: str
    mode: str
    event_id: str | None
    event_type: str | None
    tenant_id: str | None
    aggregate_id: str | None
    body: bytes
    body_sha256: str
    masked: bool
    signed_with: SignedWith
    request_id: str
    received_at: datetime

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What makes two deliveries the same one."""
        return (self.provider, self.account_id, self.mode, self.body_sha256)


@dataclass(frozen=True)
class SignatureFailure:
    """A request whose signature did not hold; its body was thrown away."""

    endpoint: str
    tenant_id: str | None
    remote_ip: str | None
    user_agent: str | None
    payload_id: str | None
    path: str | None = None  # of the endpoint; None: the default one, or none
    created_at: datetime | None = None
    id: str = ""
