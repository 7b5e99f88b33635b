"""Requests that are valid by default; each test says only what it is about."""

from datetime import datetime, timedelta
from itertools import count

from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types

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
