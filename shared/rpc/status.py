"""BillingError ⇄ gRPC status, with google.rpc details as the carrier (AIP-193)."""

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from shared import errors

# Rich status travels in a trailer of at most 8 KB; beyond it clients see RESOURCE_EXHAUSTED instead of the error.
_MESSAGE_CHARACTERS_MAX = 600
_VALUE_CHARACTERS_MAX = 200
_VIOLATIONS_MAX = 20


def to_status(error: errors.BillingError, *, domain: str, request_id: str) -> status_pb2.Status:
    """The status that carries this refusal, and nothing that the error did not name."""
    metadata = {name: value[:_VALUE_CHARACTERS_MAX] for name, value in error.metadata.items()}
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=domain, metadata=metadata)]
    if isinstance(error, errors.InvalidArgument) and error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=field[:_VALUE_CHARACTERS_MAX], description=what[:_VALUE_CHARACTERS_MAX]
            )
            for field, what in error.violations[:_VIOLATIONS_MAX]
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if isinstance(error, errors.ResourceExhausted):
        wait = duration_pb2.Duration()
        wait.FromMilliseconds(int(error.retry_after_seconds * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=wait))
    details.append(error_details_pb2.RequestInfo(request_id=request_id))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.code),
        message=error.message[:_MESSAGE_CHARACTERS_MAX],
        details=[_pack(detail) for detail in (*details, *error.details)],
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> errors.BillingError:
    """The refusal that the other side raised; codes we do not know are unknown outcomes."""
    # CANCELLED by the other side: it stopped before it took the call up, or while it worked.
    name = "UNAVAILABLE" if error.code() == grpc.StatusCode.CANCELLED else error.code().name
    category = errors.BY_CODE.get(name, errors.Internal)
    message = error.details() or error.code().name.lower()
    status = rpc_status.from_call(error)
    reason, metadata, violations, retry_after = category.reason, {}, [], 1.0
    others = []
    for packed in status.details if status is not None else ():
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            packed.Unpack(bad)
            violations = [(each.field, each.description) for each in bad.field_violations]
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            packed.Unpack(retry)
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
        elif not packed.Is(error_details_pb2.RequestInfo.DESCRIPTOR):
            others.append(packed)
    mapped = category(message, reason=reason)
    mapped.metadata = metadata
    mapped.details = tuple(others)
    if isinstance(mapped, errors.InvalidArgument):
        mapped.violations = tuple(violations)
    if isinstance(mapped, errors.ResourceExhausted):
        mapped.retry_after_seconds = retry_after
    return mapped


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
