"""Taking a delivery in."""

import asyncio
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from services.webhooks.inbox import Inbox
from services.webhooks.rules import bodies
from services.webhooks.rules.events import Glance
from services.webhooks.rules.inbox import LARGE_BYTES, Endpoint, NewEvent, SignedWith
from services.webhooks.rules.providers import PROVIDERS, Headers, Provider
from shared import logs
from shared.ids import new_id

_log = logs.get_logger()


async def verify(endpoint: Endpoint, headers: Headers, body: bytes, now: datetime) -> SignedWith | None:
    """Which of the endpoint's secrets signed these very bytes; None: none did."""
    provider = PROVIDERS[endpoint.provider]
    try:
        if len(body) > LARGE_BYTES:
            position = await asyncio.to_thread(provider.verify, headers, body, endpoint.secrets, now)
        else:
            position = provider.verify(headers, body, endpoint.secrets, now)
    except Exception as error:
        # A module that breaks its promise believes nobody; its text may quote what it was given.
        _log.error("verify_failed", provider=endpoint.provider, error=logs.brief(error))
        return None
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
    seen = _glance(provider, kept.document)
    return NewEvent(
        id=new_id("evt"),
        provider=endpoint.provider,
        account_id=endpoint.account_id,
        mode=endpoint.mode,
        event_id=seen.event_id or provider.event_id(headers),
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


def _glance(provider: Provider, document: Mapping[str, Any] | None) -> Glance:
    if document is None:
        return Glance()
    try:
        return provider.glance(document)
    except Exception as error:
        # What is signed is stored, whatever a module makes of it; without the hints it only keeps no order.
        _log.error("glance_failed", provider=provider.NAME, error=logs.brief(error))
        return Glance()
