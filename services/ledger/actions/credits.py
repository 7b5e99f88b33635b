"""Everything that moves credits or counts usage: once per key, through the tenant's lane."""

from collections.abc import Sequence
from typing import TypeAlias

from services.ledger.actions import Ledger
from services.ledger.rules.model import Noted, Outcome
from services.ledger.rules.requests import (
    Adjust,
    Authorize,
    CaptureHold,
    Consume,
    Debit,
    ExtendHold,
    Freeze,
    Grant,
    Group,
    PlaceHold,
    RebuildMirrors,
    Refund,
    Release,
    Restore,
    Revoke,
    SetUsage,
    Unfreeze,
    VoidHold,
)
from shared.errors import BillingError, InvalidArgument

MovesCredits: TypeAlias = (
    Debit | PlaceHold | CaptureHold | VoidHold | ExtendHold | Refund | Grant | Revoke | Restore | Adjust
)
MovesNone: TypeAlias = Consume | Release | SetUsage | Freeze | Unfreeze | RebuildMirrors


async def book(ledger: Ledger, operation: MovesCredits) -> Outcome:
    """Do it once per key and answer what was booked; the refusals that the contract names are remembered under it."""
    outcome = await ledger.lanes.submit(operation)
    if not isinstance(outcome, Outcome):
        raise TypeError(f"a lane answered {type(outcome).__name__}")
    return outcome


async def note(ledger: Ledger, operation: MovesNone) -> Noted:
    """Count usage, or freeze an account and end it, once per key."""
    noted = await ledger.lanes.submit(operation)
    if not isinstance(noted, Noted):
        raise TypeError(f"a lane answered {type(noted).__name__}")
    return noted


async def authorize(ledger: Ledger, operation: Authorize) -> Outcome | Noted:
    """Limits and credits in one decision; raises NotAuthorized with what every part said."""
    decided = await ledger.lanes.submit(operation)
    if not isinstance(decided, Outcome | Noted):
        raise TypeError(f"a lane answered {type(decided).__name__}")
    return decided


async def batch_debit(ledger: Ledger, debits: Sequence[tuple[Debit, str]]) -> list[Outcome | BillingError]:
    """One answer for each (debit, group id), in their order; a group is one tenant's and applied whole or not at all."""
    positions: dict[str, list[int]] = {}
    for position, (_, group_id) in enumerate(debits):
        positions.setdefault(f"group {group_id}" if group_id else f"alone {position}", []).append(position)
    operations: list[Debit | Group] = []
    for own in positions.values():
        members, group_id = tuple(debits[position][0] for position in own), debits[own[0]][1]
        if group_id:
            _refuse_other_tenants(debits, own)
        operations.append(Group(members[0].tenant_id, group_id, members) if group_id else members[0])
    found: dict[int, Outcome | BillingError] = {}
    answers = await ledger.lanes.submit_all(operations)
    for own, answer in zip(positions.values(), answers, strict=True):
        for index, position in enumerate(own):
            each = answer[index] if isinstance(answer, list) else answer
            if not isinstance(each, Outcome | BillingError):
                raise TypeError(f"a lane answered {type(each).__name__}")
            found[position] = each
    return [found[position] for position in range(len(debits))]


def _refuse_other_tenants(debits: Sequence[tuple[Debit, str]], group: list[int]) -> None:
    """A group is decided under one tenant's lock."""
    own = debits[group[0]][0].tenant_id
    what = f"must be {own}: a group_id is for debits of one tenant"
    violations = [
        (f"items[{position}].debit.tenant_id", what)
        for position in group
        if debits[position][0].tenant_id != own
    ]
    if violations:
        raise InvalidArgument(f"{violations[0][0]} {what}", violations=violations)
