"""What every call passes before it reaches a servicer, in one interceptor: key, age, deadline, validation, errors, log."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import psycopg
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shared import database, errors, logs, metrics, sensitive, tracing
from shared.ops.limits import Limit, Limiter
from shared.rpc import context, status, validation
from shared.rpc.auth import Audience, Caller, Keyring, admit

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # generic in its stubs only
Call: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Call], Awaitable[Any]]
# Metadata by lower-case name; of several values the first counts.
Headers: TypeAlias = dict[str, str | bytes]

_OPEN = "grpc.health.v1.Health"
_REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_METHOD = re.compile(r"[A-Za-z]{1,64}")
_MILLISECONDS = re.compile(r"[0-9]{1,15}")
# Python's gRPC reports "no deadline" as some 292 years.
_NO_DEADLINE_SECONDS = 3600 * 24 * 365
# Below this a call could not finish: refuse it before it does anything.
_TOO_LATE_SECONDS = 0.02
# A clock that differs by more than this says nothing about a request's age.
_SKEW_SECONDS = 60

_log = logs.get_logger()


class Gate(grpc.aio.ServerInterceptor):
    """Admits, bounds and translates every call; servicers only raise."""

    def __init__(
        self,
        *,
        room: str,
        keyring: Keyring,
        audiences: dict[str, Audience],
        shed_after_seconds: float,
        limiter: Limiter | None = None,
        admin_limit: Limit | None = None,
    ) -> None:
        self._domain = f"billing.{room}"
        self._keyring = keyring
        self._audiences = audiences
        self._shed_after_seconds = shed_after_seconds
        self._limiter = limiter
        self._admin_limit = admin_limit
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        service = method.rpartition("/")[0].lstrip("/")
        if service == _OPEN:
            return await continuation(handler_call_details)
        try:
            self._admit(service, _headers(handler_call_details.invocation_metadata))
        except errors.BillingError as refusal:
            _log.warning("rpc", method=self._known(method), code=refusal.code, reason=refusal.reason)
            metrics.refused(service if service in self._audiences else "", refusal.code)
            return self._refuse(refusal)
        if (wrapped := self._wrapped.get(method)) is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC then answers UNIMPLEMENTED; callers make such names up, so none is kept
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _known(self, method: str) -> str | None:
        """The method if it can be one of ours: strangers make names up, and none of theirs is worth a line."""
        service, _, name = method.lstrip("/").rpartition("/")
        served = service in self._audiences or service in _REFLECTION
        return method if served and _METHOD.fullmatch(name) else None

    def _admit(self, service: str, headers: Headers) -> Caller:
        caller = self._keyring.caller(headers.get(context.KEY_HEADER))
        if service not in _REFLECTION:
            admit(caller, self._audiences.get(service), service)
        return caller

    def _refuse(self, refusal: errors.BillingError) -> Handler:
        """A handler that answers the refusal at once: a stranger's request is never waited for nor read."""

        async def answer(_requests: Any, call: Call) -> None:
            await self._abort(call, refusal, logs.new_request_id())

        # A unary handler reads the request first; on the wire a unary call is a stream of one.
        return grpc.stream_stream_rpc_method_handler(answer)

    def _wrap(self, method: str, handler: Handler) -> Handler:
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                tracing.served(
                    method, self._unary(method, handler.unary_unary, handler.request_deserializer)
                ),
                response_serializer=handler.response_serializer,
            )
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                tracing.served(
                    method, self._stream(method, handler.stream_stream, handler.request_deserializer)
                ),
                response_serializer=handler.response_serializer,
            )
        raise NotImplementedError(f"{method}: only unary and bidirectional calls are served")

    def _unary(self, method: str, behaviour: Any, parse: Any) -> Behaviour:
        service = method.rpartition("/")[0].lstrip("/")
        limited = self._audiences.get(service) is Audience.OPERATOR
        meter = metrics.RpcMeter(method, "unary")

        async def serve(raw: bytes, call: Call) -> Any:
            headers = _headers(call.invocation_metadata())
            request_id = _begin(headers)
            started_at = time.monotonic()
            try:
                self._shed_if_old(headers)
                remaining = _remaining_seconds(call) or context.DEFAULT_TIMEOUT_SECONDS
                context.deadline.set(started_at + remaining)
                # Parsed here, since gRPC would answer UNKNOWN, "ask again", to bytes that will never be a request.
                request = _parsed(raw, parse)
                validation.check(request)
                async with asyncio.timeout(remaining):
                    if limited:
                        await self._assert_within_limit(method, call)
                    answer = await behaviour(request, call)
            except asyncio.CancelledError:
                # The caller left, or its deadline passed there first.
                _access(method, "CANCELLED", started_at, meter)
                raise
            except Exception as error:
                await self._refuse_call(call, error, method, started_at, request_id, meter)
            else:
                _access(method, "OK", started_at, meter)
                return answer

        return serve

    def _stream(self, method: str, behaviour: Any, parse: Any) -> Behaviour:
        meter = metrics.RpcMeter(method, "bidi_stream")

        async def serve(requests: AsyncIterator[bytes], call: Call) -> None:
            headers = _headers(call.invocation_metadata())
            request_id = _begin(headers)
            started_at = time.monotonic()
            try:
                self._shed_if_old(headers)
                # Without a deadline a stream lives as long as its caller; each of its messages is soon answered.
                remaining = _remaining_seconds(call)
                context.deadline.set(None if remaining is None else started_at + remaining)
                # Written from here rather than yielded: a deadline that passed would end whoever asked for the next.
                async with (
                    asyncio.timeout(remaining),
                    contextlib.aclosing(behaviour(_checked(requests, parse), call)) as answers,
                ):
                    async for answer in answers:
                        await call.write(answer)
                # A caller that leaves looks at first like one that has said everything.
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                _access(method, "CANCELLED", started_at, meter)
                raise
            except Exception as error:
                await self._refuse_call(call, error, method, started_at, request_id, meter)
            else:
                _access(method, "OK", started_at, meter)

        return serve

    async def _refuse_call(
        self,
        call: Call,
        error: Exception,
        method: str,
        started_at: float,
        request_id: str,
        meter: metrics.RpcMeter,
    ) -> None:
        refusal = _as_billing_error(error, method)
        _access(method, refusal.code, started_at, meter, reason=refusal.reason)
        await self._abort(call, refusal, request_id)

    def _shed_if_old(self, headers: Headers) -> None:
        sent = headers.get(context.SENT_HEADER)
        if not isinstance(sent, str) or not _MILLISECONDS.fullmatch(sent):
            return
        age_seconds = time.time() - int(sent) / 1000
        if self._shed_after_seconds < age_seconds < _SKEW_SECONDS:
            raise errors.ResourceExhausted(
                "the server is behind; nothing was done, try again", reason="SHED", retry_after_seconds=1
            )

    async def _assert_within_limit(self, method: str, call: Call) -> None:
        """Whoever holds the operators' key still cannot ask without end; by address, since they share the key."""
        if self._limiter is not None and self._admin_limit is not None:
            name = method.rpartition("/")[2]
            key = f"admin:{method.lstrip('/')}:{_address(call.peer())}"
            await self._limiter.assert_allowed(key, self._admin_limit, f"calls of {name}")

    async def _abort(self, call: Call, refusal: errors.BillingError, request_id: str) -> None:
        rich = rpc_status.to_status(status.to_status(refusal, domain=self._domain, request_id=request_id))
        trailers = tuple(rich.trailing_metadata)
        if isinstance(refusal, errors.ResourceExhausted):
            # What gRPC's own retries obey, in clients that use them.
            pushback = str(int(refusal.retry_after_seconds * 1000))
            trailers = (*trailers, ("grpc-retry-pushback-ms", pushback))
        await call.abort(rich.code, rich.details, trailers)


