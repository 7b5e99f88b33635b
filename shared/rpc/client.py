"""The door out: a channel that carries the key, the request id and the deadline, and raises what the other side raised."""

import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc.aio import ClientCallDetails, Metadata
from pydantic import SecretStr

from shared import errors, logs, tracing
from shared.database import assert_no_transaction
from shared.rpc import context, status

_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    # Channels with equal arguments share one connection; a room's own pool keeps it apart from others'.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy in the environment is the way to the world outside; rooms are neighbours.
    ("grpc.enable_http_proxy", 0),
]


def open_channel(address: str, key: SecretStr) -> grpc.aio.Channel:
    """A channel to another room. Unary calls raise BillingError, end by the caller's deadline, never retried."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=[_Envoy(key)])


class _Envoy(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, key: SecretStr) -> None:
        self._key = key.get_secret_value()

    async def intercept_unary_unary(
        self,
        continuation: Callable[[ClientCallDetails, Any], Any],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        asked = client_call_details.method
        method = asked.decode() if isinstance(asked, bytes) else asked
        assert_no_transaction(f"RPC {method}")
        request_id = logs.request_id.get() or logs.new_request_id()
        with tracing.calling(method, request_id) as trace:
            metadata = Metadata(*(client_call_details.metadata or ()), *trace)
            metadata.add(context.KEY_HEADER, self._key)
            metadata.add(context.REQUEST_ID_HEADER, request_id)
            metadata.add(context.SENT_HEADER, str(time.time_ns() // 1_000_000))
            call_details = ClientCallDetails(
                method=client_call_details.method,
                timeout=_timeout(client_call_details.timeout),
                metadata=metadata,
                credentials=client_call_details.credentials,
                wait_for_ready=client_call_details.wait_for_ready,
            )
            try:
                call = await continuation(call_details, request)
                return await call
            except grpc.aio.AioRpcError as error:
                raise status.from_rpc_error(error) from error


def _timeout(asked: float | None) -> float:
    """The caller's own timeout or the default, never more than what its own caller still waits."""
    timeout = context.DEFAULT_TIMEOUT_SECONDS if asked is None else asked
    remaining = context.remaining_seconds()
    if remaining is None:
        return timeout
    if remaining <= context.SHAVE_SECONDS:
        raise errors.DeadlineExceeded("no time left to ask another room")
    return min(timeout, remaining - context.SHAVE_SECONDS)
