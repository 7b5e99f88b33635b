"""What a deployment may decide for itself."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal


@dataclass(frozen=True)
class Supplier:
    """Who sells, as tax invoices name it."""

    name: str = ""
    gstin: str = ""
    state_code: str = ""
    address: str = ""
    sac: str = "998315"


@dataclass(frozen=True)
class Step:
    """One step of the ladder after a failed charge, so many days after the first failure of the cycle."""

    day: int
    kind: str


LADDER = (
    Step(1, "past_due_day_1"),
    Step(3, "past_due_day_3"),
    Step(7, "past_due_day_7"),
    Step(14, "auto_downgraded"),
)


@dataclass(frozen=True)
class Retention:
    """How long what is done with is kept."""

    completed_tasks: timedelta = timedelta(days=90)
    idempotency_keys: timedelta = timedelta(days=90)
    signature_failures: timedelta = timedelta(days=90)


@dataclass(frozen=True)
class Policy:
    """The defaults are those that the contract describes."""

    # What an upgrade gives back of the old period's money.
    upgrade_refund: Literal["prorated", "none"] = "prorated"
    # What it takes back of the old period's credits; nothing where no money goes back.
    upgrade_credits: Literal["delta_prorated", "none"] = "delta_prorated"
    # How long a quote may be executed, and how long the customer may take to pay what was quoted.
    quote_valid: timedelta = timedelta(minutes=30)
    change_valid: timedelta = timedelta(hours=24)
    # A scheduled end is told to the provider so long before, because debits are prepared 24 to 36 hours ahead.
    cancel_lead: timedelta = timedelta(hours=48)
    # Of VerifyPayment, for one tenant in fifteen minutes: all calls, and those whose signature does not hold.
    verify_calls: int = 100
    verify_failures: int = 5
    ladder: tuple[Step, ...] = LADDER
    supplier: Supplier = field(default_factory=Supplier)
    # Failed charges of an hour wake somebody when they are more than this share, and at least so many.
    failures_alert_pct: int = 10
    failures_alert_min: int = 5
    retention: Retention = field(default_factory=Retention)
    # How far back SyncWithProvider goes through the provider's payments.
    payments_compared: timedelta = timedelta(days=7)
