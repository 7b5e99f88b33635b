"""Plain values to protobuf and back."""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import grpc
from billing.subscriptions.v1 import (
    catalog_pb2,
    subscriptions_admin_pb2,
    subscriptions_pb2,
)
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.subscriptions.errors import PageTokenInvalid
from services.subscriptions.rules.catalog import Cycle
from services.subscriptions.rules.entitlements import Limit, ServiceEntitlement
from services.subscriptions.rules.tasks import Task
from shared import paging
from shared.errors import InvalidArgument

PAGE_SIZE_DEFAULT = 50
_ITEM = re.compile(r"[a-z]+_[0-9a-z]{1,40}")
CYCLES: dict[Cycle | None, catalog_pb2.BillingCycle.ValueType] = {
    None: catalog_pb2.BILLING_CYCLE_UNSPECIFIED,
    "monthly": catalog_pb2.BILLING_CYCLE_MONTHLY,
    "yearly": catalog_pb2.BILLING_CYCLE_YEARLY,
}

Item = TypeVar("Item")
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def cycle_of(value: int) -> Cycle:
    """The cycle that the door has let in."""
    return "yearly" if value == catalog_pb2.BILLING_CYCLE_YEARLY else "monthly"


def status_of(status: str) -> subscriptions_pb2.SubscriptionStatus.ValueType:
    """`past_due` as the contract's value."""
    return subscriptions_pb2.SubscriptionStatus.Value(f"SUBSCRIPTION_STATUS_{status.upper()}")


def timestamp(moment: datetime | None) -> Timestamp | None:
    """Absent stays absent."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def moment(message: Message, field: str) -> datetime | None:
    """The moment in a field, None where it is absent."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(UTC)


def page(items: Sequence[Item], page_size: int, page_token: str) -> tuple[Sequence[Item], str]:
    """A page of a short list, and the token of the next one."""
    start, size = offset(page_token), page_size or PAGE_SIZE_DEFAULT
    following = start + size
    return items[start:following], str(following) if following < len(items) else ""


def offset(page_token: str) -> int:
    """Where a page begins."""
    if not page_token:
        return 0
    if not page_token.isascii() or not page_token.isdigit() or len(page_token) > 18:
        raise strange_token()
    return int(page_token)


def token_of(moment: datetime, item_id: str) -> str:
    """The token of the page after an item, in lists from the newest down: what is written meanwhile moves nothing."""
    return paging.token(f"{moment.isoformat()} {item_id}")


def place(page_token: str) -> tuple[datetime, str] | None:
    """The inverse of `token_of`; None for the first page."""
    try:
        position = paging.position(page_token)
        if position is None:
            return None
        moment, item_id = position.split(" ")
        begins = datetime.fromisoformat(moment), item_id
    except (InvalidArgument, ValueError) as error:
        raise strange_token() from error
    if begins[0].tzinfo is None or not _ITEM.fullmatch(item_id):
        raise strange_token()
    return begins


def strange_token() -> PageTokenInvalid:
    """The refusal of a token that no answer of ours held."""
    return PageTokenInvalid(
        "this page token is not one of ours",
        violations=[("page_token", "pass next_page_token of the answer before, unchanged")],
    )


def limit(key: str, value: int | None) -> catalog_pb2.Limit:
    """A limit; None is no limit."""
    if value is None:
        return catalog_pb2.Limit(key=key, unlimited=True)
    return catalog_pb2.Limit(key=key, value=value)


def service_limits(services: Iterable[ServiceEntitlement]) -> list[catalog_pb2.ServiceLimits]:
    """Limits by service; a disabled service has none."""
    return [
        catalog_pb2.ServiceLimits(
            service_code=service.service, limits=[limit_of(each) for each in service.limits]
        )
        for service in services
    ]


def limit_of(built: Limit) -> catalog_pb2.Limit:
    """A built limit as the contract shows it."""
    return limit(built.key, built.value)


def task(of: Task) -> subscriptions_admin_pb2.ReconciliationTask:
    """A task as operators see it."""
    return subscriptions_admin_pb2.ReconciliationTask(
        task_id=of.id,
        tenant_id=of.tenant_id,
        task_type=of.task_type,
        payload_json=json.dumps(of.payload, sort_keys=True),
        attempts=of.attempts,
        last_error=of.last_error or "",
        next_attempt_at=timestamp(of.next_attempt_at),
        completed_at=timestamp(of.completed_at),
        abandoned_at=timestamp(of.abandoned_at),
        created_at=timestamp(of.created_at),
    )
