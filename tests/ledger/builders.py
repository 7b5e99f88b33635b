"""Requests that are valid by default; each test says only what it is about."""

from datetime import datetime, timedelta
from itertools import count

from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf.duration_pb2 import Duration

from shared import clock

_number = count(1)


def a_debit(tenant: str, credits: int = 5, **changes: object) -> pb.DebitRequest:
    values = {"idempotency_key": f"debit-{next(_number)}", "reason": "blog.publish", **changes}
    return pb.DebitRequest(tenant_id=tenant, credits=credits, **values)


def a_grant(tenant: str, credits: int = 100, **changes: object) -> funding_pb.GrantCreditsRequest:
    """Permanent credits, unless `expires_at` says otherwise."""
    reference = str(changes.pop("reference_id", f"razorpay:pay_{next(_number)}"))
    expires_at = changes.get("expires_at")
    values = {
        "idempotency_key": f"grant:{reference}",
        "bucket": types.BUCKET_PERMANENT if expires_at is None else types.BUCKET_SUBSCRIPTION,
        "reason": "credit_pack",
        **changes,
    }
    return funding_pb.GrantCreditsRequest(tenant_id=tenant, credits=credits, reference_id=reference, **values)


def in_days(days: float) -> datetime:
    return clock.now() + timedelta(days=days)


def a_hold(tenant: str, credits: int = 10, *, seconds: float = 600, **changes: object) -> pb.PlaceHoldRequest:
    ttl = Duration()
    ttl.FromMilliseconds(int(seconds * 1000))
    values = {"idempotency_key": f"hold-{next(_number)}", "reason": "ai.generate", "ttl": ttl, **changes}
    return pb.PlaceHoldRequest(tenant_id=tenant, credits=credits, **values)


def a_capture(tenant: str, hold_id: str, credits: int, **changes: object) -> pb.CaptureHoldRequest:
    values = {"idempotency_key": f"capture-{next(_number)}", **changes}
    return pb.CaptureHoldRequest(tenant_id=tenant, hold_id=hold_id, credits=credits, **values)


def a_void(tenant: str, hold_id: str, **changes: object) -> pb.VoidHoldRequest:
    values = {"idempotency_key": f"void-{next(_number)}", **changes}
    return pb.VoidHoldRequest(tenant_id=tenant, hold_id=hold_id, **values)


def an_extension(tenant: str, hold_id: str, seconds: int, **changes: object) -> pb.ExtendHoldRequest:
    values = {"idempotency_key": f"extend-{next(_number)}", "ttl": Duration(seconds=seconds), **changes}
    return pb.ExtendHoldRequest(tenant_id=tenant, hold_id=hold_id, **values)


def a_refund(tenant: str, transaction_id: str, **changes: object) -> pb.RefundDebitRequest:
    values = {"idempotency_key": f"refund-{next(_number)}", "reason": "blog.publish_failed", **changes}
    return pb.RefundDebitRequest(tenant_id=tenant, transaction_id=transaction_id, **values)


def a_revocation(tenant: str, grant: str, credits: int, **changes: object) -> funding_pb.RevokeGrantRequest:
    reference = str(changes.pop("reference_id", f"razorpay:rfnd_{next(_number)}"))
    values = {"idempotency_key": f"revoke:{reference}", "reason": "payment.refund", **changes}
    return funding_pb.RevokeGrantRequest(
        tenant_id=tenant, grant_reference_id=grant, credits=credits, reference_id=reference, **values
    )


def a_restoration(tenant: str, revocation: str, **changes: object) -> funding_pb.RestoreGrantRequest:
    reference = str(changes.pop("reference_id", f"restore:{revocation}"))
    values = {"idempotency_key": f"restore:{reference}", **changes}
    return funding_pb.RestoreGrantRequest(
        tenant_id=tenant, revoke_reference_id=revocation, reference_id=reference, **values
    )


def an_adjustment(tenant: str, credits: int, **changes: object) -> admin_pb.AdjustCreditsRequest:
    values = {
        "idempotency_key": f"ticket-{next(_number)}",
        "reason": "admin.adjustment",
        "description": "ticket 7: what was promised",
        "actor": "asha",
        **changes,
    }
    return admin_pb.AdjustCreditsRequest(tenant_id=tenant, credits=credits, **values)


def a_batch(*debits: pb.DebitRequest, group_id: str = "") -> pb.BatchDebitRequest:
    return pb.BatchDebitRequest(items=[pb.BatchDebitItem(debit=each, group_id=group_id) for each in debits])
