"""What the scheduler can do: claim what is due, execute a run, tell of alerts, forget, and what operators ask for."""

from services.scheduler.actions.operators import (
    claim_by_hand,
    list_alerts,
    list_jobs,
    list_runs,
    set_paused,
    set_schedule,
    wait_for,
)
from services.scheduler.actions.telling import tell_sink
from services.scheduler.actions.ticks import claim_due, execute, prepare
from services.scheduler.actions.upkeep import prune

__all__ = [
    "claim_by_hand",
    "claim_due",
    "execute",
    "list_alerts",
    "list_jobs",
    "list_runs",
    "prepare",
    "prune",
    "set_paused",
    "set_schedule",
    "tell_sink",
    "wait_for",
]
