"""Taking a delivery in."""

import asyncio
import hashlib
from collections.abc import Mapping
from datetime import datetime

from services.webhooks.inbox import Inbox
from services.webhooks.rules import bodies
from services.webhooks.rules.events import Glance
from services.webhooks.rules.inbox import LARGE_BYTES, Endpoint, NewEvent, SignedWith
from services.webhooks.rules.providers import PROVIDERS, Headers
from shared.ids import new_id


async def verify(endpoint: Endpoint, headers: Headers, body: bytes, now: datetime) -> SignedWith | None:
    """Which of the endpoint's secrets signed these very bytes; None: none did."""
    provider = PROVIDERS[endpoint.provider]
    if len(body) > LARGE_BYTES:
        position = await asyncio.to_thread(provider.verify, headers, body, endpoint.secrets, now)
    else:
        position = provider.verify(headers, body, endpoint.secrets, now)
    if position is None:
        return None
    return "current" if position == 0 else "previous"


async def receive(
    inbox: Inbox,
    endpoint: Endpoint,
    headers: Headers,
    body: bytes,
    signed_with: SignedWith,
    *,
    received_at: datetime,
    request_id: str,
) -> bool:
    """Stores a verified delivery whatever it says; False: it was stored before. Committed when this returns."""
    if len(body) > LARGE_BYTES:
        event = await asyncio.to_thread(
            _new_event, endpoint, headers, body, signed_with, received_at, request_id
        )
    else:
        event = _new_event(endpoint, headers, body, signed_with, received_at, request_id)
    return await inbox.put(event)


def _new_event(
    endpoint: Endpoint,
    headers: Headers,
    body: bytes,
    signed_with: SignedWith,
    received_at: datetime,
    request_id: str,
) -> NewEvent:
    provider = PROVIDERS[endpoint.provider]
    kept = bodies.prepare(body)
    document: Mapping[str, object] | None = kept.document
    seen = Glance() if document is None else provider.glance(document)
    return NewEvent(
        id=new_id("evt"),
        provider=endpoint.provider,
        account_id=endpoint.account_id,
        mode=endpoint.mode,
        event_id=provider.event_id(headers),
        event_type=seen.event_type,
        tenant_id=seen.tenant_id,
        aggregate_id=seen.aggregate_id,
        body=kept.body,
        body_sha256=hashlib.sha256(body).hexdigest(),
        masked=kept.masked,
        signed_with=signed_with,
        request_id=request_id,
        received_at=received_at,
    )
