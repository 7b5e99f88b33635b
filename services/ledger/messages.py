"""The rules' values as messages of the contract, and back."""

import functools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from services.ledger.rules import limits, model
from services.ledger.rules.requests import Debit, Grant
from services.ledger.rules.usage import Parts
from shared.errors import BillingError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# By the words of the rules. Names are looked up once.
_LIMIT_REASONS = {name.removeprefix("LIMIT_REASON_").lower(): value for name, value in pb.LimitReason.items()}
_BUCKETS = {name.removeprefix("BUCKET_").lower(): value for name, value in types.Bucket.items()}
_KINDS = {
    name.removeprefix("TRANSACTION_KIND_").lower(): value for name, value in types.TransactionKind.items()
}
_STATUSES = {
    name.removeprefix("TRANSACTION_STATUS_").lower(): value for name, value in types.TransactionStatus.items()
}
_LIMIT_KINDS = {name.removeprefix("LIMIT_KIND_").lower(): value for name, value in types.LimitKind.items()}


def moment(timestamp: Timestamp) -> datetime:
    """An aware UTC datetime, to the microsecond."""
    return timestamp.ToDatetime(tzinfo=UTC)


def duration(value: Duration) -> timedelta:
    """The same, to the microsecond."""
    return value.ToTimedelta()


# One answer says the same few moments again and again.
@functools.lru_cache(maxsize=4096)
def stamp(at: datetime | None) -> Timestamp | None:
    """The same moment as a message, to be copied and never changed; None stays absent."""
    if at is None:
        return None
    since = at - _EPOCH  # FromDatetime takes five times as long
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


def bucket(name: str) -> types.Bucket.ValueType:
    """The bucket of this name."""
    return _BUCKETS[name]


def bucket_name(value: types.Bucket.ValueType) -> str:
    """The name of this bucket."""
    return types.Bucket.Name(value).removeprefix("BUCKET_").lower()


def debit_of(request: pb.DebitRequest) -> Debit:
    """The operation that a request asks for."""
    return Debit(
        tenant_id=request.tenant_id,
        idempotency_key=request.idempotency_key,
        credits=request.credits,
        min_credits=request.min_credits if request.HasField("min_credits") else request.credits,
        reason=request.reason,
        reference_id=request.reference_id,
        description=request.description,
        metadata=dict(request.metadata),
        if_seq=request.if_seq if request.HasField("if_seq") else None,
        dry_run=request.dry_run,
    )


def transaction(value: model.Transaction, entries: Iterable[model.Entry]) -> types.Transaction:
    """A transaction with its lines, summed by bucket."""
    lines = list(entries)
    moved: dict[str, int] = {}
    for entry in lines:
        moved[entry.bucket] = moved.get(entry.bucket, 0) + entry.d_posted
    return types.Transaction(
        id=value.id,
        tenant_id=value.tenant_id,
        idempotency_key=value.idempotency_key,
        kind=_KINDS[value.kind],
        status=_STATUSES[value.status],
        amount=value.amount,
        reason=value.reason,
        description=value.description,
        reference_id=value.reference_id,
        hold_id=value.hold_id,
        refunded_transaction_id=value.refunded_transaction_id,
        buckets=[
            types.BucketAmount(bucket=bucket(name), credits=credits)
            for name, credits in moved.items()
            if credits
        ],
        entries=[_entry(entry) for entry in lines],
        first_seq=value.first_seq,
        last_seq=value.last_seq,
        created_at=stamp(value.created_at),
        metadata=value.metadata,
    )


def balance(totals: model.Totals, lots: Iterable[model.Lot] = ()) -> types.Balance:
    """A balance; operations answer it without its lots."""
    return types.Balance(
        available=totals.available,
        held=totals.held,
        posted=totals.posted,
        buckets=[
            types.BucketBalance(
                bucket=bucket(each.bucket),
                credits=each.credits,
                held=each.held,
                next_expires_at=stamp(each.next_expires_at),
            )
            for each in totals.buckets
        ],
        lots=[lot(each) for each in lots],
        next_expires_at=stamp(totals.next_expires_at),
        as_of_seq=totals.as_of_seq,
        as_of=stamp(totals.as_of),
    )


def hold(value: model.Hold) -> pb.Hold:
    """Credits set aside."""
    return pb.Hold(
        id=value.id,
        reserved=value.reserved,
        captured=value.captured,
        released=value.released,
        expires_at=stamp(value.expires_at),
        status=_STATUSES[value.status],
    )


