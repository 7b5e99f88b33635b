"""Which steps follow a failed charge, and when."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.policy import Step

DOWNGRADE = "auto_downgraded"


@dataclass(frozen=True)
class DueStep:
    """A step to be recorded; a skipped one is never sent."""

    kind: str
    skipped: bool


def due_steps(
    ladder: Sequence[Step], since: datetime, taken: Collection[str], now: datetime
) -> list[DueStep]:
    """What the ladder asks for and was not taken in this cycle, first step first.

    Of several that came due while nobody looked only the last is sent: three reminders at once help nobody, and a
    reminder after the downgrade would be wrong.
    """
    reached = [number for number, step in enumerate(ladder) if now - since >= timedelta(days=step.day)]
    latest = max([*reached, *(n for n, step in enumerate(ladder) if step.kind in taken)], default=-1)
    return [
        DueStep(ladder[number].kind, skipped=number < latest)
        for number in reached
        if ladder[number].kind not in taken
    ]


def cycle_ref(known: KnownSubscription) -> str:
    """Names a failing cycle: it stays when an earlier failure of the same cycle is heard of later."""
    return f"{known.id}:{known.failing_paid_count}"


def downgrade_at(ladder: Sequence[Step], since: datetime) -> datetime | None:
    """When the tenant lands on free unless somebody pays."""
    days = [step.day for step in ladder if step.kind == DOWNGRADE]
    return since + timedelta(days=days[0]) if days else None
