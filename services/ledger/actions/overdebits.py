"""Giving back what debits took too much, of many tenants in one call."""

import hashlib
from collections.abc import Sequence

from services.ledger.actions import Ledger
from services.ledger.rules.model import Outcome
from services.ledger.rules.requests import RefundOverdebit
from shared.errors import BillingError, InvalidArgument

_KEY_MAX = 255


def key_of(request_key: str, transaction_id: str) -> str:
    """The key of one refund: the same however the items of a request are cut into calls."""
    key = f"overdebit:{request_key}:{transaction_id}"
    if len(key) <= _KEY_MAX:
        return key
    # As long as the longest key that a transaction may be asked for by.
    return f"overdebit:{hashlib.sha256(request_key.encode()).hexdigest()}:{transaction_id}"


async def refund_overdebits(ledger: Ledger, asked: Sequence[RefundOverdebit]) -> list[Outcome | BillingError]:
    """One answer for each, in their order: each is refused or booked, and audited, by itself."""
    _refuse_twice(asked)
    found: list[Outcome | BillingError] = []
    for answer in await ledger.lanes.submit_all(asked):
        if not isinstance(answer, Outcome | BillingError):
            raise TypeError(f"a lane answered {type(answer).__name__}")
        found.append(answer)
    return found


def _refuse_twice(asked: Sequence[RefundOverdebit]) -> None:
    """Results are told apart by their transactions."""
    first: dict[str, int] = {}
    violations = []
    for position, each in enumerate(asked):
        known = first.setdefault(each.transaction_id, position)
        if known != position:
            field = f"overdebits[{position}].transaction_id"
            violations.append((field, f"is that of overdebits[{known}]; name each transaction once"))
    if violations:
        raise InvalidArgument(" ".join(violations[0]), violations=violations)