def hold_of(outcome: model.Outcome) -> pb.Hold:
    """The hold that an operation placed or changed, as it was then."""
    if outcome.hold is None:
        raise TypeError(f"{outcome.transaction.id} is about no hold")
    return hold(outcome.hold)


def with_hold(outcome: model.Outcome) -> dict[str, Any]:
    """The fields that all answers about holds share."""
    return {
        "hold": hold_of(outcome),
        "transaction": transaction(outcome.transaction, outcome.entries),
        "balance": balance(outcome.totals),
        "replayed": outcome.replayed,
    }


def debit(outcome: model.Outcome) -> pb.DebitResponse:
    """What was taken."""
    return pb.DebitResponse(
        transaction=transaction(outcome.transaction, outcome.entries),
        balance=balance(outcome.totals),
        replayed=outcome.replayed,
    )


def refund(outcome: model.Outcome) -> pb.RefundDebitResponse:
    """What was given back."""
    return pb.RefundDebitResponse(
        transaction=transaction(outcome.transaction, outcome.entries),
        balance=balance(outcome.totals),
        refundable=outcome.refundable,
        replayed=outcome.replayed,
    )


def refusal(error: BillingError) -> pb.Refusal:
    """What a call alone would have got as its status."""
    return pb.Refusal(
        code=code_pb2.Code.Value(error.code),
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
    )


def parts(value: Parts) -> pb.AuthorizeResponse:
    """What each part of a refused decision said."""
    return pb.AuthorizeResponse(
        limits=[limit_decision(each) for each in value.limits], balance=balance(value.totals)
    )


def lot(value: model.Lot) -> types.Lot:
    """What is left of one grant."""
    return types.Lot(
        lot=value.lot,
        bucket=bucket(value.bucket),
        granted=value.granted,
        remaining=value.remaining,
        held=value.held,
        expires_at=stamp(value.expires_at),
        reference_id=value.reference_id,
        created_at=stamp(value.created_at),
    )


def granted_lot(outcome: model.Outcome, grant: Grant) -> types.Lot:
    """The lot as the grant made it; a repeat is told the same, whatever was spent since."""
    (line,) = outcome.entries
    return types.Lot(
        lot=line.lot,
        bucket=bucket(line.bucket),
        granted=line.d_posted,
        remaining=line.lot_posted_after,
        held=line.lot_held_after,
        expires_at=stamp(grant.expires_at),
        reference_id=grant.reference_id,
        created_at=stamp(line.at),
    )


def limit_decision(value: limits.LimitDecision) -> pb.LimitDecision:
    """What a limit says."""
    return pb.LimitDecision(
        limit_key=value.limit_key,
        allowed=value.allowed,
        reason=_LIMIT_REASONS[value.reason],
        limit=value.limit,
        used=value.used,
        remaining=value.remaining,
        kind=_LIMIT_KINDS[value.kind],
        grace_expires_at=stamp(value.grace_expires_at),
        addon=value.addon,
    )


def service_entitlement(value: limits.ServiceEntitlement) -> types.ServiceEntitlement:
    """What a tenant may use of one service."""
    return types.ServiceEntitlement(
        service_code=value.service_code,
        enabled=value.enabled,
        limits=[_limit(limit) for limit in value.limits],
    )


def _limit(value: limits.Limit) -> types.Limit:
    message = types.Limit(
        key=value.key,
        kind=_LIMIT_KINDS[value.kind],
        grace_seconds=value.grace_seconds,
        addon=value.addon,
    )
    if value.value is None:
        message.unlimited = True
    else:
        message.value = value.value
    return message


def service_entitlement_of(message: types.ServiceEntitlement) -> limits.ServiceEntitlement:
    """The same, from a message."""
    return limits.ServiceEntitlement(
        service_code=message.service_code,
        enabled=message.enabled,
        limits=tuple(
            limits.Limit(
                key=limit.key,
                value=None if limit.WhichOneof("ceiling") == "unlimited" else limit.value,
                kind=limits.SOFT if limit.kind == types.LIMIT_KIND_SOFT else limits.HARD,
                grace_seconds=limit.grace_seconds,
                addon=limit.addon,
            )
            for limit in message.limits
        ),
    )


def _entry(value: model.Entry) -> types.Entry:
    return types.Entry(
        seq=value.seq,
        lot=value.lot,
        bucket=_BUCKETS[value.bucket],
        d_posted=value.d_posted,
        d_held=value.d_held,
        lot_posted_after=value.lot_posted_after,
        lot_held_after=value.lot_held_after,
        account_posted_after=value.account_posted_after,
        at=stamp(value.at),
    )
