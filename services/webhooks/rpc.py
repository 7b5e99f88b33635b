"""The gRPC doors: operators and the scheduler."""

from datetime import UTC, datetime
from typing import Any

from billing.maintenance.v1 import alert_pb2
from billing.webhooks.v1 import webhooks_admin_pb2 as admin
from billing.webhooks.v1 import webhooks_admin_pb2_grpc as admin_grpc
from billing.webhooks.v1 import webhooks_maintenance_pb2 as maintenance
from billing.webhooks.v1 import webhooks_maintenance_pb2_grpc as maintenance_grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncEngine

from services.webhooks.actions import operate, watch
from services.webhooks.actions.deliver import Courier
from services.webhooks.loop import DeliveryLoop
from services.webhooks.rules.health import Alert
from services.webhooks.rules.inbox import SignatureFailure
from services.webhooks.rules.operators import (
    DeadLetter,
    EventFilter,
    EventRow,
    EventSelection,
    LetterSelection,
    Status,
    Wish,
)
from shared import logs
from shared.clock import Clock
from shared.rpc.context import DEFAULT_TIMEOUT_SECONDS, remaining_seconds

_STATUSES: dict[Status, admin.EventStatus.ValueType] = {
    "pending": admin.EVENT_STATUS_PENDING,
    "processed": admin.EVENT_STATUS_PROCESSED,
    "dead": admin.EVENT_STATUS_DEAD,
}
_STATUS_OF = {value: status for status, value in _STATUSES.items()}
_SEVERITIES = {
    "warning": alert_pb2.ALERT_SEVERITY_WARNING,
    "critical": alert_pb2.ALERT_SEVERITY_CRITICAL,
}
# What is left to write down results and to answer, before the caller stops waiting.
_RESERVE_SECONDS = 1.5


class WebhooksAdminService(admin_grpc.WebhooksAdminServiceServicer):
    """For operators."""

    def __init__(self, engine: AsyncEngine, loop: DeliveryLoop) -> None:
        self._engine = engine
        self._loop = loop

    async def ListEvents(self, request: admin.ListEventsRequest, context: Any) -> admin.ListEventsResponse:
        events, token = await operate.list_events(
            self._engine,
            EventFilter(
                tenant_id=request.tenant_id or None,
                event_type=request.event_type or None,
                status=_STATUS_OF.get(request.status),
                received_from=_moment(request, "received_from"),
                received_until=_moment(request, "received_until"),
                event_id=request.event_id or None,
            ),
            page_size=request.page_size,
            token=request.page_token,
        )
        return admin.ListEventsResponse(events=[_event(event) for event in events], next_page_token=token)

    async def GetEvent(self, request: admin.GetEventRequest, context: Any) -> admin.GetEventResponse:
        view = await operate.get_event(self._engine, request.id)
        return admin.GetEventResponse(
            event=_event(view.event),
            redacted_body=view.redacted_body,
            body_note=view.body_note,
            body_bytes=view.body_bytes,
        )

    async def ReplayEvents(
        self, request: admin.ReplayEventsRequest, context: Any
    ) -> admin.ReplayEventsResponse:
        match request.WhichOneof("selection"):
            case "id":
                chosen = EventSelection(id=request.id)
            case "tenant_id":
                chosen = EventSelection(tenant_id=request.tenant_id)
            case _:
                chosen = EventSelection(
                    received_from=_moment(request.range, "received_from"),
                    received_until=_moment(request.range, "received_until"),
                    event_type=request.range.event_type or None,
                )
        replayed = await operate.replay_events(self._engine, chosen, _wish(request))
        self._loop.wake()
        return admin.ReplayEventsResponse(
            replayed_count=replayed.events,
            in_attempt_count=replayed.in_attempt,
            body_removed_count=replayed.without_body,
        )

    async def ListDeadLetters(
        self, request: admin.ListDeadLettersRequest, context: Any
    ) -> admin.ListDeadLettersResponse:
        letters, token = await operate.list_dead_letters(
            self._engine,
            tenant_id=request.tenant_id,
            reason=request.reason,
            page_size=request.page_size,
            token=request.page_token,
        )
        return admin.ListDeadLettersResponse(
            dead_letters=[_letter(letter, event) for letter, event in letters], next_page_token=token
        )

    async def RequeueDeadLetters(
        self, request: admin.RequeueDeadLettersRequest, context: Any
    ) -> admin.RequeueDeadLettersResponse:
        count = await operate.requeue_dead_letters(self._engine, _letters(request), _wish(request))
        self._loop.wake()
        return admin.RequeueDeadLettersResponse(requeued_count=count)

    async def DiscardDeadLetters(
        self, request: admin.DiscardDeadLettersRequest, context: Any
    ) -> admin.DiscardDeadLettersResponse:
        count = await operate.discard_dead_letters(self._engine, _letters(request), _wish(request))
        return admin.DiscardDeadLettersResponse(discarded_count=count)

    async def ListSignatureFailures(
        self, request: admin.ListSignatureFailuresRequest, context: Any
    ) -> admin.ListSignatureFailuresResponse:
        failures, token = await operate.list_signature_failures(
            self._engine,
            tenant_id=request.tenant_id,
            endpoint=request.endpoint,
            since_at=_moment(request, "since_at"),
            page_size=request.page_size,
            token=request.page_token,
        )
        return admin.ListSignatureFailuresResponse(
            signature_failures=[_failure(failure) for failure in failures], next_page_token=token
        )


