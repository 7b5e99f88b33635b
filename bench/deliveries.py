"""Signed deliveries, each with ids of its own, made of the sample payloads that the tests use."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).parent.parent / "tests" / "payloads" / "razorpay"
# What one renewal makes the provider send, in its order: 1.1 to 2.9 KB each. Only the last one says all that we need.
RENEWAL = (
    "payment.authorized.json",
    "payment.captured.subscription.json",
    "order.paid.subscription.json",
    "invoice.paid.subscription.raw.json",
    "subscription.charged.json",
)
MONTH_SECONDS = 30 * 86400
_ID = re.compile(rb"((?:sub|pay|order|inv)_[A-Za-z0-9]{14})")

Body = Callable[[], bytes]


@dataclass(frozen=True)
class Customer:
    """A tenant with a mandate, as the provider knows it; its first month begins at `since`."""

    tenant_id: str
    subscription_id: str
    plan_id: str
    plan_code: str
    intent_id: str
    total_paise: int
    since: int


class Sample:
    """One kind of event; every call makes another one of it."""

    def __init__(self, name: str) -> None:
        raw = (SAMPLES / name).read_bytes()
        self._parts = _ID.split(raw)
        self._document = json.loads(raw)

    def body(self, ids: dict[bytes, bytes]) -> bytes:
        """The sample about other objects."""
        parts = list(self._parts)
        for place in range(1, len(parts), 2):
            parts[place] = ids[parts[place].partition(b"_")[0]]
        return b"".join(parts)

    def charge(self, customer: Customer, month: int, ids: dict[bytes, bytes]) -> bytes:
        """The charge of a customer's month, counted from 1."""
        document: dict[str, Any] = self._document
        subscription = document["payload"]["subscription"]["entity"]
        begins_at = customer.since + (month - 1) * MONTH_SECONDS
        subscription.update(
            id=customer.subscription_id,
            plan_id=customer.plan_id,
            notes={
                "tenant_id": customer.tenant_id,
                "plan_code": customer.plan_code,
                "cycle": "monthly",
                "intent_id": customer.intent_id,
            },
            current_start=begins_at,
            current_end=begins_at + MONTH_SECONDS,
            charge_at=begins_at + MONTH_SECONDS,
            start_at=customer.since,
            paid_count=month,
            remaining_count=subscription["total_count"] - month,
        )
        document["payload"]["payment"]["entity"].update(
            id=ids[b"pay"].decode(),
            order_id=ids[b"order"].decode(),
            invoice_id=ids[b"inv"].decode(),
            amount=customer.total_paise,
        )
        document["created_at"] = customer.since + month
        return json.dumps(document, separators=(",", ":")).encode()


class Mill:
    """Bodies without end, no two of them alike."""

    def __init__(self, customers: list[Customer]) -> None:
        self._customers = customers
        self._samples = {name: Sample(name) for name in RENEWAL}
        self._made: dict[str, Iterator[bytes]] = {
            "strangers": self._strangers(),
            "charges": self._charges(),
            "renewals": self._renewals(),
        }
        self._turn = 0

    def body(self, kind: str) -> bytes:
        """The next one: a `strangers` body concerns nobody we know, `charges` only charge our customers,
        and `renewals` are all that the provider sends with each such charge."""
        return next(self._made[kind])

    def _strangers(self) -> Iterator[bytes]:
        while True:
            ids = _fresh_ids()
            for sample in self._samples.values():
                yield sample.body(ids)

    def _charges(self) -> Iterator[bytes]:
        while True:
            yield self._charge(*self._next_month(), _fresh_ids())

    def _renewals(self) -> Iterator[bytes]:
        while True:
            customer, month = self._next_month()
            ids = _fresh_ids() | {b"sub": customer.subscription_id.encode()}
            for name in RENEWAL[:-1]:
                yield self._samples[name].body(ids)
            yield self._charge(customer, month, ids)

    def _next_month(self) -> tuple[Customer, int]:
        turn, self._turn = self._turn, self._turn + 1
        return self._customers[turn % len(self._customers)], turn // len(self._customers) + 1

    def _charge(self, customer: Customer, month: int, ids: dict[bytes, bytes]) -> bytes:
        return self._samples[RENEWAL[-1]].charge(customer, month, ids)


def request(body: bytes, *, secret: str, address: str, path: str = "/webhooks/razorpay") -> bytes:
    """The delivery as it travels."""
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Razorpay-Webhook/v1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Razorpay-Signature: {signature}\r\nX-Razorpay-Event-Id: {secrets.token_hex(7)}\r\n\r\n"
    )
    return head.encode() + body


def _fresh_ids() -> dict[bytes, bytes]:
    return {
        prefix: prefix + b"_" + secrets.token_hex(7).encode() for prefix in (b"sub", b"pay", b"order", b"inv")
    }
