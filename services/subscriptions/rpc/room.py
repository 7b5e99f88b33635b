"""What every door of the room opens onto."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions.reconciliation import Reconciler
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.notices import NoticeSink
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rules.policy import Policy
from shared.clock import Clock
from shared.ops.limits import Limiter


@dataclass(frozen=True)
class Room:
    """The room's database, its neighbours, and what a deployment decided."""

    engine: AsyncEngine
    ledger: Ledger
    razorpay: Razorpay
    reconciler: Reconciler
    mode: str
    clock: Clock
    policy: Policy
    limiter: Limiter
    # None: notices stay owed.
    notices: NoticeSink | None = None


class Desk:
    """A part of a service: one kind of request, in the room it belongs to."""

    def __init__(self, room: Room) -> None:
        self._room = room
