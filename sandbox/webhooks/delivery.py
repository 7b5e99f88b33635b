"""Events become signed bytes."""

import base64
import hashlib
import hmac
import json
import random
from dataclasses import dataclass, field
from typing import Any

from sandbox.entities import Entity
from sandbox.state.world import Event, Record

UNFINISHED = ("queued", "retrying")


def serialise(event: Event, account_id: str) -> bytes:
    """The exact bytes: Razorpay's services write JSON in three manners."""
    payload: Entity = {name: {"entity": entity} for name, entity in event.payload.items()}
    for name, sibling in event.beside.items():
        payload[name] = payload[name] | sibling if name in payload else sibling
    envelope = {
        "entity": "event",
        "account_id": account_id,
        "event": event.name,
        "contains": event.contains,
        "payload": payload,
        "created_at": event.created_at,
    }
    # A PHP service escapes slashes and all but ASCII in invoices; payment links come with sorted keys.
    php = event.name.startswith("invoice.")
    links = event.name.startswith("payment_link.")
    text = json.dumps(envelope, separators=(",", ":"), ensure_ascii=php, sort_keys=links)
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
    signature: str | None
    created_at: int
    url: str = ""
    # returned (never sent) · missed (the endpoint was disabled) · queued · retrying · delivered · abandoned
    status: str = "returned"
    attempts: list[dict[str, Any]] = field(default_factory=list)

    def headers(self) -> dict[str, str]:
        """The headers Razorpay sends; no attempt number and no timestamp among them."""
        headers = {
            "User-Agent": "Razorpay-Webhook/v1",
            "Content-Type": "application/json",
            "request-id": self.event_id,
            "x-razorpay-event-id": self.event_id,
        }
        # An endpoint without a secret gets no signature at all.
        return headers if self.signature is None else headers | {"X-Razorpay-Signature": self.signature}

    def as_entity(self, *, bodies: bool = True) -> Entity:
        """What the control API shows and the journal keeps."""
        heard = {"body_base64": base64.b64encode(self.body).decode(), "headers": self.headers()}
        return {
            "id": self.event_id,
            "event": self.event,
            "event_id": self.event_id,
            **(heard if bodies else {}),
            "created_at": self.created_at,
            "url": self.url,
            "status": self.status,
            "attempts": self.attempts,
        }

    def progress(self) -> Entity:
        """What changes while it is on its way: all that the journal needs to hear again."""
        return {
            "url": self.url,
            "status": self.status,
            "attempts": self.attempts,
            "signature": self.signature,
        }

    @classmethod
    def of(cls, kept: Record, progress: Record | None) -> "Delivery":
        """A delivery the journal kept."""
        entity = kept.entity
        delivery = cls(
            event=entity["event"],
            event_id=entity["event_id"],
            body=base64.b64decode(entity["body_base64"]),
            signature=entity["headers"].get("X-Razorpay-Signature"),
            created_at=entity["created_at"],
            url=entity["url"],
            status=entity["status"],
            attempts=entity["attempts"],
        )
        for name, value in (progress.inner if progress else {}).items():
            setattr(delivery, name, value)
        return delivery


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