class WebhooksMaintenanceService(maintenance_grpc.WebhooksMaintenanceServiceServicer):
    """For the scheduler."""

    def __init__(
        self,
        engine: AsyncEngine,
        courier: Courier,
        *,
        concurrency: int,
        normal: watch.Watch,
        retention: watch.Retention,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._courier = courier
        self._concurrency = concurrency
        self._normal = normal
        self._retention = retention
        self._clock = clock

    async def DeliverPending(
        self, request: maintenance.DeliverPendingRequest, context: Any
    ) -> maintenance.DeliverPendingResponse:
        results: dict[str, int] = {}
        if not request.dry_run:
            results = await self._courier.deliver_due(
                concurrency=self._concurrency, seconds=_seconds_for_work()
            )
        return maintenance.DeliverPendingResponse(
            delivered_count=sum(
                results.get(outcome, 0) for outcome in ("applied", "duplicate", "superseded", "ignored")
            ),
            failed_count=results.get("failed", 0),
            dead_count=results.get("dead", 0),
            pending_count=await watch.count_pending(self._engine),
        )

    async def CheckHealth(
        self, request: maintenance.CheckHealthRequest, context: Any
    ) -> maintenance.CheckHealthResponse:
        now = self._clock()
        condition = await watch.check_health(self._engine, self._normal, now)
        return maintenance.CheckHealthResponse(
            seconds_since_last_event=_seconds_since(condition.last_received_at, now, never=-1),
            signature_failures_last_hour=condition.signature_failures,
            pending_count=condition.pending,
            oldest_pending_seconds=_seconds_since(condition.oldest_pending_at, now, never=0),
            dead_letter_count=condition.dead_letters,
            alerts=[_alert(alert) for alert in condition.alerts],
        )

    async def Cleanup(self, request: maintenance.CleanupRequest, context: Any) -> maintenance.CleanupResponse:
        removed = await watch.clean_up(
            self._engine,
            self._retention,
            self._clock(),
            seconds=_seconds_for_work(),
            dry_run=request.dry_run,
        )
        return maintenance.CleanupResponse(
            bodies_removed_count=removed.bodies,
            events_removed_count=removed.events,
            admin_requests_removed_count=removed.requests,
            signature_failures_removed_count=removed.signature_failures,
            rate_limit_buckets_removed_count=removed.buckets,
            more_remains=removed.more_remains,
        )


def _seconds_for_work() -> float:
    remaining = remaining_seconds()
    return max(0.0, (DEFAULT_TIMEOUT_SECONDS if remaining is None else remaining) - _RESERVE_SECONDS)


def _seconds_since(moment: datetime | None, now: datetime, *, never: int) -> int:
    return never if moment is None else max(0, int((now - moment).total_seconds()))


def _moment(message: Message, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)


def _stamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _wish(
    request: admin.ReplayEventsRequest | admin.RequeueDeadLettersRequest | admin.DiscardDeadLettersRequest,
) -> Wish:
    return Wish(request.actor, request.reason, request.idempotency_key, logs.request_id.get())


def _letters(
    request: admin.RequeueDeadLettersRequest | admin.DiscardDeadLettersRequest,
) -> LetterSelection:
    match request.WhichOneof("selection"):
        case "dead_letters":
            return LetterSelection(ids=sorted(request.dead_letters.ids))
        case "set_aside_for":
            return LetterSelection(set_aside_for=request.set_aside_for)
        case _:
            return LetterSelection(tenant_id=request.tenant_id)


def _event(event: EventRow) -> admin.Event:
    return admin.Event(
        id=event.id,
        provider=event.provider,
        account_id=event.account_id,
        mode=event.mode,
        event_id=event.event_id or "",
        event_type=event.event_type or "",
        body_sha256=event.body_sha256,
        masked=event.masked,
        signed_with=event.signed_with or "",
        received_at=_stamp(event.received_at),
        status=_STATUSES[event.status],
        processed_at=_stamp(event.processed_at),
        outcome=event.outcome or "",
        outcome_reason=event.outcome_reason or "",
        retry_count=event.retry_count,
        next_retry_at=_stamp(event.next_retry_at),
        last_error=event.last_error or "",
        tenant_id=event.tenant_id or "",
        request_id=event.request_id,
    )


def _letter(letter: DeadLetter, event: EventRow | None) -> admin.DeadLetter:
    return admin.DeadLetter(
        id=letter.id,
        event=None if event is None else _event(event),
        reason=letter.reason,
        last_error=letter.last_error or "",
        created_at=_stamp(letter.created_at),
    )


def _failure(failure: SignatureFailure) -> admin.SignatureFailure:
    return admin.SignatureFailure(
        endpoint=failure.endpoint,
        tenant_id=failure.tenant_id or "",
        remote_ip=failure.remote_ip or "",
        user_agent=failure.user_agent or "",
        payload_id=failure.payload_id or "",
        path=failure.path or "",
        created_at=_stamp(failure.created_at),
    )


def _alert(alert: Alert) -> alert_pb2.Alert:
    return alert_pb2.Alert(
        key=alert.key,
        severity=_SEVERITIES[alert.severity],
        title=alert.title,
        tenant_id=alert.tenant_id or "",
        evidence=dict(alert.evidence),
    )
