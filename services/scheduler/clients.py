"""The doors out: any maintenance RPC of any room, and the alert sink."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import grpc
import httpx
from billing.ledger.v1 import ledger_maintenance_pb2
from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2
from billing.webhooks.v1 import webhooks_maintenance_pb2
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.message import Message

from services.scheduler.rules import Alert, Outcome, Report, Severity, Target
from shared.database import assert_no_transaction
from shared.errors import BillingError, Unimplemented

CONTRACTS: tuple[FileDescriptor, ...] = (
    ledger_maintenance_pb2.DESCRIPTOR,
    subscriptions_maintenance_pb2.DESCRIPTOR,
    webhooks_maintenance_pb2.DESCRIPTOR,
)
SINK_TIMEOUT_SECONDS = 5.0
# A summary is for people and lives in a row: of a long list it keeps the beginning.
LIST_ITEMS_KEPT = 20
WHOLE_NUMBERS = frozenset(
    {
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_SINT64,
    }
)


def method_of(target: Target) -> MethodDescriptor:
    """The method in its room's contract, or KeyError: a job that names no RPC must not start."""
    for contract in CONTRACTS:
        for service in contract.services_by_name.values():
            if service.full_name == target.service:
                return service.methods_by_name[target.method]
    raise KeyError(f"{target.path} is in no contract")


class Maintenance:
    """Calls other rooms' maintenance RPCs, knowing of them only what their contracts say."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel]) -> None:
        self._channels = channels

    async def call(
        self, target: Target, *, idempotency_key: str, dry_run: bool, deadline: timedelta
    ) -> Report:
        """Call once and say what came of it; raises BillingError, as every refusal of a room does."""
        method = method_of(target)
        request = message_factory.GetMessageClass(method.input_type)(idempotency_key=idempotency_key)
        if dry_run:
            if "dry_run" not in method.input_type.fields_by_name:
                return Report(target, Outcome.SKIPPED, {"message": "cannot run dry; nothing was called"})
            setattr(request, "dry_run", True)  # noqa: B010 - known by its descriptor only
        rpc: grpc.aio.UnaryUnaryMultiCallable[Message, Message] = self._channels[target.room].unary_unary(
            f"/{target.path}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        try:
            response = await rpc(request, timeout=deadline.total_seconds())
        except Unimplemented:
            return Report(target, Outcome.UNIMPLEMENTED, {})
        alerts = tuple(_alert(alert) for alert in getattr(response, "alerts", ()))
        return Report(target, Outcome.SUCCEEDED, _answer(response), alerts)


def failure(target: Target, error: BillingError) -> Report:
    """What a refused or unanswered call comes to."""
    return Report(target, Outcome.FAILED, {"reason": error.reason, "message": str(error)})


class AlertSink:
    """A Slack-compatible webhook. Its URL is a secret and appears in no message."""

    def __init__(self, url: str, *, timeout_seconds: float = SINK_TIMEOUT_SECONDS) -> None:
        self.failures = 0  # in a row
        self._url = url
        self._timeout_seconds = timeout_seconds
        # One for all posts: making one reads every certificate authority there is. No connection outlives its post.
        self._client = httpx.AsyncClient(
            timeout=timeout_seconds,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
        )

    async def post(self, text: str) -> bool:
        """Send one line; False if it did not arrive, for whatever reason. What the sink answers is not read."""
        assert_no_transaction("alert sink")
        delivered = await self._post(text)
        self.failures = 0 if delivered else self.failures + 1
        return delivered

    async def _post(self, text: str) -> bool:
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._client.stream("POST", self._url, json={"text": escaped(text)}) as answer,
            ):
                return answer.is_success
        except Exception:
            # A sink is anybody's server, behind anybody's network: whatever it does is the same to us. The
            # exception is not logged, for its text may have the URL in it.
            return False

    async def close(self) -> None:
        """Let go of what a post left behind."""
        await self._client.aclose()


def escaped(text: str) -> str:
    """Text that Slack shows as it is, in which nothing is a link or calls everybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _alert(alert: alert_pb2.Alert) -> Alert:
    warning = alert.severity == alert_pb2.ALERT_SEVERITY_WARNING
    return Alert(
        key=alert.key,
        severity=Severity.WARNING if warning else Severity.CRITICAL,
        title=alert.title,
        tenant_id=alert.tenant_id or None,
        evidence=dict(alert.evidence),
        is_event=alert.is_event,
    )


def _answer(response: Message) -> dict[str, Any]:
    """The response under its JSON names, numbers as numbers, without the alerts: they have their own table."""
    answer: dict[str, Any] = json_format.MessageToDict(response, always_print_fields_with_no_presence=True)
    answer.pop("alerts", None)
    for field in response.DESCRIPTOR.fields:
        value = answer.get(field.json_name)
        if isinstance(value, str) and field.type in WHOLE_NUMBERS:
            answer[field.json_name] = int(value)  # JSON of protobuf writes 64 bits as text
        elif isinstance(value, list):
            answer[field.json_name] = value[:LIST_ITEMS_KEPT]
    return answer