def _address(peer: str) -> str:
    """Where a call comes from, without the port: `ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000`, `unix:`."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind


def _headers(metadata: Iterable[tuple[str, str | bytes]] | None) -> Headers:
    return dict(reversed(tuple(metadata or ())))


def _begin(headers: Headers) -> str:
    given = headers.get(context.REQUEST_ID_HEADER)
    usable = isinstance(given, str) and _REQUEST_ID.fullmatch(given) and not sensitive.looks_like_card(given)
    request_id = str(given) if usable else logs.new_request_id()
    logs.request_id.set(request_id)
    return request_id


async def _checked(requests: AsyncIterator[bytes], parse: Any) -> AsyncIterator[Message]:
    async for raw in requests:
        request = _parsed(raw, parse)
        validation.check(request)
        yield request


def _parsed(raw: bytes, parse: Any) -> Any:
    try:
        return parse(raw)
    except DecodeError as error:
        raise errors.InvalidArgument("the bytes are not a message of this method's request") from error


def _remaining_seconds(call: Call) -> float | None:
    """What the caller still waits; None when it named no deadline."""
    remaining: float | None = call.time_remaining()
    if remaining is None or remaining > _NO_DEADLINE_SECONDS:
        return None
    if remaining < _TOO_LATE_SECONDS:
        raise errors.DeadlineExceeded("arrived too late to be answered")
    return remaining


def _as_billing_error(error: Exception, method: str) -> errors.BillingError:
    match error:
        case errors.BillingError():
            return error
        case NotImplementedError():
            # What a generated servicer raises for an RPC that the room leaves out.
            return errors.Unimplemented("this release does not serve this RPC")
        case TimeoutError():
            return errors.DeadlineExceeded("the deadline passed; ask again with the same key")
        case DBAPIError():
            mapped = database.as_billing_error(error)
        case PoolTimeout() | psycopg.OperationalError() | ConnectionError():
            mapped = errors.Unavailable("the database did not answer; ask again with the same key")
        case _:
            mapped = errors.Internal("internal error")
    _log.error("rpc_failed", method=method, error=logs.brief(error), exc_info=error)
    return mapped


def _access(method: str, code: str, started_at: float, meter: metrics.RpcMeter, **fields: str) -> None:
    seconds = time.monotonic() - started_at
    meter.handled(code, seconds)
    tracing.answered(code)
    milliseconds = round(seconds * 1000, 1)
    if code == "OK":
        logs.access(method, milliseconds)
        return
    write = _log.info if code in _CALLERS_FAULT else _log.warning
    write("rpc", method=method, code=code, ms=milliseconds, **fields)


_CALLERS_FAULT = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"})
