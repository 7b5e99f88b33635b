"""A second provider as one module, in Stripe's manner: it signs a moment with the body, and its event id is signed too."""

import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.webhooks.errors import Poison
from services.webhooks.rules import bodies, values
from services.webhooks.rules.events import Facts, Glance, Payment, Subscription
from services.webhooks.rules.providers import Headers

NAME = "stripish"
TOLERANCE_SECONDS = 300
_SIGNATURE = b"stripish-signature"
_MOMENT = re.compile(rb"[1-9][0-9]{0,11}")
_DIGEST = re.compile(rb"[0-9a-f]{64}")


def verify(headers: Headers, body: bytes, secrets: Sequence[bytes], now: datetime) -> int | None:
    """Header `t=<seconds>,v1=<digest>[,v1=<digest>…]`; other schemes are ignored, as theirs says."""
    given = [value for name, value in headers if name == _SIGNATURE]
    if len(given) != 1:
        return None
    pairs = [part.partition(b"=") for part in given[0].split(b",")]
    moments = [value for scheme, _, value in pairs if scheme == b"t"]
    digests = [value for scheme, _, value in pairs if scheme == b"v1" and _DIGEST.fullmatch(value)]
    if len(moments) != 1 or not _MOMENT.fullmatch(moments[0]):
        return None
    if abs(now.timestamp() - int(moments[0])) > TOLERANCE_SECONDS:
        return None
    expected = [hmac.digest(each, moments[0] + b"." + body, "sha256").hex().encode() for each in secrets]
    matches = [sum(hmac.compare_digest(each, digest) for digest in digests) > 0 for each in expected]
    return matches.index(True) if any(matches) else None


def event_id(headers: Headers) -> str | None:
    """None: no header claims one."""
    return None


def glance(document: Mapping[str, Any]) -> Glance:
    """The object's subscription, or the object itself, keeps the order."""
    thing = _object(document)
    return Glance(
        event_type=values.word(document.get("type"))[:128] or None,
        aggregate_id=values.word(thing.get("subscription") or thing.get("id"))[:128] or None,
        tenant_id=values.notes(thing.get("metadata")).get("tenant_id"),
        event_id=values.word(document.get("id"))[:128] or None,
    )


def normalise(body: bytes) -> Facts:
    """Charges and subscriptions; whatever else passes with its type."""
    document = bodies.parse(body)
    event_type, thing = values.word(document.get("type")), _object(document)
    if not event_type:
        raise Poison("event_type_missing", "type")
    return Facts(
        event_type=event_type,
        account_id=values.identifier(document.get("account"), "account"),
        occurred_at=values.moment(document.get("created"), "created"),
        payment=_payment(thing) if event_type.startswith("charge.") else None,
        subscription=_subscription(thing) if event_type.startswith("customer.subscription.") else None,
    )


def _object(document: Mapping[str, Any]) -> Mapping[str, Any]:
    data = document.get("data")
    found = data.get("object") if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def _payment(charge: Mapping[str, Any]) -> Payment:
    return Payment(
        id=values.required_identifier(charge.get("id"), "data.object.id"),
        amount=values.money(charge.get("amount"), "data.object.amount"),
        currency=values.word(charge.get("currency")).upper(),
        status="captured" if values.flag(charge.get("captured")) else "authorized",
        captured=values.flag(charge.get("captured")),
        notes=values.notes(charge.get("metadata")),
    )


def _subscription(found: Mapping[str, Any]) -> Subscription:
    return Subscription(
        id=values.required_identifier(found.get("id"), "data.object.id"),
        status=values.word(found.get("status")),
        notes=values.notes(found.get("metadata")),
    )
